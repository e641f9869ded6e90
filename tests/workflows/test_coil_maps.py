"""Coil maps that do not come from the scan itself."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

from rsdmri.cli import main
from rsdmri.data.fastmri_write import write_scan
from rsdmri.data.scan import Scan
from rsdmri.data.simulate import simulate_scan
from rsdmri.errors import InputError
from rsdmri.physics.fourier import center_crop, fft2c, ifft2c, rss
from rsdmri.workflows.reconstruct import load_scan, reconstruct

SETTINGS = {"slices": 2, "size": 64, "coils": 6, "noise": 0.005, "contrast": "T2w", "seed": 7}


@pytest.fixture(scope="module")
def simulated_scan():
    return simulate_scan(0, **SETTINGS)


@pytest.fixture
def scan(simulated_scan, tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, simulated_scan.kspace, target=simulated_scan.target)
    return path


def nmse(path, **options):
    return reconstruct(load_scan(path), method="sense", acceleration=2.5, **options).scores["nmse"]


def test_maps_of_a_file_are_used(scan, simulated_scan, tmp_path):
    inside = np.where(simulated_scan.image[:, None] != 0, simulated_scan.maps, 0)
    np.save(tmp_path / "true.npy", inside)
    np.save(tmp_path / "wrong.npy", inside[:, ::-1])
    own, true, wrong = nmse(scan), nmse(scan, maps=tmp_path / "true.npy"), nmse(scan, maps=tmp_path / "wrong.npy")
    assert true < own < wrong


def test_wrong_maps_are_called_bad(scan, simulated_scan, tmp_path):
    np.save(tmp_path / "true.npy", simulated_scan.maps)
    np.save(tmp_path / "wrong.npy", simulated_scan.maps[:, ::-1])
    good = reconstruct(load_scan(scan), method="sense", maps=tmp_path / "true.npy")
    bad = reconstruct(load_scan(scan), method="sense", maps=tmp_path / "wrong.npy")
    assert not [note for note in good.warnings if "coil maps" in note]
    assert [note for note in bad.warnings if "coil maps, middle slice: bad" in note and "coil order" in note]


def test_a_calibration_scan_of_another_matrix_gives_the_maps(scan, simulated_scan, tmp_path):
    small = center_crop(torch.from_numpy(simulated_scan.kspace), (30, 24)).numpy() * 5
    write_scan(tmp_path / "calibration.h5", small)
    by_itself, calibrated = nmse(scan), nmse(scan, calibration=tmp_path / "calibration.h5")
    assert calibrated < by_itself  # 24 lines against the few that R = 2.5 leaves
    one = tmp_path / "one.h5"
    write_scan(one, small[1:])
    result = reconstruct(load_scan(scan), method="zero-filled", calibration=load_scan(one))
    assert not [note for note in result.warnings if "coil maps, middle slice" in note]


def test_what_does_not_belong_together_is_refused(scan, simulated_scan, tmp_path):
    record = load_scan(scan)
    fewer = dataclasses.replace(record, kspace=record.kspace[:, :4].copy(), target=None)
    with pytest.raises(InputError, match="4 coils, scan has 6; use a scan with the same coils"):
        reconstruct(record, method="sense", calibration=fewer)
    three = dataclasses.replace(record, kspace=np.concatenate([record.kspace, record.kspace[:1]]), target=None)
    with pytest.raises(InputError, match="3 slices, scan has 2; give one slice, or as many"):
        reconstruct(record, method="sense", calibration=three)
    np.save(tmp_path / "maps.npy", simulated_scan.maps)
    with pytest.raises(InputError, match="--maps and --calibration both give coil maps"):
        reconstruct(record, method="sense", maps=tmp_path / "maps.npy", calibration=record)
    np.save(tmp_path / "sets.npy", np.stack([simulated_scan.maps] * 2, axis=1))
    with pytest.raises(InputError, match=r"sets\.npy: holds 2 sets of maps and reconstruct takes one"):
        reconstruct(record, method="sense", maps=tmp_path / "sets.npy")


@pytest.fixture
def folded(simulated_scan):
    """A scan of one slice whose field of view is narrower than the head, and its folded image."""
    wide = ifft2c(torch.from_numpy(simulated_scan.kspace[:1]))
    narrow = wide[..., 12:52].clone()
    narrow[..., -12:] += wide[..., :12]
    narrow[..., :12] += wide[..., 52:]
    kspace = fft2c(narrow).numpy()
    acquired, absent = np.ones((1, 40), bool), np.zeros(40, bool)
    return Scan("folded", kspace, acquired, absent, (64, 40), False), rss(narrow).numpy()


@pytest.mark.parametrize("method", ["sense", "l1-wavelet", "tv"])
def test_two_sets_of_maps_reconstruct_what_lies_on_one_another(folded, method):
    scan, truth = folded
    errors = []
    for sets in (1, 2):
        result = reconstruct(scan, method=method, acceleration=2, map_sets=sets, center_fraction=0.4)
        assert result.complex_images.shape == (1, 64, 40)
        errors.append(np.linalg.norm(result.volume - truth) / np.linalg.norm(truth))
    assert errors[1] < 0.9 * errors[0]


def test_two_sets_of_maps_are_refused_where_they_cannot_be(folded, tmp_path):
    scan, _ = folded
    for options, message in (
        ({"method": "rsd", "map_sets": 2}, "--map-sets 2: rsd takes one set of maps; use --method l1-wavelet"),
        ({"method": "sense", "map_sets": 3}, "--map-sets 3: must be 1 or 2"),
        ({"method": "sense", "map_sets": 2, "calibration": scan}, "leave --maps and --calibration out"),
    ):
        with pytest.raises(InputError, match=message):
            reconstruct(scan, **options)


def test_command_line(scan, simulated_scan, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "small.npy", simulated_scan.maps[..., :32])
    arguments = [str(scan), "--method", "sense", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["rsdmri", "reconstruct", *arguments, "--maps", str(tmp_path / "small.npy")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "small.npy" in error
    assert "64" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(sys, "argv", ["rsdmri", "reconstruct", *arguments, "--calibration", str(scan)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert (tmp_path / "out" / "scan.h5").is_file()
