"""The equivariant term: what no mask acquires, learnt from the assumption that moved images are as likely as unmoved.

Where all scans share a mask M, the lines that it lacks are in no measurement, and the losses of `objectives` leave them
undetermined. If the law of the images does not change under a group of shifts, flips and rotations T, it is determined
further: T x is an image as likely as x, which the same M sees from another side (equivariant imaging: Chen, Tachella
and Davies 2021, arXiv 2103.14756). Here, with the denoiser D,

    x1 = D(u, M, s1),   x2 = T x1,   u2 = A~^H A~ x2 + s A~^H A~ e (or s A~^H M~ n),
    loss = sum over positions N of w |A_1 (D(u2, M~, s) - x2)|^2 / (2 pixels),   A_1: all lines sampled.

N are the k-space positions that M lacks and that T brings there from M (`Motion.seen`): what D is to predict was
measured, and not filled in by D. The lines of M are left to the measurements, whose losses have no bias. u is the
measurement with little noise (``_CLEAR`` of the scale of the images, or the measurement's own), because D learns the
law of x2: x1 is a conditional mean, and its spread falls short of that of x by what u leaves open. No gradient flows
into x1, unlike in the paper: it would draw the first look towards what the second predicts with ease. A shift moves no
line and brings nothing of its own; it varies the place. Coils do not move with the object: the maps of A stay, and what
was moved out of their support is cut off, so shifts are to be small.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rsdmri.diffusion.batch import Batch, NoiseDraw, shown_noise
from rsdmri.diffusion.denoiser import Denoiser, within_support
from rsdmri.diffusion.objectives import Objective, draw_for, image_loss

_CLEAR = 0.1


@dataclass(frozen=True)
class Group:
    """Motions under which the law of the images is taken not to change.

    Attributes:
        shift: largest circular shift along either axis, as a share of it; whole pixels, so exact.
        flips: along which axes (y, x) images may be reversed about their centre n // 2; exact.
        rotation: largest angle in degrees; by Fourier interpolation.
    """

    shift: float
    flips: tuple[bool, bool]
    rotation: float


@dataclass(frozen=True)
class Motion:
    """One element of the group for each item: flips, then a rotation, then a shift.

    Attributes:
        flip: bool ``(batch, 2)``, along y and x.
        angle: radians ``(batch,)``, from the axis of x towards that of y.
        shift: pixels, int64 ``(batch, 2)``, along y and x.
    """

    flip: Tensor
    angle: Tensor
    shift: Tensor

    def __getitem__(self, items: slice) -> "Motion":
        return Motion(self.flip[items], self.angle[items], self.shift[items])

    def seen(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """k-space positions ``(batch, y, x)`` of T x that were on ``mask`` ``(batch, 1 or y, x)`` in x.

        T turns and flips k-space as it does images of ``size`` (y, x); the nearest position counts.
        """
        fy, fx = ((torch.arange(n, device=mask.device) - n // 2) / n for n in size)
        cos, sin = torch.cos(self.angle)[:, None, None], torch.sin(self.angle)[:, None, None]
        flip = torch.where(self.flip, -1.0, 1.0)[:, :, None, None]
        sources = flip[:, 0] * (cos * fy[:, None] - sin * fx), flip[:, 1] * (sin * fy[:, None] + cos * fx)
        row, column = ((f * n).round().long() for f, n in zip(sources, size, strict=True))
        inside = (2 * row.abs() <= size[0]) & (2 * column.abs() <= size[1])
        row, column = ((k + n // 2) % n for k, n in zip((row, column), size, strict=True))
        known = mask.expand(-1, size[0], -1).flatten(1)
        return known.gather(1, (row * size[1] + column).flatten(1)).reshape(inside.shape) & inside

    def __call__(self, images: Tensor) -> Tensor:
        """Moved ``images`` ``(batch, y, x)``, real or complex; linear, and differentiable."""
        still = torch.zeros_like(self.shift)
        if bool((self.angle != 0).any()):
            turned = _rotated(_permuted(images, self.flip, still), self.angle)
            return _permuted(turned, torch.zeros_like(self.flip), self.shift)
        return _permuted(images, self.flip, self.shift)


@dataclass(frozen=True)
class EquivarianceDraw:
    """Chance of one training step: noise of the first look and of the second, and the motion between them."""

    first: NoiseDraw
    again: NoiseDraw
    motion: Motion

    def __getitem__(self, items: slice) -> "EquivarianceDraw":
        return EquivarianceDraw(self.first[items], self.again[items], self.motion[items])


def draw_motion(group: Group, shape: tuple[int, ...], generator: torch.Generator) -> Motion:
    """Independent uniform elements of ``group`` for images of ``shape`` (batch, y, x)."""
    batch, *size = shape
    device = generator.device
    chance = torch.tensor(group.flips, device=device) / 2
    flip = torch.rand((batch, 2), generator=generator, device=device) < chance
    turn = 2 * torch.rand(batch, generator=generator, device=device) - 1
    most = torch.tensor([math.floor(group.shift * n) for n in size], device=device)
    uniform = torch.rand((batch, 2), generator=generator, device=device)
    shift = (uniform * (2 * most + 1)).floor().long().minimum(2 * most) - most
    return Motion(flip, turn * math.radians(group.rotation), shift)


def draw_equivariance(
    objective: Objective, batch: Batch, group: Group, generator: torch.Generator, mean: float, std: float
) -> EquivarianceDraw:
    """What `equivariance_loss` needs; levels of the second look by the law of training, ln s' ~ N(mean, std^2)."""
    first, again = (draw_for(objective, batch, generator, mean, std) for _ in range(2))
    return EquivarianceDraw(first, again, draw_motion(group, tuple(batch.image.shape), generator))


