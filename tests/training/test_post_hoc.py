"""Averages made afterwards: profiles by quadrature, snapshots on disk, closed forms, a directly tracked average."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rsdmri.errors import InputError
from rsdmri.runtime import torch_generator
from rsdmri.training.checkpoint import save_tensors
from rsdmri.training.ema import TRACKED, Averages, power_decay, power_gamma, update_average
from rsdmri.training.post_hoc import Profile, average_of, coefficients, combine, inner_products, profile_fit
from rsdmri.training.snapshots import (
    due,
    interval,
    most_snapshots,
    rewind_snapshots,
    save_snapshot,
    snapshot_files,
    step_of,
)


def density(profile: Profile, tau: np.ndarray) -> np.ndarray:
    gamma = power_gamma(profile.sigma_rel)
    return np.where(tau <= profile.step, (gamma + 1) * (tau / profile.step) ** gamma / profile.step, 0)


PROFILES = [Profile(3.0, 0.05), Profile(7.0, 0.05), Profile(7.0, 0.1), Profile(10.0, 0.2), Profile(6.5, 12**-0.5)]


def test_inner_products_are_the_integrals():
    edges = np.linspace(0, 10, 200_001)
    tau = (edges[1:] + edges[:-1]) / 2
    sampled = np.stack([density(profile, tau) for profile in PROFILES])
    expected = sampled @ sampled[:3].T * (edges[1] - edges[0])
    assert inner_products(PROFILES, PROFILES[:3]) == pytest.approx(expected, rel=1e-4)


def test_the_combination_is_the_constrained_least_squares_of_sampled_profiles():
    snapshots, wanted = [Profile(t, s) for t in (4.0, 6.0, 8.0, 10.0) for s in TRACKED], Profile(9.0, 0.13)
    edges = np.linspace(0, 10, 50_001)
    tau = (edges[1:] + edges[:-1]) / 2
    columns, target = np.stack([density(p, tau) for p in snapshots], 1), density(wanted, tau)
    rest = columns[:, :-1] - columns[:, -1:]  # the last coefficient is 1 less the others
    found = np.linalg.lstsq(rest, target - columns[:, -1], rcond=None)[0]
    expected = np.append(found, 1 - found.sum())
    x, error = coefficients(snapshots, wanted)
    assert x == pytest.approx(expected, abs=2e-3)
    assert x.sum() == pytest.approx(1, abs=1e-12)
    left = columns @ x - target
    assert error == pytest.approx(math.sqrt((left @ left) / (target @ target)), rel=1e-3)


def test_a_snapshot_that_is_wanted_is_taken_alone():
    snapshots = [Profile(t, s) for t in (100.0, 200.0, 300.0) for s in TRACKED]
    for index, wanted in enumerate(snapshots):
        x, error = coefficients(snapshots, wanted)
        assert x == pytest.approx(np.eye(6)[index], abs=1e-6)
        assert error < 1e-6


def test_nothing_to_combine_is_refused():
    with pytest.raises(ValueError, match="expected at least one, all after positive steps"):
        coefficients([], Profile(1, 0.1))
    with pytest.raises(ValueError, match="positive steps"):
        coefficients([Profile(0, 0.1)], Profile(1, 0.1))


class Weights(nn.Module):
    def __init__(self, value: Tensor):
        super().__init__()
        self.value = nn.Parameter(value)


def record(tmp_path, trajectory, most: int, *lengths: float) -> list[Tensor]:
    """Follow ``trajectory``, leave snapshots in ``tmp_path`` and return directly tracked averages of ``lengths``."""
    model = Weights(trajectory[0])
    averages = Averages(model, "exponential", 1, 100.0, tracked=True)
    direct = [Weights(trajectory[0].double()).requires_grad_(False) for _ in lengths]
    for step, value in enumerate(trajectory[1:], 1):
        model.value.data = value
        averages.update(model, step)
        for each, length in zip(direct, lengths, strict=True):
            update_average(each, Weights(value.double()), power_decay(step, length))
        if due(step, most) or step == len(trajectory) - 1:
            save_snapshot(tmp_path, "teacher", step, averages.snapshot(), most)
    return [each.value.detach() for each in direct]


def test_a_linear_trajectory_has_a_closed_form(tmp_path):
    """theta = a + b t averages to a + b t (gamma + 1) / (gamma + 2), half a step later for weights that rest."""
    steps, a, b = 1000, torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 0.1, -3.0])
    record(tmp_path, [a + b * t for t in range(steps + 1)], 16)
    files = snapshot_files(tmp_path, "teacher")
    for length in (0.04, 0.05, 0.07, 0.12, 0.15):
        found, error = average_of(files, Profile(steps, length))
        ratio = (power_gamma(length) + 1) / (power_gamma(length) + 2)
        torch.testing.assert_close(found["value"], a + b * (steps * ratio + 0.5), rtol=1e-3, atol=0)
        assert error < 0.02


# found: at most 5e-5 up to sigma_rel 0.12, 1.3e-4 at 0.15
@pytest.mark.parametrize("steps", [1000, 1600])
def test_weights_are_those_of_a_directly_tracked_average(tmp_path, steps):
    """A trajectory like training's: a fast start that settles, with noise of every step and of slow drifts."""
    generator, lengths = torch_generator("trajectory"), (0.06, 0.08, 0.12, 0.15)
    count = 400
    target, start = (torch.randn(count, generator=generator) for _ in range(2))
    noise = torch.randn(steps + 1, count, generator=generator)
    drift = torch.cumsum(noise, 0) * 0.01
    time = torch.arange(steps + 1.0)[:, None]
    values = target + (start - target) * torch.exp(-time / 200) + 0.05 * noise.roll(1, 0) + drift
    direct = record(tmp_path, list(values), 16, *lengths)
    files = snapshot_files(tmp_path, "teacher")
    assert len(files) <= 16
    for length, expected in zip(lengths, direct, strict=True):
        found, _ = average_of(files, Profile(steps, length))
        error = float((found["value"] - expected).norm() / expected.norm())
        assert error < 1e-3


