"""The discriminator in a stage: off by default to the bit, exact resumption, blame, shares, and AmbientGAN's truth."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from test_stages import CPU, assert_same, batches, build, config, copied
from torch import Tensor, nn

from rsdmri.diffusion.batch import Batch
from rsdmri.errors import InputError
from rsdmri.runtime import torch_generator
from rsdmri.training.checkpoint import latest_checkpoint, save_checkpoint
from rsdmri.training.distributed import Processes
from rsdmri.training.prior import PriorStage
from rsdmri.training.shards import Shards

BESIDE, ALONE = "prior.adversarial=0.3", "prior.objective=ambient-gan"
NOISY = "teacher.objective=fourier-ambient"


def noisy(count: int, *key: object, positions: Sequence[int] | None = None) -> Batch:
    """As `batches`, with noise of a known level that differs by item."""
    found = batches(count, *key, positions=positions)
    own = list(range(count) if positions is None else positions)
    return replace(found, sigma_y=0.1 + 0.01 * torch.tensor(own))


def test_off_there_is_no_discriminator_and_none_of_its_settings_matters():
    plain, other = build("prior", config()), build("prior", config("prior.r1=9", "prior.discriminator_learning_rate=1"))
    assert [plain.step(i, 0.0) for i in range(2)] == [other.step(i, 0.0) for i in range(2)]
    assert_same(copied(plain), copied(other))
    assert plain.adversary is None
    assert not [name for name in plain.state() if "discriminator" in name]


def test_beside_a_distillation_it_moves_the_generator_alone():
    plain, beside, more = (build("prior", config(*o)) for o in ((), (BESIDE,), ("prior.adversarial=3",)))
    rows = [stage.step(0, 0.0) for stage in (plain, beside, more)]
    for stage in (beside, more):
        assert_same(dict(plain.fake_score.state_dict()), dict(stage.fake_score.state_dict()))
    assert_same(beside.adversary.state(), more.adversary.state())
    moved = [dict(stage.generator.state_dict())["denoiser.network.conv_out.weight"] for stage in (plain, beside, more)]
    assert not torch.equal(moved[0], moved[1])
    for row, weight in ((rows[1], 0.3), (rows[2], 3.0)):
        assert row["loss"] == pytest.approx(rows[0]["loss"] + weight * row["adversarial_loss"], rel=1e-5)
        assert 0 <= row["real_accuracy"] <= 1
        assert 0 <= row["fake_accuracy"] <= 1
        assert row["discriminator_gradient"] > 0


def test_ambient_gan_evaluates_neither_teacher_nor_fake_score():
    stage = build("prior", config(ALONE))
    before = copied(stage)

    def refuse(*_: object) -> None:
        raise AssertionError

    stage.teacher.forward = refuse
    row = stage.step(0, 0.0)
    assert not {"fake_loss", "score_gap"} & row.keys()
    assert row["loss"] == row["adversarial_loss"]
    assert not [name for name in before if name.startswith("fake")]
    after = copied(stage)
    for part in ("generator", "average", "discriminator"):
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(part + "."))


@pytest.mark.parametrize("chosen", [(BESIDE,), (ALONE, NOISY, "network.dropout=0.3")])
def test_a_stage_goes_on_exactly_from_its_file(tmp_path, chosen):
    settings = config(*chosen)
    straight, resumed = (build("prior", settings) for _ in range(2))
    for stage in (straight, resumed):
        stage.batches = noisy
    for i in range(2):
        straight.step(i, i / 4)
    save_checkpoint(tmp_path, "prior", 2, straight.state(), {})
    resumed.load_state(latest_checkpoint(tmp_path, "prior").tensors)
    assert_same(copied(straight), copied(resumed))
    for i in range(2, 4):
        assert straight.step(i, i / 4) == resumed.step(i, i / 4)
    assert_same(copied(straight), copied(resumed))


@pytest.mark.parametrize("chosen", [(BESIDE,), (ALONE, NOISY)])
def test_neither_shares_nor_parts_nor_processes_change_a_step(chosen):
    """Gradients of two processes add up to those of one; noise, masks and items are the same in any share."""
    found = []
    for workers, parts in ((1, 1), (3, 1), (1, 2)):
        stage = build("prior", config(*chosen, f"prior.accumulate={parts}"), workers)
        stage.batches = noisy
        found.append(stage.step(0, 0.0))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4, abs=1e-6)

    def gradients(share: slice) -> list[Tensor]:
        loss, size = stage._drawn(0, share)
        return stage.shards.gradients(loss, stage._of_generator + stage._of_critics, size, of=5)[0]

    stage = build("prior", config(*chosen), 1)
    stage.batches = noisy
    whole, *halves = (gradients(share) for share in (slice(None), Processes(0, 2).share, Processes(1, 2).share))
    for one, first, second in zip(whole, *halves, strict=True):
        torch.testing.assert_close(first + second, one, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


@pytest.mark.parametrize("chosen", [BESIDE, ALONE])
def test_a_measurement_that_is_off_is_named_though_the_generator_never_sees_it(chosen):
    def exploding(count: int, *key: object, positions: Sequence[int] | None = None) -> Batch:
        batch = batches(count, *key, positions=positions)
        batch.measured[7] *= math.nan
        return batch

    stage = build("prior", config(chosen))
    before = copied(stage)
    assert all(math.isfinite(norm) for norm in stage.item_norms(1))
    stage.batches = exploding
    assert [k for k, norm in enumerate(stage.item_norms(1)) if not math.isfinite(norm)] == [7]
    assert not math.isfinite(stage.step(1, 0.0)["discriminator_loss"])
    stage.load_state(before)
    assert_same(before, copied(stage))


@pytest.mark.parametrize("chosen", [BESIDE, ALONE])
def test_what_the_further_mask_does_not_show_is_never_read(chosen):
    def poisoned(count: int, *key: object, positions: Sequence[int] | None = None) -> Batch:
        batch = batches(count, *key, positions=positions)
        return replace(batch, measured=torch.where(batch.further_mask[:, None], batch.measured, math.nan))

    clean, other = (build("prior", config(chosen)) for _ in range(2))
    other.batches = poisoned
    assert clean.step(0, 0.0) == other.step(0, 0.0)
    assert_same(copied(clean), copied(other))


def test_generated_images_are_measured_as_the_scans_they_are_compared_with(monkeypatch):
    """Coils of the generated images, further masks of the others, noise of the level of the measurement."""
    seen = []
    monkeypatch.setattr(
        "rsdmri.training.adversary.play", lambda d, f, real, fake, r1: seen.append((real, fake)) or 1 / 0
    )
    stage = build("prior", config(ALONE, NOISY))
    batch, fresh = noisy(10, "a")[:5], noisy(10, "a")[5:]
    images, noise = torch.zeros(5, 9, 10, dtype=torch.complex64), stage.adversary.noise(batch, slice(None), 5, 0)
    with pytest.raises(ZeroDivisionError):
        stage.adversary.losses(images, batch, fresh, noise)
    ((real, fake),) = seen
    assert torch.equal(real.mask, fresh.further_mask)
    assert torch.equal(fake.mask, fresh.further_mask)
    torch.testing.assert_close(real.images, fresh.shown.adjoint(fresh.measured))
    own = replace(batch, further_mask=fresh.further_mask).shown
    torch.testing.assert_close(fake.images, own.adjoint(noise * batch.sigma_y[:, None, None, None]))
    assert stage.adversary.noise(batches(5, "a"), slice(None), 5, 0) is None


class Affine(nn.Module):
    """Generated pixels m + s z: mean and spread are all that there is to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(()))
        self.network = nn.Identity()
        self.register_buffer("sigma_data", torch.ones(()))

    def forward(self, u: Tensor, operator: object, sigma: Tensor) -> Tensor:
        return self.mean + self.spread * u / sigma[:, None, None]


