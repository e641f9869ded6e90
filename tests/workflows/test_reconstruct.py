"""Reconstruction of whole scans and files: what is read, what comes out, and what is refused."""

import shutil
import sys

import h5py
import numpy as np
import pytest
import torch

import rsdmri
from rsdmri.config import load_config
from rsdmri.data.dataset import MaskLaw
from rsdmri.data.fastmri import read_scan
from rsdmri.data.fastmri_write import write_scan
from rsdmri.diffusion.amortised import PosteriorSampler
from rsdmri.errors import InputError
from rsdmri.evaluation import evaluate
from rsdmri.physics.fourier import ifft2c, rss
from rsdmri.physics.prepare import prepare_slice
from rsdmri.priors import Acquisitions, Prior, build_denoiser, load_prior, save_prior
from rsdmri.reconstruction.uncertainty import DrawSummary
from rsdmri.workflows import reconstruct_files as workflow
from rsdmri.workflows import slices
from rsdmri.workflows.reconstruct import (
    DRAWN,
    LEARNT,
    METHODS,
    load_scan,
    reconstruct,
    reference_images,
)
from rsdmri.workflows.reconstruct_files import reconstruct_files
from rsdmri.workflows.result import Reconstruction

FEW = {"adps": {"steps": 6, "guidance": "variance"}, "diffpir": {"steps": 4}}


@pytest.fixture(scope="module")
def files(simulated):
    """Two simulated scans of 2 slices, 4 coils, 32 x 32."""
    return sorted(simulated.glob("*.h5"))[:2]


@pytest.fixture(scope="module")
def scan(files):
    return load_scan(files[0])


@pytest.fixture(scope="module")
def prior(tmp_path_factory, tiny_settings, scan) -> Prior:
    """An untrained denoiser, read back from its folder."""
    config = load_config(None, list(tiny_settings))
    device = torch.device("cpu")
    denoiser = build_denoiser(config, 0.3, device)
    for parameter in denoiser.network.parameters():  # the last layer starts at zero: draws would not differ
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    mask = MaskLaw(acceleration=4).draw(32, "bank", 0)
    maps = prepare_slice(scan.kspace[0], mask, noise=None).maps
    folder = tmp_path_factory.mktemp("prior")
    save_prior(folder, denoiser, None, Acquisitions(maps[None], mask[None], 2), config, {})
    return load_prior(folder, "cpu")