def equivariance_loss(denoiser: Denoiser, batch: Batch, draw: EquivarianceDraw) -> Tensor:
    """The loss above, one number per item ``(batch,)``; 0 for items whose gaps the motion brings nothing to.

    Weights w: those of lines that are held out, see `line_weights`.
    """
    look, shown = batch.operator, batch.shown
    added = torch.where(batch.sigma_y > 0, 0, _CLEAR * denoiser.sigma_data)
    u = look.adjoint(batch.measured) + added[:, None, None] * shown_noise(look, draw.first.noise)
    with torch.no_grad():
        estimate = denoiser(u, look, torch.hypot(batch.sigma_y, added))
        moved = within_support(draw.motion(estimate), shown)
    asked = draw.motion.seen(batch.mask, (moved.shape[-2], moved.shape[-1])) & ~batch.mask
    return image_loss(denoiser, moved, replace(batch, mask=asked), draw.again)


def _permuted(images: Tensor, flip: Tensor, shift: Tensor) -> Tensor:
    """Pixels in another order: T x[i] = x[i - shift], reversed about n // 2 first."""
    height, width = images.shape[-2:]
    rows, columns = (_source(n, flip[:, axis, None], shift[:, axis, None]) for axis, n in enumerate((height, width)))
    index = rows[:, :, None] * width + columns[:, None, :]
    return images.flatten(1).gather(1, index.flatten(1)).reshape(images.shape)


def _source(size: int, flip: Tensor, shift: Tensor) -> Tensor:
    """Where each place of an axis is filled from, ``(batch, size)``."""
    place = torch.arange(size, device=shift.device) - shift
    return torch.where(flip, 2 * (size // 2) - place, place) % size


def _rotated(images: Tensor, angle: Tensor) -> Tensor:
    """Rotation about (y // 2, x // 2) by three shears, each a Fourier shift of rows or columns (Unser et al. 1995).

    Band-limited periodic images lose nothing; what leaves the field of view on one side enters on the other.
    """
    along_x, along_y = -torch.tan(angle / 2), torch.sin(angle)
    return _sheared(_sheared(_sheared(images, along_x, -1), along_y, -2), along_x, -1)


def _sheared(images: Tensor, slope: Tensor, axis: int) -> Tensor:
    """Lines along ``axis`` shifted by ``slope`` times their distance from the centre."""
    other = -3 - axis
    size, lines = images.shape[axis], images.shape[other]
    away = slope[:, None] * (torch.arange(lines, device=images.device) - lines // 2)  # pixels, (batch, lines)
    turns = torch.fft.fftfreq(size, device=images.device) * away[..., None]
    turns = turns if axis == -1 else turns.mT
    sheared = torch.fft.ifft(torch.fft.fft(images, dim=axis) * torch.exp(-2j * math.pi * turns), dim=axis)
    return sheared if images.is_complex() else sheared.real
