"""Personal data planted wherever a file has room for them: none in any output, log, checkpoint or message."""

import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from rsdmri import cli, privacy
from rsdmri.data.fastmri_header import format_header
from rsdmri.data.scan import Header
from rsdmri.errors import InputError
from rsdmri.files import safe_stem
from rsdmri.workflows.reconstruct import load_scan

SECRETS = ("DOE", "JOHN", "19600101", "MRN0042", "St Elsewhere")
SUBJECT = (
    "<subjectInformation><patientName>DOE^JOHN</patientName><patientID>MRN0042</patientID><patientBirthdate>19600101"
    "</patientBirthdate></subjectInformation><studyInformation><studyDate>19600101</studyDate><studyID>MRN0042</studyID>"
    "<accessionNumber>MRN0042</accessionNumber><referringPhysicianName>DOE^JOHN</referringPhysicianName>"
    "<studyDescription>DOE^JOHN</studyDescription></studyInformation><measurementInformation><measurementID>MRN0042"
    "</measurementID><protocolName>DOE^JOHN 19600101</protocolName></measurementInformation>"
    "<acquisitionSystemInformation><institutionName>St Elsewhere</institutionName></acquisitionSystemInformation>"
)


def plant(path: Path) -> None:
    """Write personal data into every slot of a scan's file."""
    plain = format_header(Header((32, 32, 1), (32, 32, 1), (220, 220, 5), (0, 32))).decode()
    text = plain.replace("<encoding>", f"{SUBJECT}<encoding>", 1).replace(
        "</encoding>", "<trajectoryDescription><comment>DOE^JOHN</comment></trajectoryDescription></encoding>"
    )
    with h5py.File(path, "r+") as file:
        if "ismrmrd_header" in file:
            del file["ismrmrd_header"]
        file["ismrmrd_header"] = np.bytes_(text)
        file["DOE^JOHN"] = np.bytes_("19600101")
        for holder in (file, file["kspace"], file["reconstruction_rss"], file["ismrmrd_header"]):
            holder.attrs["patient_id"] = "MRN0042"
            holder.attrs["acquisition"] = "DOE^JOHN 19600101"
            holder.attrs["MRN0042"] = "St Elsewhere"
            holder.attrs["rsdmri_contrast"] = "DOE^JOHN"


