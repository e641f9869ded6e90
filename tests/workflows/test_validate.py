"""`validate` names everything that is missing, odd or dangerous in a file, and whether it can be used."""

import json
import sys

import h5py
import numpy as np
import pytest

from rsdmri import cli
from rsdmri.data.fastmri_header import NAMESPACE
from rsdmri.data.sandbox import load_facts
from rsdmri.runtime import numpy_generator
from rsdmri.workflows.validate import COLUMNS, STATES, format_report, validate

RNG = numpy_generator("validate")
KSPACE = (RNG.standard_normal((3, 2, 16, 10)) + 1j * RNG.standard_normal((3, 2, 16, 10))).astype(np.complex64)


def header(replace=(), extra=""):
    text = (
        f'<ismrmrdHeader xmlns="{NAMESPACE}">{extra}<encoding><encodedSpace><matrixSize><x>16</x><y>10</y><z>1</z>'
        "</matrixSize><fieldOfView_mm><x>320</x><y>200</y><z>5</z></fieldOfView_mm></encodedSpace><reconSpace>"
        "<matrixSize><x>8</x><y>8</y><z>1</z></matrixSize><fieldOfView_mm><x>160</x><y>160</y><z>5</z>"
        "</fieldOfView_mm></reconSpace><encodingLimits><kspace_encoding_step_1><minimum>0</minimum>"
        "<maximum>9</maximum><center>5</center></kspace_encoding_step_1></encodingLimits></encoding></ismrmrdHeader>"
    )
    for old, new in replace:
        assert old in text
        text = text.replace(old, new)
    return np.bytes_(text)


