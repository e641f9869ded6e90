"""The measures that pick a generator's checkpoint: what they notice, and that measurements are all they read."""

import json
import math

import numpy as np
import pytest
import torch
from references import random_maps
from runs import go, weights
from torch import Tensor
from torch.nn import functional

from rsdmri.config import load_config
from rsdmri.data.simulate_files import write_simulated
from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.physics import masks
from rsdmri.physics.fourier import fft2c, ifft2c
from rsdmri.physics.sense import sense
from rsdmri.runtime import numpy_generator, torch_generator
from rsdmri.training.proximal import ProximalCheck
from rsdmri.training.validation import energy_distance
from rsdmri.workflows.run_folder import read_metrics

SIDE, NOISE = 32, 0.02


def anatomy(count: int, *key: object) -> Tensor:
    """Textured blobs of varying size, (count, 32, 32) complex."""
    generator = torch_generator("anatomy", *key)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    radius, centre = torch.rand(count, 1, 1, generator=generator), torch.randn(count, 2, 1, 1, generator=generator)
    distance = torch.hypot(rows - 0.1 * centre[:, 0], columns - 0.1 * centre[:, 1])
    texture = torch.randn(count, SIDE, SIDE, generator=generator)
    return ((1 + 0.3 * texture) * torch.sigmoid(40 * (0.4 + 0.4 * radius - distance))).to(torch.complex64)


def batches(count: int, *key: object, positions: object = None) -> Batch:
    """Blobs seen by 3 coils at R = 2 with noise."""
    rng, generator = numpy_generator("maps", *key), torch_generator("mask", *key)
    maps = torch.stack([torch.as_tensor(random_maps(rng, 3, SIDE, SIDE), dtype=torch.complex64) for _ in range(count)])
    mask = torch.rand(count, 1, SIDE, generator=generator) < 0.4
    mask[..., 12:20] = True
    mask[..., 0] = mask.sum(-1) % 2 == 0
    shown = masks.further_mask(mask, 1, acs=8, generator=generator)
    operator = sense(maps, mask)
    truth = operator.forward(anatomy(count, *key))
    measured = torch.where(mask[:, None], truth + NOISE * unit_noise(truth, generator), 0)
    return Batch(measured, maps, mask, shown, torch.full((count,), NOISE))


def truthful(batch: Batch, generator: torch.Generator) -> Tensor:
    """Fresh images of the right distribution."""
    return anatomy(len(batch), generator.initial_seed())


def blurred(batch: Batch, generator: torch.Generator) -> Tensor:
    images = truthful(batch, generator).abs()[:, None]
    return functional.avg_pool2d(images, 5, 1, 2)[:, 0].to(torch.complex64)


def without_lines(batch: Batch, generator: torch.Generator) -> Tensor:
    """Right where the generator was shown lines, empty elsewhere; what a test with the same mask would not notice."""
    kspace = fft2c(truthful(batch, generator))
    return ifft2c(torch.where(batch.further_mask, kspace, 0))


def check(images: int = 64, batch: int = 32) -> ProximalCheck:
    return ProximalCheck(batches, 0, batch, images=images)


def test_right_images_are_nearer_than_blurred_ones_and_those_that_lack_lines():
    right, *wrong = (check()(images)["validation"] for images in (truthful, blurred, without_lines))
    assert min(wrong) > 1.7 * right
    assert check()(truthful)["validation"] == right


def test_the_error_is_the_spread_over_other_slices_and_noise():
    """Within a factor of two, from 12 sets of 64: a standard deviation from 12 values is uncertain by a fifth."""
    found = [ProximalCheck(batches, seed, 32, images=64)(blurred) for seed in range(12)]
    spread = float(np.std([each["validation"] for each in found], ddof=1))
    assert spread / 2 < float(np.mean([each["validation_error"] for each in found])) < 2 * spread


def test_the_spectrum_tells_how_much_power_is_missing():
    halved = check()(lambda batch, generator: 0.5 * truthful(batch, generator))
    assert check()(truthful)["spectrum"] < 0.1
    assert halved["spectrum"] == pytest.approx(0.602, abs=0.1)  # log10 of a quarter