def test_ambient_gan_learns_the_mean_and_the_spread_of_what_nobody_saw_clean():
    """Pixels N(1, 0.4^2), two fifths of them missing, the others under noise of 0.5: their own spread is 0.64."""

    def corrupted(count: int, *key: object, positions: Sequence[int] | None = None) -> Batch:
        generator = torch_generator("corrupted", *key)
        images, noise, draw = (torch.randn(count, 8, 8, generator=generator) for _ in range(3))
        mask = draw < 0.25
        shown = mask & (torch.rand(mask.shape, generator=generator) < 0.9)
        measured = torch.where(mask, 1 + 0.4 * images + 0.5 * noise, 0)
        return Batch(measured, None, mask, shown, torch.full((count,), 0.5))

    chosen = ["corruption.kind=inpainting", "corruption.noise=0.5", "network.channels=[8]", "prior.mask_free=true"]
    rates = ["prior.learning_rate=1e-2", "prior.discriminator_learning_rate=5e-3", "prior.average=power"]
    stage = PriorStage(
        config(ALONE, *chosen, *rates, "prior.batch=32", "snapshots=0"), Affine(), corrupted, Shards(1, CPU)
    )
    for i in range(150):
        stage.step(i, i / 150)
    found = stage.average.denoiser
    assert found.mean.item() == pytest.approx(1.0, abs=0.06)
    assert found.spread.item() == pytest.approx(0.4, abs=0.06)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ((ALONE, BESIDE), "adversarial weighs a distillation, and ambient-gan is none; leave it at 0"),
        (("teacher.equivariance=1", ALONE), "teacher.equivariance: prior.objective ambient-gan has no such term"),
        (("prior.adversarial=-1",), "greater than or equal to 0"),
    ],
)
def test_settings_that_say_nothing_are_refused(chosen, message):
    with pytest.raises(InputError, match=message):
        config(*chosen)
