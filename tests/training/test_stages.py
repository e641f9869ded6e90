"""Stages and loop: rates, clipping, a step that depends on its number alone, state that goes on exactly."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from references import random_maps
from torch import Tensor

from rsdmri.config import Config, load_config
from rsdmri.diffusion.batch import Batch
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.physics.sense import sense
from rsdmri.priors import build_denoiser
from rsdmri.runtime import numpy_generator, torch_generator
from rsdmri.training.checkpoint import latest_checkpoint, save_checkpoint
from rsdmri.training.loop import Schedule, TrainingDivergedError, run_stage
from rsdmri.training.prior import PriorStage
from rsdmri.training.shards import Shards
from rsdmri.training.stage import adam, apply_gradients, compiled, learning_rate, load_moments, moments
from rsdmri.training.teacher import TeacherStage

CPU = torch.device("cpu")


def config(*overrides: str) -> Config:
    tiny = ["network.channels=[8,16]", "teacher.batch=5", "prior.batch=5", "teacher.learning_rate=1e-3"]
    fast = ["prior.learning_rate=1e-3", "prior.fake_learning_rate=1e-3", "teacher.warmup=3"]
    return load_config(None, [*tiny, *fast, *overrides])


def batches(count: int, *key: object, positions: Sequence[int] | None = None) -> Batch:
    """Random slices of 9 x 10 with 2 coils, determined by ``key``."""
    rng = numpy_generator("slices", *key)
    maps = torch.as_tensor(np.stack([random_maps(rng, 2, 9, 10) for _ in range(count)]), dtype=torch.complex64)
    mask = torch.as_tensor(rng.uniform(size=(count, 1, 10)) < 0.7)
    mask[..., 3:7] = True
    shown = masks.further_mask(mask, 1, acs=4, generator=torch_generator("further", *key))
    images = torch.as_tensor(rng.normal(size=(count, 9, 10)) + 1j * rng.normal(size=(count, 9, 10)))
    own = list(range(count) if positions is None else positions)
    measured = sense(maps, mask).forward(images.to(torch.complex64))
    return Batch(measured[own], maps[own], mask[own], shown[own], torch.zeros(len(own)))


def build(name: str, settings: Config, workers: int = 2) -> TeacherStage | PriorStage:
    denoiser, shards = build_denoiser(settings, 0.5, CPU), Shards(workers, CPU)
    if name == "teacher":
        return TeacherStage(settings, denoiser, batches, shards)
    generator = torch_generator("a teacher that has something to say")
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return PriorStage(settings, denoiser, batches, shards)


def copied(stage: TeacherStage | PriorStage) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in stage.state().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


def test_learning_rate_warms_up_stays_and_falls_to_two_percent():
    rates = [learning_rate(1.0, i, i / 100, warmup=10, decay_from=0.6) for i in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:61] == [1.0] * 51
    assert rates[80] == pytest.approx(0.5)
    assert rates[98] == pytest.approx(0.05)
    assert rates[100] == 0.02
    assert learning_rate(3.0, 0, 0.0, warmup=0, decay_from=1.0) == 3.0
    assert learning_rate(3.0, 5, 1.0, warmup=0, decay_from=1.0) == 3.0


@pytest.mark.parametrize(("clip", "factor"), [(1.0, 0.2), (10.0, 1.0), (float("inf"), 1.0)])
def test_gradients_are_clipped_together(clip, factor):
    parameters = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
    optimiser = torch.optim.SGD(parameters, lr=99.0)
    norm = apply_gradients(optimiser, parameters, [torch.tensor([0.0, 3.0]), torch.tensor([4.0])], 0.5, clip)
    assert norm == 5.0
    assert parameters[0].tolist() == pytest.approx([0, -1.5 * factor], rel=1e-5)
    assert parameters[1].tolist() == pytest.approx([-2 * factor], rel=1e-5)
    assert parameters[0].grad is None


@pytest.mark.parametrize("dropout", [0, 0.3])
@pytest.mark.parametrize("name", ["teacher", "prior"])
def test_a_stage_goes_on_exactly_from_its_file(tmp_path, name, dropout):
    settings = config(f"network.dropout={dropout}")
    straight = build(name, settings)
    for i in range(3):
        straight.step(i, i / 6)
    save_checkpoint(tmp_path, name, 3, straight.state(), {})
    resumed = build(name, settings)
    resumed.load_state(latest_checkpoint(tmp_path, name).tensors)
    assert_same(copied(straight), copied(resumed))
    for i in range(3, 6):
        assert straight.step(i, i / 6) == resumed.step(i, i / 6)
    assert_same(copied(straight), copied(resumed))


@pytest.mark.parametrize("name", ["teacher", "prior"])
def test_dropout_is_the_same_however_the_batch_is_shared(name):
    """Five items in one, two and three shares: equal but for the order of sums, and not what no dropout gives."""
    found = []
    for workers, dropout in ((1, 0.3), (2, 0.3), (3, 0.3), (1, 0)):
        stage = build(name, config(f"network.dropout={dropout}"), workers)
        generator = torch_generator("weights")  # at first the last convolution of a block is 0 and lets nothing through
        with torch.no_grad():
            for parameter in stage.parameters if name == "teacher" else stage._of_fake:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        found.append(stage.step(0, 0.0)["loss" if name == "teacher" else "fake_loss"])
    assert found[1:3] == pytest.approx([found[0]] * 2, rel=1e-5)
    assert abs(found[3] / found[0] - 1) > 1e-3


@pytest.mark.parametrize("name", ["teacher", "prior"])
def test_gradients_of_single_items_name_the_one_that_is_off(name):
    def exploding(count: int, *key: object, positions: Sequence[int] | None = None) -> Batch:
        batch = batches(count, *key, positions=positions)
        (batch.measured if name == "teacher" else batch.maps)[3] *= math.nan
        return batch

    stage = build(name, config())
    before = copied(stage)
    norms = stage.item_norms(1)
    assert len(norms) == (5 if name == "teacher" else 10)
    assert all(math.isfinite(norm) for norm in norms)
    if name == "teacher":
        mean = torch.stack([norm * torch.ones(()) for norm in norms]).mean()
        assert stage.step(1, 0.0)["gradient"] <= float(mean) * (1 + 1e-5)  # of a mean of gradients
        stage.load_state(before)
    stage.batches = exploding
    assert [k for k, norm in enumerate(stage.item_norms(1)) if not math.isfinite(norm)] == [3]
    assert_same(before, copied(stage))


@pytest.mark.parametrize("dropout", [0, 0.3])
@pytest.mark.parametrize("name", ["teacher", "prior"])
def test_a_step_neither_reads_nor_moves_the_global_random_state(name, dropout):
    first, second = (build(name, config(f"network.dropout={dropout}")) for _ in range(2))
    state = torch.get_rng_state()
    metrics = first.step(0, 0.0)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.rand(13)
        assert second.step(0, 0.0) == metrics
    assert_same(copied(first), copied(second))


@pytest.mark.parametrize("name", ["teacher", "prior"])
def test_seed_and_step_number_decide_what_is_drawn(name):
    key = "loss" if name == "teacher" else "fake_loss"

    def loss(*overrides: str, step: int = 0) -> float:
        return build(name, config(*overrides)).step(step, 0.0)[key]

    assert loss() == loss()
    assert len({loss(), loss("seed=1"), loss(step=1), loss(f"{name}.batch=6")}) == 4


def test_every_part_of_the_teacher_moves_and_its_loss_falls():
    stage = build("teacher", config("teacher.warmup=0", "teacher.learning_rate=2e-3"))
    before = copied(stage)
    losses = [stage.step(i, 0.0)["loss"] for i in range(40)]
    after = copied(stage)
    still = [k for k in before if torch.equal(before[k], after[k]) and not k.endswith("sigma_data")]
    assert still == []
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


@pytest.mark.parametrize("objective", ["ambient", "fourier-ambient"])
def test_the_equivariant_term_does_not_depend_on_how_a_batch_is_shared(objective):
    chosen = [f"teacher.objective={objective}", "teacher.equivariance=0.5", "teacher.equivariance_rotation=10"]
    plain = build("teacher", config(*chosen[:1])).step(0, 0.0)
    found = [build("teacher", config(*chosen), workers).step(0, 0.0) for workers in (1, 2, 5)]
    assert found[0]["equivariance"] > 0
    assert found[0]["loss"] == pytest.approx(plain["loss"] + 0.5 * found[0]["equivariance"], rel=1e-5)
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)
    assert "equivariance" not in plain


def test_the_equivariant_term_and_the_consistency_term_add_up():
    chosen = ["teacher.objective=fourier-ambient", "teacher.consistency=2", "teacher.equivariance=0.5"]
    found = build("teacher", config(*chosen)).step(0, 0.0)
    plain = build("teacher", config(chosen[0])).step(0, 0.0)
    expected = plain["loss"] + 2 * found["consistency"] + 0.5 * found["equivariance"]
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_with_the_equivariant_term_the_fake_score_learns_every_line_of_generated_images():
    """A mask shared by all would leave the rest of the fake score undetermined."""

    def fake_loss(*overrides: str) -> float:
        return build("prior", config(*overrides)).step(0, 0.0)["fake_loss"]

    assert fake_loss("teacher.equivariance=1") > 1.02 * fake_loss()


def test_average_follows_the_formula():
    stage = build("teacher", config("teacher.ema_images=40"))
    stage.step(0, 0.0)
    before = copied(stage)
    stage.step(1, 0.0)
    after = copied(stage)
    decay = 0.5 ** (5 / min(40, 0.05 * 10))
    name = "network.conv_out.weight"
    expected = decay * before[f"average.{name}"] + (1 - decay) * after[f"model.{name}"]
    torch.testing.assert_close(after[f"average.{name}"], expected)


def test_prior_starts_from_the_teacher_and_never_moves_it():
    stage = build("prior", config())
    teacher = {k: v.clone() for k, v in stage.teacher.state_dict().items()}
    for part in (stage.fake_score, stage.generator.denoiser, stage.average.denoiser):
        assert_same(teacher, dict(part.state_dict()))
    stage.step(0, 0.0)
    stage.step(1, 0.0)
    assert_same(teacher, dict(stage.teacher.state_dict()))
    for part in (stage.fake_score, stage.generator.denoiser, stage.average.denoiser):
        assert not torch.equal(part.state_dict()["network.conv_out.weight"], teacher["network.conv_out.weight"])


def test_generator_always_sees_the_present_fake_score(tmp_path):
    stage = build("prior", config())
    stage.step(0, 0.0)
    save_checkpoint(tmp_path, "prior", 1, stage.state(), {})
    resumed = build("prior", config())
    resumed.load_state(latest_checkpoint(tmp_path, "prior").tensors)
    for each in (stage, resumed):
        each.step(1, 0.0)
        assert_same(dict(each.fake_score.state_dict()), dict(each._frozen_fake.state_dict()))
        assert not any(p.requires_grad for p in each._frozen_fake.parameters())


@pytest.mark.parametrize("objective", ["sid", "dmd", "sds"])
def test_losses_of_the_two_networks_do_not_mix(objective):
    """The generator's step is the same whatever the fake score's rate, and the other way round, within one step."""
    plain = build("prior", config(f"prior.objective={objective}"))
    other = build("prior", config(f"prior.objective={objective}", "prior.fake_learning_rate=0.5"))
    third = build("prior", config(f"prior.objective={objective}", "prior.loss_scale=1e-9"))
    for stage in (plain, other, third):
        stage.step(0, 0.0)
    assert_same(dict(plain.generator.state_dict()), dict(other.generator.state_dict()))
    assert_same(dict(plain.fake_score.state_dict()), dict(third.fake_score.state_dict()))


def test_progress_lowers_the_rate():
    stage = build("prior", config("prior.decay_from=0.5"))
    rates = [stage.step(i, progress)["rate"] for i, progress in enumerate((0.0, 0.75, 1.0))]
    assert rates == pytest.approx([1e-3, 5e-4, 2e-5])


class Counting:
    """A stage without a network."""

    name, batch = "teacher", 1

    def __init__(self, losses: dict[int, float] | None = None):
        self.taken, self.losses = [], losses or {}

    def step(self, index: int, progress: float) -> dict[str, float]:
        self.taken.append((index, progress))
        return {"loss": self.losses.get(index, 1.0), "rate": 0.1}


def test_loop_yields_after_each_step_from_where_it_is():
    stage = Counting()
    reports = list(run_stage(stage, Schedule(10, None), step=7, elapsed=100.0))
    assert stage.taken == [(7, 0.7), (8, 0.8), (9, 0.9)]
    assert [r.step for r in reports] == [8, 9, 10]
    assert [r.progress for r in reports] == [0.8, 0.9, 1.0]
    assert reports[0].elapsed >= 100
    assert list(run_stage(stage, Schedule(10, None), step=10)) == []


def test_schedule_ends_with_whichever_comes_first():
    assert Schedule(10, 100).progress(2, 50) == 0.5
    assert Schedule(10, 100).progress(8, 50) == 0.8
    assert Schedule(None, 100).progress(10**6, 25) == 0.25
    assert Schedule(10, None).progress(20, 0) == 1.0
    assert list(run_stage(Counting(), Schedule(None, 5.0), step=3, elapsed=5.0)) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_is_one_line_that_says_what_to_do(value):
    with pytest.raises(TrainingDivergedError, match=r"not a number at step 3; lower --set teacher\.learning_rate"):
        list(run_stage(Counting({2: value}), Schedule(10, None)))
    assert issubclass(TrainingDivergedError, InputError)


def test_a_diverged_step_is_not_yielded():
    loop = run_stage(Counting({1: math.nan}), Schedule(10, None))
    assert next(loop).step == 1
    with pytest.raises(TrainingDivergedError):
        next(loop)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("gradient_layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_adam_is_that_of_its_paper_whatever_the_layout(layout, gradient_layout, resumed):
    """The fused step reads memory in order; a stored moment or a gradient of another layout must not be mixed up."""
    generator = torch_generator("adam")
    start, *gradients = (torch.randn(6, 5, 3, 3, generator=generator) for _ in range(5))
    parameter = start.clone(memory_format=layout).requires_grad_(True)
    optimiser = adam([parameter], 0.1, (0.8, 0.99))
    expected, first, second = start.double(), 0.0, 0.0
    for number, gradient in enumerate(gradients, start=1):
        if resumed:
            stored = (
                {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
                if (state := moments("adam", optimiser))
                else {}
            )
            optimiser = adam([parameter], 0.1, (0.8, 0.99))
            load_moments("adam", optimiser, stored)
        apply_gradients(optimiser, [parameter], [gradient.clone(memory_format=gradient_layout)], 0.1, float("inf"))
        first, second = 0.8 * first + 0.2 * gradient.double(), 0.99 * second + 0.01 * gradient.double() ** 2
        expected -= 0.1 * (first / (1 - 0.8**number)) / ((second / (1 - 0.99**number)).sqrt() + 1e-8)
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("wanted", "expected"), [("auto", 0), ("off", 0), ("on", 1)])
def test_networks_are_compiled_where_it_is_wanted(monkeypatch, wanted, expected):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function, *a, **k: calls.append(function) or function)
    stage = build("teacher", config(f"network.compile={wanted}"))
    assert len(calls) == expected
    assert set(build_denoiser(config(), 0.5, CPU).state_dict()) == set(stage.denoiser.state_dict())
    assert stage.average.network._compiled_call_impl is None
    stage.step(0, 0.0)


@pytest.mark.slow
def test_the_network_is_one_graph_and_takes_slices_of_several_sizes():
    network = compiled(build_denoiser(config(), 0.5, CPU), "off").network
    traced = torch.compile(network, backend="eager", fullgraph=True)
    for height, width in ((8, 12), (10, 12), (9, 16)):
        x = torch.randn(2, 3, height, width, generator=torch_generator(height, width))
        level = torch.zeros(2)
        torch.testing.assert_close(traced(x, level), network(x, level))
