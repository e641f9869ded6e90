"""The equivariant term: motions are the permutations and rotations that they say, the loss is the written formula."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from references import conditional_gain, random_covariance, random_maps, sense_matrix
from torch import Tensor

from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.denoiser import GaussianDenoiser
from rsdmri.diffusion.equivariance import Group, Motion, draw_equivariance, draw_motion, equivariance_loss
from rsdmri.diffusion.objectives import line_weights
from rsdmri.physics import masks
from rsdmri.physics.fourier import fft2c, ifft2c
from rsdmri.physics.sense import sense
from rsdmri.runtime import numpy_generator, torch_generator

SIZES = [(5, 8), (6, 7)]
ALL = Group(shift=0.5, flips=(True, True), rotation=30)


def images(count: int, size: tuple[int, int], *key: object, real: bool = False) -> Tensor:
    values = torch.randn(count, *size, 2, generator=torch_generator("images", *key), dtype=torch.float64)
    return values[..., 0] if real else torch.view_as_complex(values)


def motion(flip=(False, False), degrees=0.0, shift=(0, 0), count=1) -> Motion:
    angle = torch.full((count,), math.radians(degrees), dtype=torch.float64)
    return Motion(torch.tensor([flip] * count), angle, torch.tensor([shift] * count))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("real", [False, True])
def test_shifts_and_flips_move_pixels_and_change_none(size, real):
    x = images(4, size, real=real)
    shift = torch.tensor([[0, 0], [1, -2], [-2, 3], [0, 1]])
    flip = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    found = Motion(flip, torch.zeros(4), shift)(x)
    for i in range(4):
        expected = x[i]
        for axis in range(2):
            if flip[i, axis]:  # about n // 2, where the object of a centred transform has its centre
                n = size[axis]
                expected = expected.index_select(axis, (2 * (n // 2) - torch.arange(n)) % n)
            expected = torch.roll(expected, int(shift[i, axis]), axis)
        assert torch.equal(found[i], expected)


def blob(size: tuple[int, int], y: float, x: float) -> Tensor:
    """Gaussian about the centre plus (y, x), narrow in space and in frequency."""
    rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in size)
    return torch.exp(-((rows[:, None] - y) ** 2 + (columns - x) ** 2) / (2 * 1.5**2))


@pytest.mark.parametrize("size", [(40, 44), (41, 45)])
@pytest.mark.parametrize("degrees", [10.0, -33.0])
def test_rotations_turn_about_the_centre(size, degrees):
    x = blob(size, -3.0, 7.5)
    angle = math.radians(degrees)
    y, x_ = (math.sin(angle) * 7.5 + math.cos(angle) * -3.0, math.cos(angle) * 7.5 - math.sin(angle) * -3.0)
    found = motion(degrees=degrees)(x[None])[0]
    assert found.dtype == x.dtype
    torch.testing.assert_close(found, blob(size, y, x_), atol=2e-4, rtol=0)
    back = motion(degrees=-degrees)(found[None].to(torch.complex128))[0]
    torch.testing.assert_close(back.real, x, atol=1e-5, rtol=0)


def test_a_motion_flips_then_turns_then_shifts():
    x = images(1, (12, 14))
    together = motion(flip=(True, False), degrees=12, shift=(2, -3))(x)
    one_by_one = motion(shift=(2, -3))(motion(degrees=12)(motion(flip=(True, False))(x)))
    torch.testing.assert_close(together, one_by_one)
    assert not torch.allclose(together, motion(degrees=12)(motion(flip=(True, False), shift=(2, -3))(x)), atol=1e-3)


def test_motions_are_linear_and_items_do_not_see_each_other():
    drawn = draw_motion(ALL, (6, 9, 8), torch_generator("items"))
    x, y = images(6, (9, 8), 1), images(6, (9, 8), 2)
    torch.testing.assert_close(drawn(2j * x + y), 2j * drawn(x) + drawn(y))
    for i in range(6):
        torch.testing.assert_close(drawn[i : i + 1](x[i : i + 1])[0], drawn(x)[i])


@pytest.mark.parametrize("size", [(8, 6), (5, 9)])
def test_a_flip_brings_lines_to_their_opposites(size):
    mask = torch.zeros(4, 1, size[1], dtype=torch.bool)
    mask[..., [1, 3]] = True
    flips = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    moved = Motion(flip=flips, angle=torch.zeros(4), shift=torch.zeros(4, 2, dtype=torch.long))
    kspace = fft2c(moved(ifft2c(images(4, size) * mask)))
    assert torch.equal(moved.seen(mask, size), kspace.abs() > 1e-6)
    assert moved.seen(torch.ones_like(mask), size).all()


@pytest.mark.parametrize("size", [(32, 32), (33, 24)])
@pytest.mark.parametrize("angle", [-15, 6, 15])
@pytest.mark.parametrize("flip", [[False, False], [False, True], [True, True]])
def test_a_turn_brings_lines_where_their_energy_goes(size, angle, flip):
    mask = torch.zeros(1, 1, size[1], dtype=torch.bool)
    mask[..., [3, 4, 7, 10, 11, 12]] = True
    power = fft2c(motion(flip, angle)(ifft2c(images(1, size) * mask))).abs().square()
    right, wrong = (motion(flip, sign * angle).seen(mask, size) for sign in (1, -1))
    share = [float(power[found].sum() / power.sum()) for found in (right, wrong)]
    assert share[0] > 0.7
    assert share[0] > 1.25 * share[1]


@pytest.mark.parametrize("size", [(32, 20), (31, 9)])
def test_drawn_motions_fill_their_ranges(size):
    group = Group(shift=0.1, flips=(True, True), rotation=15)
    drawn = draw_motion(group, (4000, *size), torch_generator("ranges"))
    for axis, n in enumerate(size):
        most = int(0.1 * n)
        counts = torch.bincount(drawn.shift[:, axis] + most, minlength=2 * most + 1)
        assert len(counts) == 2 * most + 1
        assert (counts > 4000 / (2 * most + 1) * 0.8).all()
        assert 0.46 < drawn.flip[:, axis].double().mean() < 0.54
    assert 14 < math.degrees(float(drawn.angle.abs().max())) <= 15
    one = draw_motion(Group(0, (False, True), 0), (50, *size), torch_generator("ranges")).flip
    assert not one[:, 0].any()
    assert one[:, 1].any()
    still = draw_motion(Group(0, (False, False), 0), (50, *size), torch_generator("ranges"))
    assert not any(bool(x.any()) for x in (still.flip, still.shift, still.angle))


def problem(count: int = 3) -> tuple[Batch, GaussianDenoiser]:
    """Batches of 4 x 6 with 2 coils that see nothing in one column, and the denoiser of a Gaussian."""
    rng = numpy_generator("equivariant problem")
    maps = torch.as_tensor(np.stack([random_maps(rng, 2, 4, 6) for _ in range(count)]))
    maps[..., 5] = 0
    mask = torch.tensor([[False, True, True, True, False, True]]).expand(count, 1, 6)
    shown = masks.further_mask(mask, 1, acs=3, generator=torch_generator("further"))
    measured = sense(maps, mask).forward(images(count, (4, 6)))
    denoiser = GaussianDenoiser(torch.as_tensor(random_covariance(rng, 24)))
    denoiser.preconditioning, denoiser.sigma_data = "operator", torch.tensor(0.6, dtype=torch.float64)
    return Batch(measured, maps, mask, shown, torch.zeros(count, dtype=torch.float64)), denoiser


def drawn(batch: Batch, objective="ambient", group=ALL):
    draw = draw_equivariance(objective, batch, group, torch_generator("drawn"), -1.2, 0.5)
    first, again = (replace(d, sigma=d.sigma.double()) for d in (draw.first, draw.again))
    return replace(draw, first=first, again=again)


def dense_loss(batch: Batch, draw, denoiser: GaussianDenoiser, level: float, of_kspace: bool) -> float:
    """Item 0 with plain matrices."""
    maps = batch.maps[0].numpy()
    lacked = draw.motion[0:1].seen(batch.mask[0:1], (4, 6))[0] & ~batch.mask[0]
    looked, seen, missing = (sense_matrix(maps, m.numpy()) for m in (batch.mask[0], batch.further_mask[0], lacked))
    normal, covariance = seen.conj().T @ seen, denoiser.covariance.numpy()
    support = (np.abs(maps) > 0).any(0)

    def shown(noise: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return seen.conj().T @ (noise if of_kspace else seen @ noise)

    added = 0.1 * 0.6 if not of_kspace else 0.0
    first_noise, again_noise = (d.noise[0].reshape(-1).numpy() for d in (draw.first, draw.again))
    u = looked.conj().T @ batch.measured[0].reshape(-1).numpy() + added * shown(first_noise, looked)
    first = torch.as_tensor((conditional_gain(covariance, looked.conj().T @ looked, level) @ u).reshape(1, 4, 6))
    moved = np.where(support, draw.motion[0:1](first)[0].numpy(), 0).reshape(-1)
    sigma = float(draw.again.sigma[0])
    again = normal @ moved + sigma * shown(again_noise, seen)
    residual = missing @ (conditional_gain(covariance, normal, sigma) @ again - moved)
    return float((np.abs(residual) ** 2).sum() / 0.6**2 / (2 * 24))


@pytest.mark.parametrize("objective", ["ambient", "fourier-ambient"])
def test_loss_is_the_written_formula(objective):
    batch, denoiser = problem()
    of_kspace = objective == "fourier-ambient"
    if of_kspace:
        batch = replace(batch, sigma_y=torch.full((3,), 0.2, dtype=torch.float64))
    draw = drawn(batch, objective)
    assert (draw.first.noise.ndim == 4) == of_kspace
    found = equivariance_loss(denoiser, batch, draw)
    assert found.shape == (3,)
    expected = dense_loss(batch, draw, denoiser, 0.2 if of_kspace else 0.06, of_kspace)
    assert float(found[0]) == pytest.approx(expected, rel=1e-5)


def test_items_do_not_see_each_other():
    batch, denoiser = problem(4)
    draw = drawn(batch)
    together = equivariance_loss(denoiser, batch, draw)
    for share in (slice(0, None, 2), slice(1, None, 2)):
        torch.testing.assert_close(equivariance_loss(denoiser, batch[share], draw[share]), together[share])


def test_nothing_is_asked_of_lines_that_were_acquired():
    batch, denoiser = problem()
    draw = drawn(batch)
    full = replace(batch, mask=torch.ones_like(batch.mask))
    assert torch.equal(equivariance_loss(denoiser, full, draw), torch.zeros(3, dtype=torch.float64))
    weights = line_weights(replace(batch, mask=~batch.mask), draw.again.sigma, denoiser)
    missing = (~batch.mask).expand_as(weights)
    torch.testing.assert_close(weights[missing], torch.full_like(weights[missing], 1 / 0.36))


def test_unacquired_samples_are_never_read():
    batch, denoiser = problem()
    draw = drawn(batch)
    poisoned = torch.where(batch.mask[:, None], batch.measured, torch.nan)
    found = equivariance_loss(denoiser, replace(batch, measured=poisoned), draw)
    assert torch.equal(found, equivariance_loss(denoiser, batch, draw))