def found_in(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def found_below(folder: Path) -> list[tuple[str, str]]:
    """Secrets in the names and bytes of all files."""
    hits = []
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        hits += [(name, secret) for secret in found_in(name)]
        if path.is_file():
            raw = path.read_bytes()
            hits += [(name, s) for s in SECRETS if s.encode() in raw or s.encode("utf-16-le") in raw]
    return hits


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rsdmri", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def patients(simulated, tmp_path) -> Path:
    """Folder, called after a patient, of scans that are too."""
    folder = tmp_path / "in" / "DOE^JOHN 19600101"
    folder.mkdir(parents=True)
    for name, source in zip(("DOE^JOHN_19600101", "MRN0042-1960-01-01"), sorted(simulated.glob("*.h5")), strict=False):
        shutil.copy(source, folder / f"{name}.h5")
        plant(folder / f"{name}.h5")
    return folder


def test_nothing_personal_leaves_any_command(run, patients, tmp_path, tiny_settings):
    out = tmp_path / "out"
    out.mkdir()
    scan = patients / "DOE^JOHN_19600101.h5"
    settings = [word for setting in (*tiny_settings, "steps=3") for word in ("--set", setting)]
    recon = out / "recon"
    said = []
    for arguments in (
        ("train", "--data", patients, "--out", out / "run", "--device", "cpu", *settings),
        ("train", "--data", patients, "--out", out / "run", "--device", "cpu", *settings),
        ("sample", "--prior", out / "run", "--n", 1, "--out", out / "samples"),
        ("reconstruct", *sorted(patients.glob("*.h5")), "--method", "zero-filled", "--acceleration", 4, "--out", recon),
        ("reconstruct", scan, "--prior", out / "run", "--samples", 1, "--out", out / "rsd", "--trust"),
        ("evaluate", recon, patients, "--out", out / "metrics.json"),
        ("inspect", scan, "--png", out / "scan.png"),
        ("validate", scan),
        ("validate", scan, "--json"),
    ):
        code, *streams = run(*arguments)
        assert code == 0, (arguments, streams)
        assert found_in("".join(streams).replace(str(patients), "")) == [], arguments
        said.append("".join(streams))
    assert found_below(out) == []
    assert found_in("".join(said)) == []
    assert len(list(recon.glob("scan-*.h5"))) == 2
    assert {path.name for path in (out / "run").iterdir()} >= {"config.toml", "metrics.jsonl", "checkpoints", "prior"}
    assert '"volumes"' in (out / "metrics.json").read_text()


def test_the_search_finds_what_is_planted(patients):
    assert {secret for _, secret in found_below(patients.parent)} == set(SECRETS)


def broken_mask(file):
    file["mask"] = np.arange(32) % 2


def not_a_number(file):
    file["kspace"][0, 0, 3, 16] = np.nan


def no_samples(file):
    del file["kspace"]
    file["kspace"] = np.bytes_("DOE^JOHN")


def hostile_header(file):
    del file["ismrmrd_header"]
    file["ismrmrd_header"] = np.bytes_("<!DOCTYPE r [<!ENTITY DOE 'JOHN'>]><r>&DOE;</r>")


@pytest.mark.parametrize("change", [broken_mask, not_a_number, no_samples, hostile_header])
def test_messages_name_the_file_and_nothing_in_it(run, simulated, tmp_path, change):
    path, out = tmp_path / "scan.h5", tmp_path / "out"
    shutil.copy(sorted(simulated.glob("*.h5"))[0], path)
    plant(path)
    with h5py.File(path, "r+") as file:
        change(file)
    for command in (("inspect", path), ("reconstruct", path, "--method", "sense", "--out", out), ("validate", path)):
        code, said, err = run(*command)
        assert code == 2
        assert str(path) in err
        assert found_in(said + err) == []
    assert not out.exists()


def test_an_error_names_even_a_file_called_after_a_person_but_on_standard_error_alone(run, tmp_path):
    path = tmp_path / "DOE^JOHN.h5"
    path.write_text("no scan")
    code, said, err = run("inspect", path)
    assert code == 2
    assert "DOE^JOHN.h5" in err
    assert found_in(said) == []


@pytest.mark.parametrize(
    "name",
    ["DOE^JOHN", "scan_Müller^Änne", "x19600101", "1960-01-01", "2023_12_31_knee", "MRN0042", "mrn-7", "patient_id_12"],
)
def test_names_that_tell_of_a_person_become_pseudonyms(name):
    stem = safe_stem(f"/data/{name}.h5")
    assert stem.startswith("scan-")
    assert len(stem) == 17
    assert stem == safe_stem(f"{name}.hdf5")
    assert stem != safe_stem(f"{name}2.h5") != safe_stem("DOE^JANE.h5")


@pytest.mark.parametrize(
    "name",
    ["file1000001", "file_brain_AXFLAIR_200_6002441", "file1000082_v2", "2022061003_T101", "brain8ch_230x180",
     "52c2fd53-d233-4444-8bfd-7c454240d314", "P001_cine", "fs_0001_1_5T", "e14089s3_P53248.7", "MTR_001", "sim00000"],
)  # fmt: skip
def test_names_of_public_data_stay(name):
    assert safe_stem(f"{name}.h5") == name


def test_a_pseudonym_needs_the_secret(monkeypatch):
    first = privacy.pseudonymous("DOE^JOHN")
    assert privacy.pseudonymous("DOE^JOHN") == first
    monkeypatch.setenv(privacy.SECRET_VARIABLE, "another")
    assert privacy.pseudonymous("DOE^JOHN") != first


def test_the_secret_is_made_once_for_one_user_alone(monkeypatch, tmp_path):
    monkeypatch.delenv(privacy.SECRET_VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    code = "from rsdmri.privacy import pseudonymous; print(pseudonymous('plain'), pseudonymous('DOE^JOHN'))"
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1
    (file,) = (tmp_path / "rsdmri").iterdir()
    assert file.name == "secret"
    assert file.stat().st_mode & 0o077 == 0
    assert len(file.read_bytes()) == 64


def test_without_a_home_pseudonyms_hold_in_one_process(monkeypatch, tmp_path):
    monkeypatch.delenv(privacy.SECRET_VARIABLE)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    privacy._stored_secret.cache_clear()
    assert privacy.pseudonymous("DOE^JOHN") == privacy.pseudonymous("DOE^JOHN") != "DOE^JOHN"
    privacy._stored_secret.cache_clear()


def test_ordinary_names_need_no_secret(monkeypatch, tmp_path):
    monkeypatch.delenv(privacy.SECRET_VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert safe_stem("scan.h5") == "scan"
    assert list(tmp_path.iterdir()) == []


def test_paths_lose_only_the_parts_that_tell(tmp_path):
    hidden = privacy.pseudonymous_path("/data/DOE^JOHN/knee")
    assert hidden == f"/data/{privacy.pseudonymous('DOE^JOHN')}/knee"
    assert privacy.pseudonymous_path(str(tmp_path)) == str(tmp_path)


def test_records_are_named_alike_from_child_and_process(patients):
    scan = patients / "DOE^JOHN_19600101.h5"
    assert load_scan(scan).name == load_scan(scan, trust=True).name == safe_stem(scan)
    with pytest.raises(InputError, match=r"JANE\.h5: no such file"):
        load_scan(patients / "DOE^JANE.h5")
