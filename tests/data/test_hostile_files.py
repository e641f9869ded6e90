"""Damaged and hostile files: every one is refused in one line that names the file, and tells nothing of other files."""

import contextlib
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from hostile import (
    CANARY,
    CASES,
    KSPACE,
    NOT_SEEN_BY_SHAPE,
    external_link,
    external_storage,
    header,
    missing,
    rank_2,
    shape_bomb,
    truncated,
    virtual,
    write,
)

from rsdmri.data.fastmri import read_acquired, read_scan, scan_shape
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator


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


def test_a_scan_compressed_by_a_package_is_read_where_that_is_installed():
    pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")
    expected = numpy_generator("hostile").integers(-9, 9, (3, 2, 8, 10)).astype(np.complex64)
    np.testing.assert_array_equal(read_scan(Path(__file__).parent / "kspace_zstd.h5").kspace, expected)


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