def test_copies_of_training_slices_lie_at_the_noise():
    def copies(batch: Batch, generator: torch.Generator) -> Tensor:
        return anatomy(len(batch), 0, "proximal", "batch 0")

    drawn = batches(32, 0, "proximal", "batch 0")
    axes = (1, 2, 3)
    noise = (drawn.measured - drawn.operator.forward(copies(drawn, torch_generator("unused")))).abs().square().sum(axes)
    levels = (noise / drawn.measured.abs().square().sum(axes)).sqrt()
    found = check()(copies)["nearest"]
    assert levels.min() * 0.9 < found < levels.max() * 1.1
    assert check()(blurred)["nearest"] > 2 * found


def test_small_images_are_compared_by_their_energy_distance():
    def small(count: int, *key: object, positions: object = None) -> Batch:
        images = torch.randn(count, 8, 8, generator=torch_generator("small", *key))
        every = torch.ones(images.shape, dtype=torch.bool)
        return Batch(images, None, every, every, torch.zeros(count))

    def shifted(batch: Batch, generator: torch.Generator) -> Tensor:
        return torch.randn(batch.measured.shape, generator=generator) + 1

    drawn, generator = small(8, 3, "proximal", "batch 0"), torch_generator(3, "proximal", "batch 0")
    expected = energy_distance(shifted(drawn, generator), drawn.measured)
    found = ProximalCheck(small, 3, 8, images=8)(shifted)
    assert found["validation"] == pytest.approx(expected)
    assert found["spectrum"] > 0


def test_what_cannot_be_measured_is_left_out():
    def broken(batch: Batch, generator: torch.Generator) -> Tensor:
        return torch.full_like(batch.image, float("inf"))

    assert check()(broken) == {}
    assert ProximalCheck(batches, 0, 1, images=4)(truthful) == {}


def test_clean_images_are_reported_and_change_nothing(tmp_path, tiny_settings, simulated, finished_run):
    write_simulated(tmp_path / "clean", scans=3, slices=2, size=32, coils=2, noise=0.001, seed=50)
    settings = [*tiny_settings, "steps=6", f"data.path={simulated}", f"logging.reference={tmp_path / 'clean'}"]
    run = go(load_config(None, settings), tmp_path / "run")
    rows = read_metrics(run)
    assert [(row["stage"], row["step"]) for row in rows if "clean" in row] == [("prior", 3), ("prior", 6)]
    assert all(row["clean"] > 0 for row in rows if "clean" in row)
    same = [[row.get("validation") for row in read_metrics(folder)] for folder in (run, finished_run)]
    assert same[0] == same[1]
    for stage in ("teacher", "prior"):
        a, b = weights(run / stage), weights(finished_run / stage)
        assert all(torch.equal(a[key], b[key]) for key in a)


def chosen(rows: list[dict]) -> int:
    """Step of the latest checkpoint that was within its error of the lowest until then."""
    found, lowest = 0, math.inf
    for row in (row for row in rows if "validation" in row):
        if row["validation"] < lowest + row["validation_error"]:
            found = row["step"]
        lowest = min(lowest, row["validation"])
    return found


def test_a_prior_that_gets_no_better_ends_early_and_keeps_its_best_weights(tmp_path, tiny_settings, simulated):
    settings = [*tiny_settings, f"data.path={simulated}", "steps=24", "checkpoint_every=3", "prior.patience=2"]
    settings += ["prior.learning_rate=0.003", "prior.fake_learning_rate=1e-6"]  # gets worse with every step
    run = go(load_config(None, settings), tmp_path / "run")
    rows = [row for row in read_metrics(run) if row["stage"] == "prior"]
    values = {row["step"]: row["validation"] for row in rows if "validation" in row}
    best = min(values, key=values.__getitem__)
    assert rows[-1]["step"] == max(values) == best + 6 < 24
    facts = json.loads((run / "prior" / "config.json").read_text())
    assert facts["kept_step"] == chosen(rows)
    before = (run / "prior" / "config.json").stat().st_mtime_ns
    go(load_config(None, settings), run)  # finished: nothing is done again
    assert (run / "prior" / "config.json").stat().st_mtime_ns == before
    assert [row for row in read_metrics(run) if row["stage"] == "prior"] == rows