def rewritten(source, target, change):
    """A copy of the scan file whose k-space, mask and attributes ``change(file)`` has edited."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        change(file)
    return target


def undersampled(source, target, mask, fill=0.0):
    """The file as a scanner with ``mask`` (1, x) would have written it; ``fill`` stands where nothing was acquired."""

    def change(file):
        file["kspace"][...] = np.where(mask, file["kspace"][...], fill)
        file["mask"] = mask[0].astype(np.uint8)
        del file["reconstruction_rss"]

    return rewritten(source, target, change)


def same(first: Reconstruction, second: Reconstruction) -> bool:
    return np.array_equal(first.complex_images, second.complex_images) and np.array_equal(first.volume, second.volume)


@pytest.mark.parametrize("method", METHODS)
def test_form_of_a_result(method, scan, prior):
    options = FEW.get(method)
    result = reconstruct(scan, method=method, prior=prior, acceleration=4, samples=3, seed=5, options=options)
    assert result.volume.shape == scan.target.shape
    assert result.volume.dtype == np.float32
    assert result.complex_images.shape == (2, 32, 32)
    assert result.complex_images.dtype == np.complex64
    assert (result.std is not None) == (method in DRAWN)
    if result.std is not None:
        assert result.std.shape == result.volume.shape
        assert 0 < float(result.std.max()) < float(result.volume.max())
    assert result.mask.shape == (1, 32)
    assert result.scale.shape == result.sigma_y.shape == (2,)
    np.testing.assert_allclose(result.scale * result.sigma_y, 1, rtol=1e-5)
    assert set(result.scores) == {"nmse", "nrmse", "psnr", "ssim"}
    assert result.scores["nmse"] < 0.5
    assert "reconstruction_rss" in result.scored
    attrs = result.attrs
    assert attrs["note"] == rsdmri.RESEARCH_ONLY
    assert (attrs["method"], attrs["seed"], attrs["acceleration_nominal"]) == (method, 5, 4.0)
    assert attrs["acceleration"] == pytest.approx(32 / result.mask.sum())
    assert np.array_equal(attrs["mask"].astype(bool), result.mask[0])
    assert ("prior_sha256" in attrs) == (method in LEARNT)
    if method in LEARNT:
        assert attrs["prior_sha256"] == prior.digest


def test_the_mask_is_the_one_of_the_law_and_the_same_for_all_slices(scan):
    result = reconstruct(scan, method="zero-filled", acceleration=4, seed=7)
    assert np.array_equal(result.mask, MaskLaw("random", 4, seed=7).draw(32, f"{scan.name}.h5", 0).numpy())
    other = reconstruct(scan, method="zero-filled", acceleration=4, seed=8)
    assert not np.array_equal(result.mask, other.mask)


@pytest.mark.parametrize("lines", [{"mask": "equispaced"}, {"center_fraction": 0.1}])
def test_lines_without_an_acceleration_are_refused_and_not_ignored(scan, lines):
    with pytest.raises(InputError, match=r"which lines --acceleration leaves; give it, too"):
        reconstruct(scan, method="sense", **lines)


@pytest.mark.parametrize("method", METHODS)
def test_a_prospective_scan_gives_what_the_retrospective_one_gave(method, files, prior, tmp_path):
    options = {"method": method, "prior": prior, "samples": 2, "options": FEW.get(method)}
    retrospective = reconstruct(files[0], acceleration=4, **options)
    file = undersampled(files[0], tmp_path / files[0].name, retrospective.mask)
    assert load_scan(file).prospective
    prospective = reconstruct(file, **options)
    assert same(prospective, retrospective)
    assert prospective.scores is None
    assert "undersampled when it was acquired" in prospective.scored
    assert "acceleration_nominal" not in prospective.attrs


@pytest.mark.parametrize("method", ["l1-wavelet", "rsd"])
def test_nan_where_nothing_was_acquired_changes_no_bit(method, files, prior, tmp_path):
    mask = MaskLaw(acceleration=4).draw(32, "nan", 0).numpy()
    clean = undersampled(files[0], tmp_path / "clean" / files[0].name, mask)
    poisoned = undersampled(files[0], tmp_path / "nan" / files[0].name, mask, fill=np.nan)
    options = {"method": method, "prior": prior, "samples": 2}
    assert same(reconstruct(clean, **options), reconstruct(poisoned, **options))


@pytest.mark.parametrize("method", ["sense", "rsd"])
def test_no_method_sees_what_the_mask_leaves_out(method, files, prior, tmp_path):
    honest = reconstruct(files[0], method=method, prior=prior, acceleration=4, samples=2)

    def change(file):
        file["kspace"][...] = np.where(honest.mask, file["kspace"][...], 1e3 * file["kspace"][...][..., ::-1])
        file["reconstruction_rss"][...] *= 50
        file.attrs["max"] = 1e9

    poisoned = reconstruct(
        rewritten(files[0], tmp_path / files[0].name, change), method=method, prior=prior, acceleration=4, samples=2
    )
    assert same(poisoned, honest)
    assert poisoned.scores != honest.scores


@pytest.mark.parametrize("method", METHODS)
def test_a_thousand_times_the_signal_gives_a_thousand_times_the_image(method, files, prior, tmp_path):
    def change(file):
        file["kspace"][...] *= 1000
        file["reconstruction_rss"][...] *= 1000

    loud = rewritten(files[0], tmp_path / files[0].name, change)
    options = {"method": method, "prior": prior, "acceleration": 4, "samples": 2, "options": FEW.get(method)}
    before, after = reconstruct(files[0], **options), reconstruct(loud, **options)
    top = float(before.volume.max())
    np.testing.assert_allclose(after.volume / 1000, before.volume, atol=2e-3 * top)
    np.testing.assert_allclose(after.complex_images, before.complex_images, atol=5e-3)
    assert after.scores["nmse"] == pytest.approx(before.scores["nmse"], rel=0.02)


@pytest.mark.parametrize("method", ["sense", "l1-wavelet", *DRAWN])
def test_the_size_of_a_batch_changes_nothing(method, scan, prior, monkeypatch):
    options = {"method": method, "prior": prior, "acceleration": 4, "samples": 2, "options": FEW.get(method)}
    together = reconstruct(scan, **options)
    monkeypatch.setattr(slices, "_BATCH_BYTES", 1)
    monkeypatch.setattr(slices, "_DRAW_BYTES", 1)
    batches = []
    alone = reconstruct(scan, **options, advance=batches.append)
    assert batches == [1, 1]
    np.testing.assert_allclose(alone.complex_images, together.complex_images, atol=1e-4)


def test_draws_follow_the_seed(scan, prior):
    one, again, other = (
        reconstruct(scan, method="rsd", prior=prior, samples=2, seed=seed, acceleration=1) for seed in (3, 3, 4)
    )
    assert same(one, again)
    assert not same(one, other)
    assert reconstruct(scan, method="rsd", prior=prior, samples=1).std is None


@pytest.mark.parametrize("method", [*DRAWN, "amortised", "refined"])
def test_a_draw_is_the_same_whatever_else_is_drawn(method, scan, prior, monkeypatch):
    stacks, options = [], FEW.get(method)
    if method in ("amortised", "refined"):
        levels = (0.1,) if method == "amortised" else (0.1, 0.05)
        prior.posterior = PosteriorSampler(prior.denoiser, levels, 0.05)
        method, options = "rsd", {"variant": "amortised"}

    def kept(draws):
        stacks.append(draws)
        return DrawSummary(draws.mean(0), None, None)

    monkeypatch.setattr(slices, "summarise", kept)
    options = {"method": method, "prior": prior, "acceleration": 4, "options": options}
    for samples in (1, 3):
        reconstruct(scan, samples=samples, **options)
    assert [tuple(stack.shape) for stack in stacks] == [(1, 32, 32)] * 2 + [(3, 32, 32)] * 2
    assert all(stack.dtype == torch.complex64 for stack in stacks)
    for few, many in zip(stacks[:2], stacks[2:], strict=True):
        torch.testing.assert_close(many[:1], few, rtol=1e-4, atol=1e-4)
        assert float((many[1] - many[0]).abs().max()) > 1e-3


def test_settings_of_a_method_reach_it_and_are_written_down(scan, prior):
    few, many = (
        reconstruct(scan, method="rsd", prior=prior, acceleration=4, samples=2, options={"levels": levels})
        for levels in ([0.1], [0.2, 0.1, 0.05])
    )
    assert not same(few, many)
    assert (few.attrs["evaluations"], many.attrs["evaluations"]) == (2, 6)
    assert '"levels":[0.2,0.1,0.05]' in many.attrs["settings"]
    strong = reconstruct(scan, method="sense", acceleration=4, options={"factor": 1000})
    assert strong.volume.mean() < reconstruct(scan, method="sense", acceleration=4).volume.mean()


def test_a_teacher_alone_has_no_latent(scan, prior):
    with pytest.raises(InputError, match="no one-step generator for variant latent"):
        reconstruct(scan, prior=prior, acceleration=4, options={"variant": "latent"})


def test_a_fully_sampled_scan_as_it_is(scan):
    result = reconstruct(scan, method="zero-filled")
    assert result.mask.all()
    assert result.scores is None
    assert "--acceleration" in result.scored
    inside = result.volume > 0
    ratio = result.volume[inside] / scan.target[inside]
    assert float(np.median(ratio)) == pytest.approx(1, abs=0.03)  # same units as the file


def test_scored_against_full_kspace_where_the_file_has_no_target(files, scan, tmp_path):
    def change(file):
        del file["reconstruction_rss"]

    file = rewritten(files[0], tmp_path / files[0].name, change)
    with_target = reconstruct(files[0], method="sense", acceleration=2)
    without = reconstruct(file, method="sense", acceleration=2)
    assert "full k-space" in without.scored
    assert without.scores["nmse"] == pytest.approx(with_target.scores["nmse"], rel=1e-4)
    np.testing.assert_allclose(without.target, rss(ifft2c(torch.from_numpy(scan.kspace))).numpy(), rtol=1e-4)


def test_an_empty_slice_gives_zeros_and_a_warning(files, tmp_path, prior):
    def change(file):
        file["kspace"][0] = 0

    file = rewritten(files[0], tmp_path / files[0].name, change)
    for method in ("sense", "rsd"):
        result = reconstruct(file, method=method, prior=prior, samples=2)
        assert not result.volume[0].any()
        assert result.volume[1].any()
        assert any("slices 0" in warning for warning in result.warnings)


def test_images_that_are_not_finite_are_refused(scan, prior, monkeypatch):
    monkeypatch.setattr(slices, "ambient_one_step", lambda p, measured, *_: torch.full_like(measured.blank, torch.nan))
    with pytest.raises(InputError, match=r"NaN or infinite values in slices 0, 1"):
        reconstruct(scan, method="ambient-one-step", prior=prior, acceleration=4)


def test_a_scan_unlike_the_training_set_is_reconstructed_with_a_warning(prior, tmp_path):
    generator = np.random.default_rng(0)
    kspace = (generator.normal(size=(1, 3, 24, 37)) + 1j * generator.normal(size=(1, 3, 24, 37))).astype(np.complex64)
    kspace[..., 8:16, 14:23] *= 40
    write_scan(tmp_path / "odd.h5", kspace)
    result = reconstruct(tmp_path / "odd.h5", method="rsd", prior=prior, samples=2)
    assert result.volume.shape == (1, 24, 37)
    assert np.isfinite(result.volume).all()
    assert any("trained on 32 x 32" in warning and "24 x 37" in warning for warning in result.warnings)
    assert any("acceleration 4" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"acceleration": 0.5}, "acceleration 0.5: expected 1"),
        ({"acceleration": 0}, "acceleration 0: expected 1"),
        ({"acceleration": float("nan")}, "acceleration nan"),
        ({"acceleration": float("inf")}, "acceleration inf"),
        ({"acceleration": -4}, "acceleration -4"),
        ({"acceleration": 12}, "coil maps need 4; use at most 4"),
        ({"acceleration": 4, "center_fraction": 0.5}, "fewer than the 16 ACS lines"),
        ({"acceleration": 4, "mask": "spiral"}, "mask family 'spiral'"),
        ({"method": "magic"}, "--method magic: expected one of rsd"),
        ({"samples": 0}, "--samples 0"),
        ({"options": {"factr": 3}}, "unknown key 'factr'; did you mean 'factor'?"),
        ({"options": {"iterations": 0}}, "iterations: input should be greater than or equal to 1, got 0"),
        ({"method": "rsd", "options": {"variant": "magic"}}, "expected one of proximal, latent, amortised"),
        ({"method": "adps", "options": {"trust": 1}}, "--set-method of adps: unknown key 'trust'"),
        ({"device": "abacus"}, "--device abacus"),
        ({"method": "rsd", "prior": "nowhere"}, "nowhere: no such prior"),
    ],
)
def test_arguments_that_cannot_be_used(options, words, scan):
    with pytest.raises(InputError) as caught:
        reconstruct(scan, **{"method": "sense", **options})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_undersampled_scan_is_not_undersampled_again(files, tmp_path):
    mask = MaskLaw(acceleration=4).draw(32, "again", 0).numpy()
    file = undersampled(files[0], tmp_path / "scan.h5", mask)
    achieved = f"R={32 / mask.sum():.2f}"
    with pytest.raises(InputError, match=f"already undersampled, {achieved}; leave --acceleration out"):
        reconstruct(file, method="sense", acceleration=4)


def test_reference_images_are_the_full_images_in_scaled_units(scan):
    law = MaskLaw(acceleration=4)
    images = reference_images(scan, law)
    assert images.shape == (2, 32, 32)
    assert 0.6 < float(np.quantile(np.abs(images), 0.99)) < 2
    full = reconstruct(scan, method="zero-filled")
    inside = (np.abs(images) > 0) & (full.volume > 0.2 * full.volume.max())
    correlation = np.corrcoef(np.abs(images)[inside], np.abs(full.complex_images)[inside])[0, 1]
    assert correlation > 0.95


# Files


@pytest.mark.parametrize("method", ["l1-wavelet", "rsd"])
def test_files_hold_what_was_promised(method, files, prior, tmp_path):
    lines: list[str] = []
    rows = reconstruct_files(
        files, tmp_path / "out", method=method, prior=prior, acceleration=4, samples=2, device="cpu", say=lines.append
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["reconstructions.jsonl", *(f.name for f in files), *(f.with_suffix(".png").name for f in files)]
    )
    for row, source in zip(rows, files, strict=True):
        expected = reconstruct(source, method=method, prior=prior, acceleration=4, samples=2)
        with h5py.File(row["path"], "r") as file:
            maps = {"std", "quantile_05", "quantile_50", "quantile_95"}
            assert set(file) == {"reconstruction"} | (maps if method in DRAWN else set())
            assert file["reconstruction"].dtype == np.float32
            assert np.array_equal(file["reconstruction"][...], expected.volume)
            attrs = dict(file.attrs)
        for name in ("method", "mask", "scale", "seed", "version", "note", "acceleration", "nmse", "seconds_per_slice"):
            assert name in attrs
        assert attrs["note"] == rsdmri.RESEARCH_ONLY
        assert ("prior_sha256" in attrs) == (method == "rsd")
        scored = evaluate(row["path"], source)["mean"]
        assert scored["ssim"] == pytest.approx(row["scores"]["ssim"], rel=1e-6)
        assert any(f"{row['scores']['psnr']:.4g}" in line for line in lines)
        assert row["path"].with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def bad_files(folder):
    (folder / "text.h5").write_text("not a scan")
    return [folder / "missing.h5", folder / "text.h5"]


def test_bad_files_do_not_stop_the_good_ones(files, tmp_path):
    bad = bad_files(tmp_path)
    rows = reconstruct_files(
        [bad[0], files[0], bad[1]], tmp_path / "out", method="sense", formats=["h5"], say=lambda line: None
    )
    assert [("error" in row) for row in rows] == [True, False, True]
    for row, path in zip((rows[0], rows[2]), bad, strict=True):
        assert str(path) in row["error"]
        assert "\n" not in row["error"]
    assert names(tmp_path / "out") == ["reconstructions.jsonl", files[0].name]


def test_a_single_bad_file_raises_and_leaves_nothing(files, tmp_path):
    for bad in bad_files(tmp_path):
        with pytest.raises(InputError, match=bad.name):
            reconstruct_files([bad], tmp_path / "out", method="sense", say=lambda line: None)
    with pytest.raises(InputError, match=f"{files[0].name}: acceleration 40: leaves"):
        reconstruct_files([files[0]], tmp_path / "out", method="sense", acceleration=40, say=lambda line: None)
    rows = reconstruct_files(bad_files(tmp_path), tmp_path / "out", method="sense", say=lambda line: None)
    assert all("error" in row for row in rows)
    assert not (tmp_path / "out").exists()


def test_a_figure_that_fails_leaves_no_half_of_a_result(files, tmp_path, monkeypatch):
    def fail(result):
        raise InputError("images: cannot be shown")

    monkeypatch.setattr(workflow, "_picture", fail)
    with pytest.raises(InputError, match="cannot be shown"):
        reconstruct_files([files[0]], tmp_path / "out", method="sense", say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_results_are_replaced_whole(files, tmp_path):
    for method in ("zero-filled", "sense"):
        reconstruct_files([files[0]], tmp_path, method=method, force=method == "sense", say=lambda line: None)
        with h5py.File(tmp_path / files[0].name, "r") as file:
            assert file.attrs["method"] == method
    assert len(list(tmp_path.iterdir())) == 2


def test_scans_that_would_share_or_be_an_output_are_refused(files, tmp_path):
    (tmp_path / "other").mkdir()
    copy = shutil.copy(files[0], tmp_path / "other" / files[0].name)
    with pytest.raises(InputError, match="would both be written to"):
        reconstruct_files([files[0], copy], tmp_path / "out", method="sense")
    before = (tmp_path / "other" / files[0].name).read_bytes()
    with pytest.raises(InputError, match="is the scan itself"):
        reconstruct_files([copy], tmp_path / "other", method="sense")
    assert (tmp_path / "other" / files[0].name).read_bytes() == before
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no scan given"):
        reconstruct_files([], tmp_path / "out", method="sense")


def test_an_output_that_cannot_be_a_folder(files, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="cannot be written"):
        reconstruct_files([files[0]], tmp_path / "taken" / "out", method="sense")


def test_command_line_goes_on_after_a_bad_file_and_exits_with_2(files, tmp_path, monkeypatch, capsys):
    from rsdmri.cli import main

    bad = bad_files(tmp_path)[1]
    out = tmp_path / "out"
    command = ["rsdmri", "reconstruct", str(bad), str(files[0]), "--method", "sense", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, "--acceleration", "2"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert [line for line in printed.err.splitlines() if str(bad) in line] == [
        line for line in printed.err.splitlines() if not line.startswith("Reconstructing 2 scans: ")
    ]
    assert "NMSE" in printed.out
    assert (out / files[0].name).is_file()


PERSONAL = ("DOE^JOHN", "19600101", "MRN-778899")


def test_nothing_personal_reaches_an_output(files, prior, tmp_path, capsys):
    name, birth, number = PERSONAL

    def change(file):
        file.attrs["patient_id"] = number
        file.attrs["acquisition"] = f"T2 {name}"
        file.attrs["comment"] = birth
        header = file["ismrmrd_header"][()].decode()
        subject = f"<subjectInformation><patientName>{name}</patientName><patientID>{number}</patientID>"
        subject += f"<patientBirthdate>{birth}</patientBirthdate></subjectInformation>"
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = np.bytes_(header.replace("<encoding>", subject + "<encoding>", 1).encode())

    file = rewritten(files[0], tmp_path / number / name / "scan.h5", change)
    assert number in file.read_bytes().decode("latin1")
    lines: list[str] = []
    out = tmp_path / "out"
    for method in ("sense", "rsd"):
        options = {"method": method, "prior": prior, "acceleration": 2, "samples": 2, "force": True}
        reconstruct_files([file], out, say=lines.append, **options)
        texts = [path.read_bytes().decode("latin1") for path in out.iterdir()] + lines + list(capsys.readouterr())
        assert len(texts) > 4
        for secret in PERSONAL:
            assert not any(secret in text for text in texts)


def test_public_names(files):
    assert rsdmri.load_scan(files[0]).name == files[0].stem
    assert rsdmri.reconstruct is reconstruct
    assert read_scan(files[0]).name in repr(reconstruct(files[0], method="sense"))
