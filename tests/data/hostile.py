"""Damaged and hostile scan files: each builder writes one and returns what the refusal must say."""

import importlib.util
import os
from pathlib import Path

import h5py
import numpy as np

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
    return r"(no data set 'kspace' \(it holds|say which one with --variable NAME:) evil\?\[31m\?name"


def nothing_inside(path):
    write(path)
    return "it holds no(thing| arrays)"


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


def filter_of_a_package(path):
    """A scan compressed with Zstandard by hdf5plugin, which is not among this package's dependencies."""
    path.write_bytes((Path(__file__).parent / "kspace_zstd.h5").read_bytes())
    return "filter 32015.*hdf5plugin"


def pipe(path):
    os.mkfifo(path)
    return "pipe or a device"


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


# Files that are odd and read all the same; what `inspect` says of them.


def no_header(path):
    write(path, kspace=KSPACE)
    return "no ismrmrd_header; using array sizes"


def short_header(path):
    write(path, **header("<ismrmrdHeader><encoding><encodedSpace><matr"))
    return "not well-formed XML"


def header_of_wrong_numbers(path):
    write(path, **header(encoding(encoded=(-8, "1e9", "x"), recon=(9999, 9999, 1), center=10**7, maximum=3)))
    return "encodedSpace/matrixSize is not three positive numbers"


def padding_out_of_range(path):
    write(path, **header(encoding(encoded=(8, 10, 1), recon=(8, 10, 1), center=99, maximum=3)))
    return "do not fit a width of 10"


def image_larger_than_kspace(path):
    write(path, **header(encoding(encoded=(8, 10, 1), recon=(4096, 4096, 1), center=5, maximum=9)))
    return "image size 4096x4096 exceeds"


def encoding(encoded, recon, center, maximum):
    sizes = []
    for name, size in (("encoded", encoded), ("recon", recon)):
        matrix = "".join(f"<{axis}>{n}</{axis}>" for axis, n in zip("xyz", size, strict=True))
        sizes.append(f"<{name}Space><matrixSize>{matrix}</matrixSize></{name}Space>")
    limits = f"<kspace_encoding_step_1><center>{center}</center><maximum>{maximum}</maximum></kspace_encoding_step_1>"
    return f"<h><encoding>{''.join(sizes)}<encodingLimits>{limits}</encodingLimits></encoding></h>"


def zero_slice(path):
    kspace = KSPACE.copy()
    kspace[1] = 0
    write(path, kspace=kspace)
    return "slices without any signal: 1"


def mask_of_more_than_the_data(path):
    kspace = KSPACE.copy()
    kspace[..., 3] = 0
    write(path, kspace=kspace, mask=np.ones(10))
    return "hold only zeros"


def nan_not_acquired(path):
    kspace = KSPACE.copy()
    kspace[..., 3] = np.nan
    write(path, kspace=kspace, mask=np.arange(10) != 3)
    return "already undersampled"


def attributes_of_escapes(path):
    write(path, kspace=KSPACE)
    with h5py.File(path, "a") as file:
        file.attrs["acquisition"] = f"\x1b]0;{CANARY}\x07\n../../{CANARY}"
        file.attrs["\x1b[2J"] = CANARY
    return "acquisition +unknown"


def flipped_bit_without_checksum(path):
    write(path, kspace=KSPACE)
    with h5py.File(path) as file:
        place = file["kspace"].id.get_offset()
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    return "3 slices, 2 coils"


def links_of_other_names(path):
    with h5py.File(path, "w") as file:
        file["kspace"] = KSPACE
        file["other"] = h5py.ExternalLink(str(victim(path)), "kspace")
        file["loop"] = file["/"]
    return "3 slices, 2 coils"


READ = [
    no_header, short_header, header_of_wrong_numbers, padding_out_of_range, image_larger_than_kspace, zero_slice,
    mask_of_more_than_the_data, nan_not_acquired, attributes_of_escapes, flipped_bit_without_checksum,
    links_of_other_names,
]  # fmt: skip

CASES = [
    missing, folder, empty, not_hdf5, truncated, no_kspace, nothing_inside, rank_2, rank_6, scalar, no_shape, integers,
    half_precision_struct, real_without_pairs, strings, group, no_coils, no_slices, no_lines, too_many_coils,
    external_link, external_link_of("mask"), external_link_of("ismrmrd_header"), external_link_of("reconstruction_rss"),
    external_storage, virtual, soft_link_loop, soft_link_of_mask, group_in_itself, shape_bomb, slice_bomb, small_bomb,
    compressed_nothing, huge_header, huge_header_of_variable_length, laughs, external_entity, missing_filter,
    flipped_bit, filter_of_a_package, pipe, nan_acquired, infinite_after_conversion, mask_of_other_length,
    mask_with_other_values, mask_of_nan, mask_against_data, mask_of_nothing,
]  # fmt: skip
# One for each row of what a stranger's file can be; the others vary them.
ROWS = [
    missing, folder, empty, not_hdf5, truncated, no_kspace, half_precision_struct, integers, strings, no_coils,
    no_slices, external_link, external_storage, virtual, soft_link_loop, group_in_itself, shape_bomb,
    compressed_nothing, huge_header, laughs, external_entity, flipped_bit, filter_of_a_package, pipe, nan_acquired,
    mask_of_other_length, mask_against_data,
]  # fmt: skip
if importlib.util.find_spec("hdf5plugin") is not None:
    for cases in (CASES, ROWS):
        cases.remove(filter_of_a_package)
NOT_SEEN_BY_SHAPE = {"nan_acquired", "infinite_after_conversion", "mask_against_data"}