def write(path, attrs=None, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        for name, value in (attrs or {}).items():
            file.attrs[name] = value
    return path


def states(result, field):
    return [row["state"] for row in result["fields"] if row["field"] == field]


def advice(result, field):
    return " | ".join(row["advice"] for row in result["fields"] if row["field"] == field)


def test_a_good_file(tmp_path):
    path = write(
        tmp_path / "scan.h5",
        {"acquisition": "AXT2", "max": 3.0},
        kspace=KSPACE,
        mask=np.ones(10),
        ismrmrd_header=header(),
        reconstruction_rss=np.ones((3, 8, 8), np.float32),
    )
    result = validate(path)
    assert result["usable"]
    assert result["reason"] == ""
    found = {row["field"] for row in result["fields"] if row["state"] == "found"}
    limits = "header: encodingLimits/kspace_encoding_step_1"
    assert found == {
        "kspace", "mask", "ismrmrd_header", "header: encodedSpace/matrixSize", "header: encodedSpace/fieldOfView_mm",
        "header: reconSpace/matrixSize", "header: reconSpace/fieldOfView_mm", f"{limits}/center", f"{limits}/maximum",
        "reconstruction_rss", "attribute acquisition", "attribute max",
    }  # fmt: skip
    assert {row["state"] for row in result["fields"]} == {"found", "missing"}
    assert "never read" in advice(result, "attribute max")
    (row,) = [row for row in result["fields"] if row["field"] == "kspace"]
    assert (row["type"], row["shape"]) == ("complex64", "(3, 2, 16, 10)")
    assert result == validate(path, trust=True)


def test_all_problems_at_once(tmp_path):
    """What `read_scan` would refuse one after the other."""
    kspace = KSPACE.copy()
    kspace[1], kspace[2, 0, 0, 4] = 0, np.nan
    path = write(
        tmp_path / "scan.h5",
        {"acquisition": "\x1b[31mhead"},
        kspace=kspace,
        mask=np.arange(10) % 2,
        ismrmrd_header=header([("<x>8</x>", "<x>80</x>"), ("<center>5</center>", ""), ("<y>10</y>", "<y>12</y>")]),
        reconstruction_rss=np.ones((3, 8), np.int16),
    )
    with h5py.File(path, "a") as file:
        file["reconstruction_esc"] = h5py.ExternalLink("other.h5", "x")
        file["more"] = h5py.SoftLink("/kspace")
        file["extra"] = 1
    result = validate(path)
    assert not result["usable"]
    assert str(path) in result["reason"]
    assert states(result, "kspace") == ["found"]
    assert "slices 1 hold only zeros" in advice(result, "kspace values")
    assert "1 are NaN" in advice(result, "kspace values")
    assert "50.0 % of the positions hold data" in advice(result, "mask values")
    assert states(result, "header: encodingLimits/kspace_encoding_step_1/center") == ["missing"]
    assert "exceeds the encoded one" in advice(result, "header: consistency")
    assert "12 phase encodes, k-space 10" in advice(result, "header: consistency")
    assert states(result, "reconstruction_rss") == ["odd"]
    assert states(result, "reconstruction_esc") == ["dangerous"]
    assert states(result, "more") == ["dangerous"]
    assert states(result, "extra") == ["found"]
    assert states(result, "attribute acquisition") == ["odd"]
    for row in result["fields"]:
        assert set(row) == set(COLUMNS)
        assert row["state"] in STATES
        assert all(text.isprintable() for text in row.values())
        assert row["advice"] or row["state"] == "found"


@pytest.mark.parametrize(
    ("replace", "field", "state"),
    [
        ([("<x>16</x>", "<x>sixteen</x>")], "header: encodedSpace/matrixSize", "odd"),
        ([("<x>16</x>", "<x>-16</x>")], "header: encodedSpace/matrixSize", "odd"),
        ([("<x>16</x>", "<x>16.5</x>")], "header: encodedSpace/matrixSize", "odd"),
        ([("<x>16</x>", "")], "header: encodedSpace/matrixSize", "odd"),
        ([("<x>160</x>", "<x>inf</x>")], "header: reconSpace/fieldOfView_mm", "odd"),
        ([("<x>320</x><y>200</y><z>5</z>", "")], "header: encodedSpace/fieldOfView_mm", "missing"),
        ([("<maximum>9</maximum>", "<maximum>-1</maximum>")],
         "header: encodingLimits/kspace_encoding_step_1/maximum", "odd"),
        ([("<maximum>9</maximum>", "<maximum>99</maximum>")], "header: consistency", "odd"),
        ([(f' xmlns="{NAMESPACE}"', "")], "ismrmrd_header", "odd"),
        ([("<encoding>", "<other>"), ("</encoding>", "</other>")], "header: encoding", "missing"),
        ([("</encoding>", "")], "ismrmrd_header", "odd"),
        ([("<ismrmrdHeader", "<!DOCTYPE a []><ismrmrdHeader")], "ismrmrd_header", "dangerous"),
    ],
)  # fmt: skip
def test_the_header_is_read_strictly(tmp_path, replace, field, state):
    result = validate(write(tmp_path / "scan.h5", kspace=KSPACE, ismrmrd_header=header(replace)), trust=True)
    assert states(result, field) == [state]
    assert result["usable"] == (state != "dangerous")


@pytest.mark.parametrize(
    ("arrays", "field", "state", "said"),
    [
        ({}, "kspace", "missing", "complex64"),
        ({"kspace": np.ones((2, 3), np.complex64)}, "kspace", "odd", "2 axes"),
        ({"kspace": KSPACE.view(np.float32).reshape(*KSPACE.shape, 2)}, "kspace", "found", "last axis"),
        ({"kspace": KSPACE[:, 0]}, "kspace", "found", "single-coil"),
        ({"kspace": h5py.ExternalLink("a.h5", "b")}, "kspace", "dangerous", "external link"),
        ({"kspace": KSPACE, "mask": np.ones(9)}, "mask", "odd", "does not fit"),
        ({"mask": np.ones(9)}, "mask", "odd", "k-space is unusable"),
        ({"kspace": KSPACE, "ismrmrd_header": np.arange(3)}, "ismrmrd_header", "odd", "not one text"),
    ],
)  # fmt: skip
def test_single_fields(tmp_path, arrays, field, state, said):
    result = validate(write(tmp_path / "scan.h5", **arrays), trust=True)
    assert states(result, field)[0] == state
    assert said in advice(result, field)
    assert format_report(result).splitlines()[-1] == ("usable" if result["usable"] else "not usable")


def test_slices_that_cannot_be_read_are_all_named(tmp_path):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset("kspace", data=KSPACE, chunks=(1, 2, 16, 10), fletcher32=True)
        places = [made.id.get_chunk_info(index).byte_offset for index in (0, 2)]
    raw = bytearray(path.read_bytes())
    for place in places:
        raw[place] ^= 1
    path.write_bytes(raw)
    assert "slices 0, 2 cannot be read" in advice(validate(path), "kspace values")


def test_personal_data_are_told_by_kind_and_never_by_value(tmp_path):
    secrets = ("DOE^JOHN", "19600101", "MRN0042", "General Hospital")
    subject = (
        "<subjectInformation><patientName>DOE^JOHN</patientName><patientID>MRN0042</patientID>"
        "<patientBirthdate>19600101</patientBirthdate></subjectInformation><acquisitionSystemInformation>"
        "<institutionName>General Hospital</institutionName></acquisitionSystemInformation><userParameters>"
        "<userParameterString><name>x</name><value>DOE^JOHN</value></userParameterString></userParameters>"
    )
    path = write(
        tmp_path / "scan.h5",
        {"patient_id": "MRN0042", "comment": "DOE^JOHN, 1960-01-01", "19600101": 1},
        kspace=KSPACE,
        mask=np.ones(10),
        ismrmrd_header=header(extra=subject),
        **{"DOE^JOHN": 1},
    )
    with h5py.File(path, "a") as file:
        file["mask"].attrs["name"] = "DOE^JOHN"
    result = validate(path)
    assert result["usable"]
    told = advice(result, "ismrmrd_header")
    for kind in ("a person's name", "a patient number", "a date", "an institution"):
        assert kind in told
    told = advice(result, "attributes")
    assert "a person's name" in told
    assert "a date" in told
    assert "a field for personal data" in told
    for text in (format_report(result), format_report(result, as_json=True), str(load_facts(path))):
        assert not [secret for secret in secrets if secret in text]
    assert states(result, "another name") == ["found"]


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["rsdmri", "validate", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, *capsys.readouterr()

    return call


def test_the_command(run, tmp_path):
    good = write(tmp_path / "good.h5", kspace=KSPACE)
    code, out, err = run(good)
    assert (code, err) == (0, "")
    assert out.endswith("\nusable\n")
    code, out, err = run(good, "--json", "--trust")
    assert code == 0
    assert json.loads(out)["usable"] is True
    bad = write(tmp_path / "bad.h5", kspace=KSPACE.astype(np.complex64)[:, :0], mask=np.ones(3))
    code, out, err = run(bad, "--json")
    assert code == 2
    assert err.startswith(f"rsdmri: {bad}: ")
    assert err.count("\n") == 1
    assert json.loads(out)["usable"] is False
    (tmp_path / "text.h5").write_text("no scan")
    code, out, err = run(tmp_path / "text.h5")
    assert code == 2
    assert "is not an HDF5 file" in out
    assert "text.h5" not in out
