"""`inspect` says what a scan is; `doctor` says what is missing."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from rsdmri.data.fastmri import write_scan
from rsdmri.data.simulate import simulate_scan
from rsdmri.errors import InputError
from rsdmri.workflows.doctor import doctor
from rsdmri.workflows.inspect_scan import inspect_scan


@pytest.fixture(scope="module")
def kspace() -> np.ndarray:
    return simulate_scan(3, slices=2, size=64, coils=4, noise=0.02).kspace


def test_a_fully_sampled_scan(kspace: np.ndarray, tmp_path: Path) -> None:
    write_scan(tmp_path / "full.h5", kspace)
    rows = inspect_scan(tmp_path / "full.h5", tmp_path / "full.png")
    text = dict(rows)
    assert text["k-space"] == "2 slices, 4 coils, 64 readout samples x 64 phase encodes"
    assert "64 of 64 lines, acceleration 1.00" in text["sampling"]
    assert "residual of SENSE" in text["coil maps"]
    assert any(value.startswith("good: the maps cover the object") for _, value in rows)
    assert "as expected" in text["whitened"]
    assert (tmp_path / "full.png").read_bytes().startswith(b"\x89PNG")


def test_the_noise_level_is_that_of_the_simulation(tmp_path: Path) -> None:
    scan = simulate_scan(5, slices=4, size=64, coils=4, noise=0.03)
    write_scan(tmp_path / "scan.h5", scan.kspace)
    words = dict(inspect_scan(tmp_path / "scan.h5"))["noise"]
    true = float(np.sqrt(np.trace(scan.noise_covariance).real / 4))
    assert float(words.split()[0]) == pytest.approx(true, rel=0.1)


def test_an_undersampled_scan_with_nan_where_nothing_was_acquired(kspace: np.ndarray, tmp_path: Path) -> None:
    mask = np.zeros(64, bool)
    mask[26:38], mask[::5] = True, True
    write_scan(tmp_path / "under.h5", np.where(mask, kspace, np.nan + 0j).astype(np.complex64), mask=mask)
    rows = inspect_scan(tmp_path / "under.h5")
    assert f"{mask.sum()} of 64 lines" in dict(rows)["sampling"]
    assert any("already undersampled" in value for _, value in rows)


def test_a_picture_that_cannot_be_written_is_one_line(kspace: np.ndarray, tmp_path: Path) -> None:
    write_scan(tmp_path / "full.h5", kspace)
    with pytest.raises(InputError, match="cannot be written"):
        inspect_scan(tmp_path / "full.h5", tmp_path / "missing" / "full.png")


def test_nothing_personal_is_shown(kspace: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_scan(path, kspace, attrs={"acquisition": "AXT2"})
    with h5py.File(path, "r+") as file:
        file.attrs["patient_id"] = "DOE^JOHN 19600101"
    assert "DOE" not in repr(inspect_scan(path))


def test_doctor_finds_every_dependency_and_the_anatomy() -> None:
    rows = {name: verdict for name, _, verdict in doctor()}
    for name in ("python", "torch", "h5py", "sigpy", "HDF5 library", "packaged anatomy"):
        assert rows[name] == "ok"
    assert "device" in rows


def test_doctor_says_what_optional_packages_are_for() -> None:
    rows = {name: (version, verdict) for name, version, verdict in doctor()}
    for name, extra in (("finufft", "noncartesian"), ("deepinv", "deepinv"), ("mrpro", "mrpro")):
        version, verdict = rows[name]
        assert verdict == "ok" if version != "-" else f"'rsdmri[{extra}]'" in verdict
