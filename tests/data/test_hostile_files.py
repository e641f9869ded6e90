"""Damaged and hostile files: every one is refused in one line that names the file, and tells nothing of other files."""

import contextlib
import os

import h5py
import numpy as np
import pytest

from rsdmri.data.fastmri import read_acquired, read_scan, scan_shape
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator

CANARY = "CANARY19600101"
KSPACE = numpy_generator("hostile").standard_normal((3, 2, 8, 10)).astype(np.complex64)


def write(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def header(text):
    return {"kspace": KSPACE, "ismrmrd_header": np.bytes_(text)}


def missing(path):
    return "no such file"


def folder(path):
    path.mkdir()
    return "folder"


def empty(path):
    path.write_bytes(b"")
    return "empty"


def not_hdf5(path):
    path.write_bytes(CANARY.encode() * 500)
    return "not an HDF5 file"


def truncated(path):
    write(path, kspace=np.tile(KSPACE, (20, 1, 1, 1)))
    size = path.stat().st_size
    os.truncate(path, size // 2)
    return rf"cut short \({size // 2:,} of {size:,} bytes\)"


def no_kspace(path):
    write(path, image=KSPACE, **{"evil\x1b[31m\nname": KSPACE})
    return r"no data set 'kspace' \(it holds evil\?\[31m\?name, image\)"


def nothing_inside(path):
    write(path)
    return "it holds nothing"


def rank_2(path):
    write(path, kspace=KSPACE[0, 0])
    return "2 axes"


def rank_6(path):
    write(path, kspace=KSPACE[None, None])
    return "6 axes"


def scalar(path):
    write(path, kspace=np.complex64(1))
    return "0 axes"


def no_shape(path):
    write(path, kspace=h5py.Empty("c8"))
    return "no shape"


def integers(path):
    write(path, kspace=np.ones((3, 2, 8, 10), np.int16))
    return "type int16"


def half_precision_struct(path):
    write(path, kspace=np.zeros((3, 2, 8, 10), np.dtype([("r", "<f2"), ("i", "<f2")])))
    return "type"


def real_without_pairs(path):
    write(path, kspace=np.ones((3, 2, 8, 10), np.float32))
    return "type float32"


def strings(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", data=[[CANARY]], dtype=h5py.string_dtype())
    return "type object"


def group(path):
    with h5py.File(path, "w") as file:
        file.create_group("kspace")["data"] = KSPACE
    return "is a group"


def no_coils(path):
    write(path, kspace=KSPACE[:, :0])
    return "k-space has 0 coils"


def no_slices(path):
    write(path, kspace=KSPACE[:0])
    return "k-space has 0 slices"


def no_lines(path):
    write(path, kspace=KSPACE[..., :0])
    return "k-space has 0 phase-encode lines"


def too_many_coils(path):
    write(path, kspace=np.ones((1, 300, 2, 2), np.complex64))
    return "300 coils"


def victim(path):
    other = path.with_name("victim.h5")
    with h5py.File(other, "w") as file:
        file["kspace"] = KSPACE
        file["kspace"].attrs["name"] = CANARY
        file["mask"] = np.ones(10)
        file["reconstruction_rss"] = np.abs(KSPACE[:, 0])
        file["ismrmrd_header"] = np.bytes_(CANARY)
    return other


def external_link(path):
    with h5py.File(path, "w") as file:
        file["kspace"] = h5py.ExternalLink(str(victim(path)), "kspace")
    return "external link"


def external_link_of(name):
    def build(path):
        with h5py.File(path, "w") as file:
            file["kspace"] = KSPACE
            file[name] = h5py.ExternalLink(str(victim(path)), name)
        return f"'{name}' is an external link"

    build.__name__ = f"external_link_of_{name}"
    return build


def external_storage(path):
    secret = path.with_name("secret.bin")
    secret.write_bytes(CANARY.encode() * 1000)
    with h5py.File(path, "w") as file:
        size = KSPACE.nbytes
        file.create_dataset("kspace", KSPACE.shape, "c8", external=[(str(secret), 0, size)])
    return "another file"


def virtual(path):
    layout = h5py.VirtualLayout(KSPACE.shape, "c8")
    layout[:] = h5py.VirtualSource(str(victim(path)), "kspace", KSPACE.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("kspace", layout)
    return "virtual"


def soft_link_loop(path):
    with h5py.File(path, "w") as file:
        file["kspace"] = h5py.SoftLink("/other")
        file["other"] = h5py.SoftLink("/kspace")
    return "soft link"


def soft_link_of_mask(path):
    with h5py.File(path, "w") as file:
        file["kspace"] = KSPACE
        file["mask"] = h5py.SoftLink("/kspace")
    return "'mask' is a soft link"


def group_in_itself(path):
    with h5py.File(path, "w") as file:
        cycle = file.create_group("kspace")
        cycle["kspace"] = cycle
    return "is a group"


def shape_bomb(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (2000, 64, 4096, 4096), "c8", chunks=(1, 1, 64, 64))
    return "declares"


def slice_bomb(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (1, 200, 4096, 4096), "c8", chunks=(1, 1, 512, 512))
    return "declares"


def small_bomb(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (4, 4, 512, 512), "c8", chunks=(1, 1, 64, 64))
    return "never written"


def compressed_nothing(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", data=np.zeros((2, 2, 64, 64), np.complex64), compression="gzip")
    return "only zeros"


def huge_header(path):
    write(path, **header("<a>" + "x" * 1_000_001 + "</a>"))
    return "more than 1,000,000"


def huge_header_of_variable_length(path):
    with h5py.File(path, "w") as file:
        file["kspace"] = KSPACE
        file.create_dataset("ismrmrd_header", data="<a>" + "x" * 1_000_001 + "</a>", dtype=h5py.string_dtype())
    return "more than 1,000,000"


def laughs(path):
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(9))
    write(path, **header(f'<!DOCTYPE r [<!ENTITY e0 "ha">{entities}]><r>&e9;</r>'))
    return "DTD"


def external_entity(path):
    secret = path.with_name("secret.txt")
    secret.write_text(CANARY)
    write(path, **header(f'<!DOCTYPE r [<!ENTITY x SYSTEM "file://{secret}">]><r>&x;</r>'))
    return "DTD"


def missing_filter(path):
    code = 31999
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(KSPACE.shape)
        properties.set_filter(code, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple(KSPACE.shape)
        made = h5py.h5d.create(file.id, b"kspace", h5py.h5t.py_create(np.dtype("c8")), space, properties)
        made.write_direct_chunk((0, 0, 0, 0), KSPACE.tobytes())
    return f"filter {code}.*hdf5plugin"


def flipped_bit(path):
    with h5py.File(path, "w") as file:
        made = file.create_dataset("kspace", data=KSPACE, chunks=(1, 2, 8, 10), fletcher32=True)
        place = made.id.get_chunk_info(1).byte_offset + 5
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    return "slice 1 cannot be read"


def nan_acquired(path):
    kspace = KSPACE.copy()
    kspace[1, 0, 2, 3:6] = np.nan
    write(path, kspace=kspace)
    return "3 acquired samples of slice 1 are NaN"


def infinite_after_conversion(path):
    kspace = KSPACE.astype(np.complex128)
    kspace[2, 1, 0, 0] = 1e300
    write(path, kspace=kspace)
    return "1 acquired samples of slice 2 are NaN or infinite"


def mask_of_other_length(path):
    write(path, kspace=KSPACE, mask=np.ones(9))
    return "mask is float64"


def mask_with_other_values(path):
    write(path, kspace=KSPACE, mask=np.full(10, 0.5))
    return "other than 0 and 1"


def mask_of_nan(path):
    write(path, kspace=KSPACE, mask=np.full(10, np.nan))
    return "other than 0 and 1"


def mask_against_data(path):
    write(path, kspace=KSPACE, mask=np.arange(10) % 2)
    return r"240 samples \(100.0 %\) hold data where its mask says that nothing"


def mask_of_nothing(path):
    write(path, kspace=np.zeros_like(KSPACE), mask=np.zeros(10))
    return "only zeros"


CASES = [
    missing, folder, empty, not_hdf5, truncated, no_kspace, nothing_inside, rank_2, rank_6, scalar, no_shape, integers,
    half_precision_struct, real_without_pairs, strings, group, no_coils, no_slices, no_lines, too_many_coils,
    external_link, external_link_of("mask"), external_link_of("ismrmrd_header"), external_link_of("reconstruction_rss"),
    external_storage, virtual, soft_link_loop, soft_link_of_mask, group_in_itself, shape_bomb, slice_bomb, small_bomb,
    compressed_nothing, huge_header,
    huge_header_of_variable_length, laughs, external_entity, missing_filter, flipped_bit, nan_acquired,
    infinite_after_conversion, mask_of_other_length, mask_with_other_values, mask_of_nan, mask_against_data,
    mask_of_nothing,
]  # fmt: skip
NOT_SEEN_BY_SHAPE = {"nan_acquired", "infinite_after_conversion", "mask_against_data"}


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_refused_in_one_line(tmp_path, build):
    path = tmp_path / "scan.h5"
    reason = build(path)
    with pytest.raises(InputError, match=reason) as caught:
        read_scan(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert CANARY not in message
    assert len(message) < len(str(path)) + 250
    assert caught.value.__cause__ is None
    if build.__name__ in NOT_SEEN_BY_SHAPE:
        scan_shape(path)
    elif build.__name__ != "flipped_bit":
        with pytest.raises(InputError, match=reason):
            scan_shape(path)


@pytest.mark.parametrize("build", [missing, truncated, external_link, virtual, external_storage, shape_bomb, rank_2])
def test_read_acquired_has_the_same_guards(tmp_path, build):
    path = tmp_path / "scan.h5"
    reason = build(path)
    with pytest.raises(InputError, match=reason):
        read_acquired(path, 0, np.ones(10, bool))


def test_every_truncation_is_refused(tmp_path):
    path = write(tmp_path / "scan.h5", kspace=KSPACE, mask=np.ones(10))
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"scan\.h5: "):
            read_scan(path)


def test_random_damage_never_escapes_as_another_error(tmp_path):
    path = write(tmp_path / "scan.h5", kspace=KSPACE, mask=np.ones(10), ismrmrd_header=np.bytes_("<a/>"))
    whole = path.read_bytes()
    generator = numpy_generator("damage")
    for _ in range(150):
        raw = bytearray(whole)
        for place in generator.integers(0, 2500, 4):  # the metadata come first
            raw[place] = generator.integers(256)
        path.write_bytes(raw)
        with contextlib.suppress(InputError):
            read_scan(path)


def test_control_characters_of_a_path_do_not_reach_the_message(tmp_path):
    with pytest.raises(InputError) as caught:
        read_scan(tmp_path / "a\x1b[2J\nb.h5")
    assert str(caught.value).isprintable()
    with pytest.raises(InputError, match="no such file"):
        read_scan("a\0b.h5")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write(tmp_path / "scan.h5", kspace=KSPACE)
    path.chmod(0)
    with pytest.raises(InputError, match="permission denied"):
        read_scan(path)


def test_personal_data_stay_in_the_file(tmp_path):
    planted = ("DOE^JOHN", CANARY, "MRN0042")
    xml = (
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><subjectInformation><patientName>DOE^JOHN</patientName>'
        f"<patientID>MRN0042</patientID><patientBirthdate>{CANARY}</patientBirthdate></subjectInformation>"
        f"<encoding><encodedSpace><matrixSize><x>{CANARY}</x><y>MRN0042</y><z>1</z></matrixSize></encodedSpace>"
        "</encoding></ismrmrdHeader>"
    )
    path = write(tmp_path / "scan.h5", **header(xml))
    with h5py.File(path, "a") as file:
        for name in ("patient_id", "institution", "max", "norm"):
            file.attrs[name] = " ".join(planted)
    scan = read_scan(path)
    told = repr(scan) + " ".join(str(getattr(scan, field)) for field in scan.__dataclass_fields__)
    assert not any(secret in told for secret in planted)
    assert any("encodedSpace/matrixSize" in warning for warning in scan.warnings)


def test_text_from_the_file_is_made_printable_and_short(tmp_path):
    path = write(tmp_path / "scan.h5", kspace=KSPACE)
    with h5py.File(path, "a") as file:
        file.attrs["acquisition"] = "\x1b]0;../../etc\x07\n" + "A" * 500
    scan = read_scan(path)
    assert scan.acquisition == "unknown"
