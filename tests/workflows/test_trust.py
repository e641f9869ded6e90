"""How far a reconstruction is to be trusted: its band, its alarm, its domain, and that files and pictures say so."""

import json
import shutil
from dataclasses import replace

import h5py
import nibabel
import numpy as np
import pytest
import torch

from rsdmri.config import load_config
from rsdmri.data.dataset import MaskLaw, TrainingSlices
from rsdmri.data.manifest import read_manifest
from rsdmri.data.simulate_files import write_simulated
from rsdmri.errors import InputError
from rsdmri.metrics.uncertainty import coverage, object_mask
from rsdmri.physics.prepare import prepare_slice
from rsdmri.priors import Acquisitions, Prior, build_denoiser, load_prior, save_prior
from rsdmri.reconstruction.domain import DomainStatistics
from rsdmri.workflows.calibrate import calibrate, calibrate_prior
from rsdmri.workflows.domain import domain_facts
from rsdmri.workflows.reconstruct import load_scan, reconstruct
from rsdmri.workflows.reconstruct_files import _picture, reconstruct_files
from rsdmri.workflows.trust import LARGE, UndeterminedMaps

OPTIONS = {"acceleration": 2, "samples": 3, "trust": True}


@pytest.fixture(scope="module")
def scan(simulated):
    return load_scan(min(simulated.glob("*.h5")), True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_settings, scan):
    """Folder of a prior with an untrained denoiser whose draws differ."""
    config = load_config(None, list(tiny_settings))
    denoiser = build_denoiser(config, 0.3, torch.device("cpu"))
    for parameter in denoiser.network.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    mask = MaskLaw(acceleration=4).draw(32, "bank", 0)
    maps = prepare_slice(scan.kspace[0], mask, noise=None).maps
    folder = tmp_path_factory.mktemp("prior")
    save_prior(folder, denoiser, None, Acquisitions(maps[None], mask[None], 2), config, {})
    return folder


@pytest.fixture
def prior(folder) -> Prior:
    return load_prior(folder, "cpu")


def statistics(threshold: float) -> dict:
    found = DomainStatistics([0.0] * 27, np.eye(27).tolist(), threshold, threshold, 4, 20, 40, ["T2w"])
    return json.loads(json.dumps(found.to_dict()))


def test_the_band_is_ascending_and_around_the_draws(scan, prior):
    result = reconstruct(scan, prior=prior, **OPTIONS)
    low, middle, high = result.quantiles
    assert (low >= 0).all()
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert result.attrs["interval_factor"] == 1
    assert "there are 3" in result.attrs["quantile_estimator"]
    assert any("holds no statistics" in warning for warning in result.warnings)
    assert result.held_out is None
    assert result.alarm is None
    assert reconstruct(scan, prior=prior, **OPTIONS | {"samples": 1}).quantiles is None


def test_an_untrained_prior_is_found_out(scan, prior):
    plain, checked = (reconstruct(scan, prior=prior, held_out=share, **OPTIONS) for share in (None, 0.1))
    assert np.array_equal(checked.volume, plain.volume)  # the check changes nothing but the band
    assert checked.held_out.residual > checked.held_out.predicted
    assert checked.alarm is not None
    assert any(warning.startswith("ALARM") for warning in checked.warnings)
    for name in ("held_out_residual", "held_out_predicted", "held_out_positions", "held_out_seconds", "alarm"):
        assert name in checked.attrs
    if "held_out_factor" in checked.attrs:
        assert checked.attrs["interval_factor"] == checked.attrs["held_out_factor"]
        assert (checked.quantiles[2] >= plain.quantiles[2]).all()
    quiet, loud = (_picture(result) for result in (plain, checked))
    assert quiet != loud


def test_the_check_repeats_and_never_sees_what_it_holds_out(scan, prior):
    one, again = (reconstruct(scan, prior=prior, held_out=0.1, **OPTIONS).held_out for _ in range(2))
    assert one == again


