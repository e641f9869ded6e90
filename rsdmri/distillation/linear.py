"""The linear theory of the distillation: everything in closed form, so that the losses can be held to it.

Images x = E w with w ~ N(0, diag(v)) in few dimensions, lines of single-coil k-space as measurements, a generator
G(z) = W z, and the best linear denoisers of the teacher's loss as teacher and fake score. The distillation then has to
reach W W^H = E diag(v) E^H: the eigenspace of E[x x^H], and the variances in it.
References: Zhang et al. 2025 (RSD), Daras et al. 2023 (what masks must do).
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from rsdmri.diffusion.batch import Batch, NoiseDraw
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.schedule import karras_sigma, unit_noise
from rsdmri.distillation.objectives import Objective, generator_loss
from rsdmri.physics.fourier import fft2c
from rsdmri.physics.sense import Sense

_TIMES = 0.8 * (torch.arange(4, dtype=torch.float64) + 0.5) / 4


@dataclass(frozen=True)
class LineLaw:
    """Equally likely pairs of acquired lines M and shown lines M~, bool ``(pairs, 1, x)``."""

    mask: Tensor
    further_mask: Tensor


def line_law(width: int, groups: Sequence[Sequence[int]]) -> LineLaw:
    """M holds the centre line and two lines of one of ``groups``, M~ the centre line and the first of the two.

    One group of all outer lines fulfils the condition of ambient training, a positive probability of every line to be
    acquired given M~. Lines in no group are never acquired, lines of different groups never together.
    """
    pairs = [pair for group in groups for pair in itertools.permutations(group, 2)]
    mask, further_mask = (torch.zeros(len(pairs), 1, width, dtype=torch.bool) for _ in range(2))
    for k, (first, second) in enumerate(pairs):
        mask[k, 0, [width // 2, first, second]] = True
        further_mask[k, 0, [width // 2, first]] = True
    return LineLaw(mask, further_mask)


class LinearDenoiser(nn.Module):
    """The linear D(u, M~, s) that minimises the mean loss |M F (D - x)|^2 for x of covariance C, in closed form.

    K = F C F^H,   D = F^H P K M~ (M~ K M~ + s^2)^-1 M~ F u,   P: lines that can be acquired given M~; 0 on the others,
    where the loss says nothing. With P = 1 it is E[x | u, M~] of Gaussian x.

    Args:
        covariance: C per real channel, complex Hermitian ``(pixels, pixels)``.
        law: of M and M~; given an M~ outside of it the estimate is 0.
    """

    preconditioning, sigma_data = (
        "published",
        1.0,
    )  # weights of the lines in the loss, on which the minimiser is the same

    def __init__(self, covariance: Tensor, law: LineLaw):
        super().__init__()
        self.covariance, self.law = covariance, law

    def forward(self, u: Tensor, operator: Sense, sigma: Tensor) -> Tensor:
        """Return the estimate for ``u`` ``(batch, y, x)``, u = F^H M~ F (x + s e), and ``sigma`` ``(batch,)``."""
        count, height, width = u.shape
        transform = _transform(height, width, u)
        shown = operator.mask.reshape(count, 1, width)
        law = (shown == self.law.further_mask[:, 0]).all(dim=-1).to(u.real.dtype)  # pairs with this M~
        possible = (law @ self.law.mask[:, 0].to(u.real.dtype) > 0)[:, None]
        m, p = (lines.expand(count, height, width).reshape(count, -1, 1).to(u.dtype) for lines in (shown, possible))
        spectrum = transform @ self.covariance @ transform.mH
        noise = (sigma**2)[:, None, None] * torch.eye(height * width, dtype=u.dtype, device=u.device)
        measured = m * (transform @ u.reshape(count, -1, 1))
        found = p * (spectrum @ (m * torch.linalg.solve(m * spectrum * m.mT + noise, measured)))
        return (transform.mH @ found).reshape(u.shape)


def low_rank(pixels: int, variances: Sequence[float], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random orthonormal E ``(pixels, rank)`` and C = E diag(variances) E^H, complex128."""
    shape = torch.empty(pixels, len(variances), dtype=torch.complex128, device=generator.device)
    basis = torch.linalg.qr(unit_noise(shape, generator))[0]
    return basis, basis * torch.tensor(variances, dtype=basis.dtype, device=basis.device) @ basis.mH


