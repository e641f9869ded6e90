"""Every objective and corruption through `rsdmri train`: what it trains, what it refuses, what it never sees."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from rsdmri.config import Config, load_config
from rsdmri.data.dataset import MaskLaw
from rsdmri.data.fastmri_write import write_scan
from rsdmri.data.simulate import simulate_scan
from rsdmri.data.simulate_files import write_simulated
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.errors import InputError
from rsdmri.physics.prepare import PreparedSlice
from rsdmri.physics.sense import sense
from rsdmri.priors import load_prior
from rsdmri.runtime import torch_generator
from rsdmri.training.checkpoint import load_tensors
from rsdmri.workflows import sources
from rsdmri.workflows.plan import open_slices
from rsdmri.workflows.reconstruct import reconstruct
from rsdmri.workflows.run_folder import read_metrics
from rsdmri.workflows.sources import CorruptedMagnitude, ImagesOfKspace, ImageSource
from rsdmri.workflows.train import train

CPU = torch.device("cpu")
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
FULL = "acquisition.acceleration=1"
KSPACE = {
    "ambient": [],
    "fourier-ambient": ["teacher.objective=fourier-ambient"],
    "fourier-ambient, consistent": ["teacher.objective=fourier-ambient", "teacher.consistency=0.1"],
    "edm, zero-filled": ["teacher.objective=edm"],
    "edm, L1": ["teacher.objective=edm", "teacher.images=l1-wavelet"],
    "edm, complete": ["teacher.objective=edm", FULL, "acquisition.center_fraction=0.125"],
    "edm, grid": ["teacher.objective=edm", "acquisition.mask=equispaced_fraction"],
    "ambient-tweedie": ["teacher.objective=ambient-tweedie", FULL],
    "ambient-tweedie, consistent": ["teacher.objective=ambient-tweedie", FULL, "teacher.consistency=0.1"],
}
IMAGES = {
    "denoising": ["corruption.kind=denoising", "corruption.noise=0.2"],
    "denoising, ignored": ["corruption.kind=denoising", "corruption.noise=0.2", "teacher.objective=edm"],
    "denoising, none": ["corruption.kind=denoising"],
    "inpainting": ["corruption.kind=inpainting"],
    "inpainting, noise": ["corruption.kind=inpainting", "corruption.noise=0.1", "teacher.consistency=0.1"],
    "inpainting, ignored": ["corruption.kind=inpainting", "teacher.objective=edm"],
    "blur": ["corruption.kind=blur"],
    "blur, noise": ["corruption.kind=blur", "corruption.noise=0.1"],
    "super-resolution": ["corruption.kind=super-resolution"],
    "super-resolution, noise": ["corruption.kind=super-resolution", "corruption.noise=0.1"],
}
LEVELS = {"denoising": 0.2, "inpainting, noise": 0.1 * 0.05, "blur, noise": 0.1, "super-resolution, noise": 0.1}


@pytest.fixture(scope="module")
def magnitudes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training scans of 2 slices, 32 x 32, one coil, no noise."""
    folder = tmp_path_factory.mktemp("magnitudes")
    write_simulated(folder, scans=4, slices=2, size=32, coils=1, noise=0.0, seed=3)
    return folder


def quiet(line: str) -> None:
    del line


def run(config: Config, out: Path, stage: str = "teacher") -> Path:
    return train(config, out, stage=stage, device="cpu", say=quiet)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_tensors(folder / "teacher" / "model.safetensors")[0]


def trained(config: Config, out: Path):
    prior = load_prior(run(config, out), device="cpu")
    images = prior.sample(3, teacher=True, steps=2)
    assert bool(torch.isfinite(images.abs()).all())
    assert float(images.abs().max()) > 0
    assert f"- objective: {config.objective}\n" in (out / "teacher" / "README.md").read_text()
    assert ("consistency" in read_metrics(out)[-1]) == (config.teacher.consistency > 0)
    return prior, images


@pytest.mark.parametrize("name", KSPACE)
def test_teachers_of_kspace_train_and_sample(tmp_path, tiny_settings, simulated, name):
    config = load_config(None, [*tiny_settings, "steps=2", f"data.path={simulated}", *KSPACE[name]])
    prior, images = trained(config, tmp_path / "run")
    assert (tuple(images.shape), images.dtype) == ((3, 32, 32), torch.complex64)
    assert (prior.bank.maps is not None) == ("ambient" in name and "tweedie" not in name)
    assert prior.bank.coil_noise == ("fourier" in name)
    noisy = "fourier" in name or "tweedie" in name
    assert (prior.bank.sigma_y > 0) == noisy
    assert not noisy or 0.002 < prior.bank.sigma_y * (20 if "consistent" in name else 1) < 0.1
    assert 0.2 < float(prior.denoiser.sigma_data) < 0.5