def test_the_steps_of_earlier_snapshots_can_be_asked_for_and_no_others(tmp_path):
    record(tmp_path, [torch.tensor([1.0 + 0.01 * t, 2.0]) for t in range(401)], 16)
    files = snapshot_files(tmp_path, "teacher")
    found, error = average_of(files, Profile(288, 0.08))
    ratio = (power_gamma(0.08) + 1) / (power_gamma(0.08) + 2)
    assert found["value"].tolist() == pytest.approx([1 + 0.01 * (288 * ratio + 0.5), 2.0], rel=1e-3)
    assert error < 0.02
    with pytest.raises(InputError, match="and a step that has a snapshot"):
        average_of(files, Profile(300, 0.08))


def test_lengths_that_the_snapshots_cannot_give_are_refused(tmp_path):
    record(tmp_path, [torch.ones(2) for _ in range(41)], 16)
    files = snapshot_files(tmp_path, "teacher")
    assert [step_of(file) for file in files] == [32, 40]
    assert profile_fit(files, Profile(40, 0.28))[1] > 0.05
    with pytest.raises(InputError, match=r"--sigma-rel 0\.28 at step 40: 2 snapshots .* nearer to 0\.05 to 0\.10"):
        average_of(files, Profile(40, 0.28))


def test_files_of_another_kind_are_refused(tmp_path):
    save_tensors(tmp_path / "teacher-00000040.safetensors", {"power_050.x": torch.ones(1)}, {"kind": "training-state"})
    with pytest.raises(InputError, match=r"teacher-00000040.*no snapshot of averages"):
        average_of(snapshot_files(tmp_path, "teacher"), Profile(40, 0.05))


def test_sums_are_taken_in_float64_and_keep_their_type():
    parts = [(1e8, {"a": torch.ones(2)}), (1.0, {"a": torch.full((2,), 3.0)}), (-1e8, {"a": torch.ones(2)})]
    found = combine(parts)
    assert found["a"].dtype == torch.float32
    assert found["a"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("most", [1, 4, 5, 16])
def test_snapshots_are_bounded_and_follow_from_the_step_alone(tmp_path, most):
    """Whatever the length of the run: at most ``most``, evenly spaced; also when a run ends early and goes on."""
    tensors = {"power_050.x": torch.ones(1)}

    def kept(folder, last: int, stops: tuple[int, ...] = ()) -> list[int]:
        for step in range(1, last + 1):
            if due(step, most) or step == last or step in stops:
                save_snapshot(folder, "prior", step, tensors, most)
                assert len(snapshot_files(folder, "prior")) <= most
        return [step_of(file) for file in snapshot_files(folder, "prior")]

    for last in (20, 32, 100, 513, 1500):
        steps = kept(tmp_path / str(last), last)
        assert steps[-1] == last
        assert steps[:-1] == list(range(interval(last, most), last, interval(last, most)))
        assert kept(tmp_path / f"{last} in two", last, stops=(last // 2,)) == steps
    assert len(kept(tmp_path / "long", 1500)) > most // 2


def test_resuming_takes_later_ones_back(tmp_path):
    for stage in ("teacher", "prior"):
        for step in (32, 64, 96):
            save_snapshot(tmp_path, stage, step, {"power_050.x": torch.ones(1)}, 16)
    rewind_snapshots(tmp_path, "teacher", 64)
    assert [step_of(file) for file in snapshot_files(tmp_path, "teacher")] == [32, 64]
    assert [step_of(file) for file in snapshot_files(tmp_path, "prior")] == [32, 64, 96]


def test_disk_bounds_the_number():
    tensors = {"a": torch.ones(250_000)}  # 1 MB
    assert most_snapshots(16, 4.0, tensors) == 16
    assert most_snapshots(16, 0.0055, tensors) == 5
    assert most_snapshots(16, 0.0, tensors) == 0