def distil(
    covariance: Tensor,
    law: LineLaw,
    objective: Objective,
    generator: torch.Generator,
    *,
    alpha: float = 1.2,
    sigma_min: float = 0.1,
    steps: int = 200,
    rate: float = 1.0,
) -> Iterator[Tensor]:
    """Train G(z) = W z from a random W; yields W W^H ``(pixels, pixels)`` at the start and after each step.

    A step descends `generator_loss` (momentum 0.9), averaged over every M~ of ``law``, a ladder of levels (t in the
    middles of four parts of [0, 0.8]) and the draws (z, e) of `exact_draws`: were w constant, this would be the exact
    expectation.

    Args:
        covariance: of the images per real channel, complex128; ``(pixels, pixels)``, a multiple of the law's width.
        law: what is acquired and shown.
        objective: sid, dmd or sds.
        generator: random numbers.
        alpha: of sid.
        sigma_min: lower end of the levels, where measurements have noise of that level.
        steps: number of steps.
        rate: step size.
    """
    pixels, width = len(covariance), law.mask.shape[-1]
    shape, points = (pixels // width, width), 2 * pixels
    levels = karras_sigma(_TIMES.to(covariance.device), sigma_min)
    masks = torch.unique(law.further_mask, dim=0)
    batch = _scans(masks.repeat_interleave(len(levels) * points, 0), shape, covariance)
    sigma = levels.repeat_interleave(points).repeat(len(masks))
    copies = len(sigma) // points
    weights = (0.3 / math.sqrt(2 * pixels) * unit_noise(covariance, generator)).requires_grad_()
    optimiser = torch.optim.SGD([weights], lr=rate, momentum=0.9)
    teacher = cast(Denoiser, LinearDenoiser(covariance, law))
    for step in range(steps + 1):
        reached = (weights @ weights.mH).detach()
        yield reached
        if step == steps:
            return
        latent, noise = exact_draws(pixels, generator)
        images = (latent @ weights.mT).reshape(points, *shape).repeat(copies, 1, 1)
        draw = NoiseDraw(sigma, noise.reshape(points, *shape).repeat(copies, 1, 1))
        fake_score = cast(Denoiser, LinearDenoiser(reached, law))
        optimiser.zero_grad()
        generator_loss(objective, images, teacher, fake_score, batch, draw, alpha).loss.mean().backward()
        optimiser.step()


def exact_draws(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws of two standard complex vectors, each complex128 ``(2 size, size)``, with exact joint second moments.

    Rows of a random unitary matrix: the means of z z^H and e e^H are 2 I (as E|e|^2 = 2), that of z e^H is 0.
    """
    count = 2 * size
    like = torch.empty(count, count, dtype=torch.complex128, device=generator.device)
    rows = torch.linalg.qr(unit_noise(like, generator))[0] * math.sqrt(2 * count)
    return rows[:, :size], rows[:, size:]


def principal_angles(covariance: Tensor, basis: Tensor) -> Tensor:
    """Angles in rad, largest first, between ``basis`` (pixels, rank) and the leading eigenvectors of ``covariance``."""
    leading = torch.linalg.eigh(covariance)[1][:, -basis.shape[1] :]
    return torch.asin(torch.linalg.svdvals(leading - basis @ (basis.mH @ leading)).clamp(max=1))


def _scans(shown: Tensor, shape: tuple[int, int], like: Tensor) -> Batch:
    """Scans of one coil; their samples are NaN, since the generator's losses read none."""
    maps = torch.ones(len(shown), 1, *shape, dtype=like.dtype, device=like.device)
    nothing = torch.zeros(len(shown), dtype=like.real.dtype, device=like.device)
    return Batch(torch.full_like(maps, math.nan), maps, torch.ones_like(shown), shown, nothing)


def _transform(height: int, width: int, like: Tensor) -> Tensor:
    """F as a matrix ``(pixels, pixels)``."""
    pixels = height * width
    basis = torch.eye(pixels, dtype=like.dtype, device=like.device).reshape(pixels, height, width)
    return fft2c(basis).reshape(pixels, pixels).mT