@pytest.mark.parametrize("name", IMAGES)
def test_teachers_of_images_train_and_sample(tmp_path, tiny_settings, magnitudes, name):
    config = load_config(None, [*tiny_settings, "steps=2", f"data.path={magnitudes}", FULL, *IMAGES[name]])
    prior, images = trained(config, tmp_path / "run")
    size = 16 if "super" in name else 32
    assert (tuple(images.shape), images.dtype) == ((3, size, size), torch.float32)
    assert prior.bank.maps is None
    assert prior.bank.sigma_y == pytest.approx(LEVELS.get(name, 0.0))
    hidden = name in ("inpainting", "inpainting, noise")
    assert float(prior.bank.mask.float().mean()) == pytest.approx(0.4 if hidden else 1.0, abs=0.05)
    assert prior.bank.keep == (0.9 if hidden else 1.0)


DISTILLED = (
    "fourier-ambient",
    "edm, L1",
    "ambient-tweedie",
    "inpainting, noise",
    "denoising",
    "blur",
    "super-resolution",
)


@pytest.mark.parametrize("name", DISTILLED)
def test_every_kind_of_teacher_is_distilled(tmp_path, tiny_settings, simulated, magnitudes, name):
    """The generator's images have the size of clean ones, also where the teacher's are smaller."""
    kspace = [f"data.path={simulated}", *KSPACE.get(name, [])]
    data = kspace if name in KSPACE else [f"data.path={magnitudes}", FULL, *IMAGES[name]]
    out = run(load_config(None, [*tiny_settings, "steps=2", *data]), tmp_path / "run", "all")
    images = load_prior(out, device="cpu").sample(2)
    assert bool(torch.isfinite(images.abs()).all())
    assert (tuple(images.shape), images.is_complex()) == ((2, 32, 32), name in KSPACE)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.objective=ambient-tweedie"], r"fully sampled scans, but .* 4; .*--acceleration 1, or .*fourier-"),
        (["corruption.kind=blur"], r"corruption.kind blur needs fully sampled scans, but .* is 4; .*--acceleration 1$"),
        (["corruption.noise=0.1"], r"corruption.noise acts on images; set simulate.noise"),
        (["corruption.kind=blur", FULL, "teacher.objective=ambient-tweedie"], "needs corruption.noise above 0"),
        (["teacher.images=l1-wavelet"], "teacher.images l1-wavelet is for teacher.objective edm on k-space"),
        (["teacher.images=l1-wavelet", "corruption.kind=blur", FULL], "is for teacher.objective edm on k-space"),
        (["teacher.consistency=0.1"], r"known noise, which ambient does not know here; use teacher.objective fourier"),
        (["teacher.consistency=0.1", "teacher.objective=edm"], "which edm does not know"),
        (["teacher.consistency=0.1", "corruption.kind=inpainting", FULL], "set corruption.noise, or leave it at 0"),
        (["acquisition.mask=equispaced_fraction"], "train with --set acquisition.mask=random"),
        (["teacher.objective=fourier-ambient", "acquisition.mask=magic"], "train with --set acquisition.mask=random"),
        (["corruption.kind=super-resolution", FULL, "corruption.factor=3"], "crop or pad the image to 30 x 30"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path, tiny_settings, simulated, overrides, message
):
    config = load_config(None, [*tiny_settings, "steps=2", f"data.path={simulated}", *overrides])
    for dry_run in (False, True):
        if dry_run and "factor" in overrides[-1]:
            continue  # a plan reads no image
        with pytest.raises(InputError, match=message):
            train(config, tmp_path / "run", stage="teacher", device="cpu", dry_run=dry_run, say=quiet)
        assert list(tmp_path.iterdir()) == []


@pytest.fixture
def prospective(tmp_path) -> Path:
    """Two undersampled scans with one mask."""
    folder = tmp_path / "scans"
    folder.mkdir()
    mask = np.zeros(32, bool)
    mask[::3] = mask[12:20] = True
    for number in range(2):
        scan = simulate_scan(number, slices=1, size=32, coils=2, noise=0.02, seed=5)
        write_scan(folder / f"scan{number}.h5", np.where(mask, scan.kspace, 0), mask=mask)
    return folder