def test_the_check_tells_what_the_samples_do_not_determine(scan):
    lines = np.isin(np.arange(32), [0, 1, 2, *range(14, 18), 29, 30, 31])  # gaps between the centre and the edges
    gap = replace(scan, mask=scan.mask & lines)
    options = {"method": "l1-wavelet"}
    found = reconstruct(gap, held_out=0.1, **options)
    assert found.undetermined.shape == found.volume.shape
    assert 0 <= found.undetermined.min() < found.undetermined.max() <= 1
    share = (found.undetermined > LARGE)[object_mask(found.volume)].mean()
    assert found.attrs["undetermined"] == pytest.approx(share)
    full = reconstruct(scan, method="l1-wavelet", held_out=0.1)
    assert full.attrs["undetermined"] < 0.02 < 0.1 < share
    assert reconstruct(gap, **options).undetermined is None

    maps = UndeterminedMaps(scan)
    maps.share[...] = found.undetermined
    maps.share[: len(scan.kspace) // 2] = 0.9
    attrs, (told,) = maps.judged(found.volume)
    assert attrs["undetermined"] > 0.5
    assert f"{100 * attrs['undetermined']:.0f} % of the object" in told
    maps.share[...] = 0.1
    assert maps.judged(found.volume) == ({"undetermined": 0.0}, ())
    assert maps.judged(np.zeros_like(found.volume)) == ({}, ())


def test_a_method_without_draws_has_a_residual_and_no_prediction(scan):
    found = reconstruct(scan, method="sense", held_out=0.2, acceleration=2)
    assert found.held_out.predicted is None
    assert found.held_out.residual > 1
    assert "held_out_predicted" not in found.attrs


def test_what_cannot_be_held_out_is_a_warning_and_a_wrong_share_an_error(scan):
    result = reconstruct(scan, method="zero-filled", held_out=0.1)
    assert result.held_out is None
    assert any("not checked: held_out" in warning for warning in result.warnings)
    with pytest.raises(InputError, match=r"held_out 0\.7"):
        reconstruct(scan, method="zero-filled", held_out=0.7)


def test_what_the_band_covers_needs_a_target_and_a_band(scan, prior):
    result = reconstruct(scan, prior=prior, **OPTIONS)
    low, _, high = result.quantiles
    inside = result.object_mask
    assert 0 < inside.mean() < 1
    assert result.coverage == np.mean(((low <= result.target) & (result.target <= high))[inside])
    assert reconstruct(scan, method="sense", acceleration=2).coverage is None
    whole = reconstruct(scan, method="sense")
    assert whole.coverage is None
    with pytest.raises(InputError, match="reconstructed from all of the data"):
        _ = whole.object_mask


def test_a_foreign_scan_falls_back_or_is_warned_of(scan, prior):
    prior.meta["domain"] = statistics(1e-3)
    fallen = reconstruct(scan, prior=prior, **OPTIONS)
    assert (fallen.attrs["method"], fallen.attrs["method_asked"]) == ("l1-wavelet", "rsd")
    assert fallen.std is None
    assert "prior_sha256" in fallen.attrs
    expected = reconstruct(scan, method="l1-wavelet", acceleration=2)
    assert np.array_equal(fallen.volume, expected.volume)
    assert any("l1-wavelet instead of rsd" in warning for warning in fallen.warnings)
    warned = reconstruct(scan, prior=prior, out_of_domain="warn", **OPTIONS)
    assert warned.attrs["method"] == "rsd"
    assert any("may look right and be wrong" in warning for warning in warned.warnings)
    with pytest.raises(InputError, match="expected fallback or warn"):
        reconstruct(scan, prior=prior, out_of_domain="hope", **OPTIONS)


def test_a_scan_of_the_prior_is_reconstructed_with_it(scan, prior):
    prior.meta["domain"] = statistics(1e9)
    home = replace(scan, acquisition="AXT2")
    result = reconstruct(home, prior=prior, **OPTIONS)
    assert result.attrs["method"] == "rsd"
    assert result.attrs["domain_distance"] > 0
    assert not any("statistics" in warning or "outside" in warning for warning in result.warnings)
    away = reconstruct(replace(scan, acquisition="AXT1"), prior=prior, **OPTIONS)
    assert away.attrs["out_of_domain"] == "it states contrast T1w, the training scans were T2w"


def test_a_calibration_set_is_written_beside_the_prior_and_used(scan, folder, prior, tmp_path):
    scans = [replace(scan, name=f"subject {number}") for number in range(9)]  # other masks
    made = calibrate(prior, scans, acceleration=2, samples=3, folder=folder)
    assert made.factor > 1
    assert made.scans == 9
    again = load_prior(folder, "cpu")
    result = reconstruct(scan, prior=again, **OPTIONS)
    (folder / "calibration.json").unlink()
    bare = reconstruct(scan, prior=prior, **OPTIONS)
    assert result.attrs["interval_factor"] == made.factor
    assert "calibration set of 9 scans" in result.attrs["interval_source"]
    inside = object_mask(result.target)
    before, after = (coverage(r.target, r.quantiles[0], r.quantiles[2], inside) for r in (bare, result))
    assert after > max(before, 0.8)
    assert not any("calibrated at" in warning for warning in result.warnings)
    faster = reconstruct(scan, prior=again, **OPTIONS | {"acceleration": 4})
    assert faster.attrs["interval_factor"] == made.factor
    assert any("calibrated at R 2, this scan has" in warning for warning in faster.warnings)
    assert not any("calibrated with" in warning for warning in (*result.warnings, *faster.warnings))
    even = reconstruct(scan, prior=again, mask="equispaced", **OPTIONS)
    assert any("with irregular lines, this scan has equispaced lines" in warning for warning in even.warnings)
    other = reconstruct(scan, prior=again, **OPTIONS | {"samples": 2})
    assert other.attrs["interval_factor"] == 1
    assert any("other draws (3, here 2)" in warning for warning in other.warnings)


def test_calibrating_a_folder_leaves_bad_scans_out_and_says_so(simulated, folder, tmp_path):
    files = []
    for number in range(9):
        files.append(tmp_path / f"subject{number}.h5")
        shutil.copy(min(simulated.glob("*.h5")), files[-1])
    (tmp_path / "text.h5").write_text("no scan")
    told, bad = [], []
    way = {"acceleration": 2, "samples": 2, "device": "cpu", "say": told.append}
    made = calibrate_prior(folder, [*files, tmp_path / "text.h5"], skip=bad.append, **way)
    assert json.loads((folder / "calibration.json").read_text())["scans"] == made.scans == 9
    assert f"{made.factor:.2f} times as wide" in told[0]
    assert len(bad) == 1
    assert "text.h5" in bad[0]
    before = (folder / "calibration.json").read_bytes()
    with pytest.raises(InputError, match=r"text\.h5"):
        calibrate_prior(folder, [*files, tmp_path / "text.h5"], **way)
    for wrong in ({"method": "sense"}, {"samples": 1}, {"level": 1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            calibrate_prior(folder, files, **way | wrong)
    assert (folder / "calibration.json").read_bytes() == before
    (folder / "calibration.json").unlink()


def test_a_foreign_scan_is_known_when_the_same_command_goes_on(simulated, folder, prior, tmp_path):
    """It came to another method and so to other files than those asked for."""
    prior.meta["domain"] = statistics(1e-3)
    options = {"prior": prior, "acceleration": 2, "samples": 2, "formats": ["nifti"]}
    files = sorted(simulated.glob("*.h5"))[:2]
    lines: list[str] = []
    first = reconstruct_files(files, tmp_path, say=lines.append, **options)
    assert [row["method"] for row in first] == ["l1-wavelet"] * 2
    again = reconstruct_files(files, tmp_path, say=lines.append, **options)
    assert [row.get("skipped") for row in again] == [1, 1]
    assert [row["paths"] for row in again] == [row["paths"] for row in first]


def test_files_hold_the_band(simulated, prior, tmp_path):
    source = min(simulated.glob("*.h5"))
    options = {"prior": prior, "acceleration": 2, "samples": 2, "device": "cpu", "say": lambda line: None}
    (row,) = reconstruct_files([source], tmp_path, formats=["h5,png,nifti-quantiles"], held_out=0.1, **options)
    with h5py.File(row["path"]) as file:
        low, middle, high = (file[f"quantile_{level}"][...] for level in ("05", "50", "95"))
        assert (low <= middle).all()
        assert (middle <= high).all()
        assert {"quantile_estimator", "interval_factor", "interval_source", "held_out_residual", "alarm"} <= set(
            file.attrs
        )
        assert file["undetermined"].shape == low.shape
        assert (
            file.attrs["undetermined"]
            == (file["undetermined"][...] > LARGE)[object_mask(file["reconstruction"])].mean()
        )
    maps = sorted(path.name for path in tmp_path.rglob("*_desc-q*.nii.gz"))
    assert [name.split("desc-")[1][:3] for name in maps] == ["q05", "q50", "q95"]
    sidecar = json.loads(next(tmp_path.rglob("*_desc-q95*.json")).read_text())
    assert "upper end of the band" in sidecar["Description"]
    assert "IntervalSource" in sidecar
    (unseen,) = tmp_path.rglob("*_desc-undetermined*.nii.gz")
    assert 0 <= nibabel.load(unseen).get_fdata().min() < nibabel.load(unseen).get_fdata().max() <= 1
    assert (
        "do not determine" in json.loads(next(tmp_path.rglob("*_desc-undetermined*.json")).read_text())["Description"]
    )


def test_training_tells_a_prior_its_domain(tmp_path):
    write_simulated(tmp_path, scans=12, slices=2, size=32, coils=4, noise=0.02, contrast="T2w", seed=4)
    entries = read_manifest(tmp_path)
    slices = TrainingSlices(entries, MaskLaw(acceleration=4))
    bank = Acquisitions(torch.ones(1, 4, 32, 32, dtype=torch.complex64), torch.ones(1, 1, 32, dtype=torch.bool), 2)
    lines: list[str] = []
    facts = domain_facts(slices, bank, lines.append)
    found = DomainStatistics.from_dict(json.loads(json.dumps(facts))["domain"])
    assert (found.scans, found.slices, found.contrasts, lines) == (12, 24, ["T2w"], [])
    assert found.noisier == []
    noisy = DomainStatistics.from_dict(domain_facts(slices, bank, lines.append, 0.2)["domain"])
    assert replace(noisy, noisier=[]) == found
    added = [np.sqrt(each.noise**2 - found.noise**2) / np.sqrt(2) for each in noisy.noisier]
    np.testing.assert_allclose(added, [0.05, 0.1, 0.2], rtol=0.2)
    few = TrainingSlices(entries[:3], MaskLaw(acceleration=4))
    assert domain_facts(few, bank, lines.append) == {}
    assert "3 training scans are too few" in lines[0]
    assert domain_facts(few, replace(bank, maps=None), lines.append) == {}