@pytest.mark.parametrize("objective", ["ambient", "fourier-ambient"])
def test_lines_that_no_scan_acquired_are_refused_where_they_would_have_to_be_learnt(
    tmp_path, tiny_settings, prospective, objective
):
    settings = [*tiny_settings, "steps=1", f"data.path={prospective}"]
    with pytest.raises(InputError, match=r"lines .* of 32 are acquired in no scan \(all 2 scans share one mask\)"):
        run(load_config(None, [*settings, f"teacher.objective={objective}"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(load_config(None, [*settings, "teacher.objective=edm"]), tmp_path / "edm")


@pytest.mark.parametrize("overrides", [["teacher.objective=ambient-tweedie"], ["corruption.kind=denoising"]])
def test_undersampled_files_are_refused_where_images_are_needed(tmp_path, tiny_settings, prospective, overrides):
    config = load_config(None, [*tiny_settings, f"data.path={prospective}", FULL, *overrides])
    with pytest.raises(InputError, match="needs fully sampled scans, but some scans have lines that were not"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_priors_without_coils_reconstruct_nothing(tmp_path, tiny_settings, simulated):
    config = load_config(None, [*tiny_settings, "steps=1", f"data.path={simulated}", *KSPACE["edm, zero-filled"]])
    out, scan = run(config, tmp_path / "run"), simulated / "sim00000.h5"
    for prior in (out, load_prior(out, device="cpu")):
        for method in ("rsd", "ambient-one-step"):
            with pytest.raises(
                InputError, match=r"--prior: trained on images without coil maps \(edm, fourier\), .*l1-"
            ):
                reconstruct(scan, method=method, prior=prior, trust=True, device="cpu")


def image_source(tiny_settings, magnitudes, *overrides: str) -> ImageSource:
    config = load_config(None, [*tiny_settings, f"data.path={magnitudes}", FULL, *overrides])
    slices = open_slices(config, magnitudes)
    return ImageSource(config, slices, CPU, CorruptedMagnitude(config, slices))


def test_corruptions_are_fixed_by_seed_file_and_slice_whatever_the_epoch(tiny_settings, magnitudes):
    settings = ["corruption.kind=inpainting", "corruption.noise=0.1"]
    source = image_source(tiny_settings, magnitudes, *settings)
    first = [source.measure(item) for item in range(len(source))]
    batches = [source.batches(4, 0, "teacher", step) for step in range(6)]
    for batch in batches:
        for image, mask in zip(batch.measured, batch.mask, strict=True):
            assert any(torch.equal(image, known.image) and torch.equal(mask, known.mask) for known in first)
        assert bool((batch.measured[~batch.mask] == 0).all())
        assert not bool((batch.further_mask & ~batch.mask).any())
    assert len({batch.further_mask.numpy().tobytes() for batch in batches}) == len(batches)
    shown = torch.stack([batch.further_mask.sum() / batch.mask.sum() for batch in batches]).mean()
    assert float(shown) == pytest.approx(0.9, abs=0.02)
    assert len({known.mask.numpy().tobytes() for known in first}) == len(first)
    again = image_source(tiny_settings, magnitudes, *settings)
    assert all(torch.equal(again.measure(i).image, known.image) for i, known in enumerate(first))
    other = image_source(tiny_settings, magnitudes, *settings, "seed=1")
    assert not any(torch.equal(other.measure(i).mask, known.mask) for i, known in enumerate(first))


def test_what_a_corruption_removed_never_reaches_training(tmp_path, tiny_settings, magnitudes, monkeypatch):
    overrides = ["corruption.kind=inpainting", "corruption.noise=0.1", "steps=3"]
    config = load_config(None, [*tiny_settings, f"data.path={magnitudes}", FULL, *overrides])
    source = image_source(tiny_settings, magnitudes, *overrides)
    masks = [source.measure(item).mask for item in range(len(source))]
    run(config, tmp_path / "clean")
    clean = CorruptedMagnitude.clean
    spoilt = lambda self, item: torch.where(masks[item], clean(self, item), torch.nan)  # noqa: E731
    monkeypatch.setattr(CorruptedMagnitude, "clean", spoilt)
    run(config, tmp_path / "poisoned")
    left, right = weights(tmp_path / "clean"), weights(tmp_path / "poisoned")
    assert [key for key in left if not torch.equal(left[key], right[key])] == []
    monkeypatch.setattr(CorruptedMagnitude, "clean", lambda self, item: 1.001 * clean(self, item))
    run(config, tmp_path / "other")
    right = weights(tmp_path / "other")
    assert [key for key in left if not torch.equal(left[key], right[key])] != []


def test_noise_of_coil_combined_images_is_white_where_no_coil_sees(tiny_settings):
    """Tweedie's formula holds for white noise; A^H y has none outside the maps."""
    count, sigma_y = 700, 0.4
    generator = torch_generator("white")
    maps = unit_noise(torch.empty(2, 4, 5, dtype=torch.complex64), generator)
    maps = maps / maps.abs().square().sum(0).sqrt()
    maps[:, 1, 1:3] = 0
    mask = torch.ones(1, 5, dtype=torch.bool)
    noise = sigma_y / math.sqrt(2) * unit_noise(torch.empty(count, 2, 4, 5, dtype=torch.complex64), generator)
    x = torch.where((maps != 0).any(0), 1.0 + 0.5j, 0)

    class Slices(list):
        def __init__(self, items):
            super().__init__(items)
            self.slices = [SimpleNamespace(path=Path("a.h5"), index=index) for index in range(count)]

    kspace = sense(maps, mask).forward(x)
    slices = Slices(PreparedSlice(kspace + n, mask, maps, 1.0, sigma_y, torch.ones(4, 5)) for n in noise)
    settings = ["teacher.objective=ambient-tweedie", FULL]
    measure = ImagesOfKspace(load_config(None, [*tiny_settings, *settings]), slices)
    found = [measure(item) for item in range(count)]
    assert found[0].sigma_y == pytest.approx(sigma_y / math.sqrt(2))
    rest = torch.stack([f.image for f in found]).reshape(count, 20) - x.reshape(20)
    covariance = rest.mT @ rest.conj() / count
    torch.testing.assert_close(covariance, (sigma_y**2 * torch.eye(20)).to(covariance), atol=0.2 * sigma_y**2, rtol=0)
    at_face_value = ImagesOfKspace(load_config(None, [*tiny_settings, "teacher.objective=edm"]), slices)(0)
    assert at_face_value.sigma_y == 0
    assert bool((at_face_value.image[1, 1:3] == 0).all())


def test_lines_that_scans_never_have_are_no_gap_for_corruptions_but_are_for_known_noise(tiny_settings):
    mask, absent = torch.ones(1, 32, dtype=torch.bool), np.zeros(32, bool)
    mask[0, :3] = False
    absent[:3] = True

    def opened(*overrides: str):
        slices = SimpleNamespace(slices=[SimpleNamespace(mask=mask, file=SimpleNamespace(absent=absent))])
        return sources.open_source(load_config(None, [*tiny_settings, FULL, *overrides]), slices, CPU)

    assert isinstance(opened("corruption.kind=blur"), ImageSource)
    with pytest.raises(InputError, match="ambient-tweedie needs fully sampled scans"):
        opened("teacher.objective=ambient-tweedie")


@pytest.mark.parametrize("recipe", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_loads_and_plans(tmp_path, simulated, recipe):
    config = load_config(recipe, [f"data.path={simulated}"])
    stage = "all" if config.objective in ("ambient", "fourier-ambient") else "teacher"
    lines: list[str] = []
    train(config, tmp_path / "run", stage=stage, device="cpu", dry_run=True, say=lines.append)
    assert any(line.startswith(f"objective: {config.objective};") for line in lines)
    corrupted = [line for line in lines if line.startswith(f"corruption: {config.corruption.kind}, noise ")]
    assert len(corrupted) == (config.corruption.kind != "fourier")
    assert any("the further mask drops" in line for line in lines) == config.trains_on_kspace
    assert list(tmp_path.iterdir()) == []


def test_recipes_of_one_group_differ_in_what_they_are_named_after():
    groups = [("teacher-r4-", 5, {"acquisition", "teacher"}), ("", 6, {"corruption"})]
    named = {path.stem: load_config(path).to_dict() for path in RECIPES}
    low = named["super-resolution-2"]
    low["simulate"]["size"] //= low["corruption"]["factor"]  # so that its teacher works at the size of the others
    chosen = [{n: c for n, c in named.items() if n.startswith("teacher-r4-")}]
    chosen.append({n: c for n, c in named.items() if c["corruption"]["kind"] != "fourier"})
    for (_, count, free), group in zip(groups, chosen, strict=True):
        assert len(group) == count
        rest = {json.dumps({k: v for k, v in c.items() if k not in free}, sort_keys=True) for c in group.values()}
        assert len(rest) == 1
    complete = named["teacher-r4-edm-full"]
    quarter = MaskLaw(acceleration=4.0).fraction(complete["simulate"]["size"])
    assert complete["acquisition"]["center_fraction"] == quarter
