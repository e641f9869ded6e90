"""Draws of the posterior by few evaluations of a network, and the score of held-out lines that it learns from.

Nothing but acquired samples is read: the network sees the lines of a further mask M~, its draws are measured again on
the lines of M that M~ lacks, and a proper score compares their law with what was acquired there.
"""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.denoiser import Denoiser, ridge_inverse
from rsdmri.physics.classical import l1_strength, l1_wavelet
from rsdmri.physics.sense import Sense
from rsdmri.runtime import torch_generator

RECORRUPTION = 0.5  # alpha: noise added to what is shown, over the measurements' own
LARGEST_LOG = 3.0  # of the spread
WARM_STRENGTH = 0.1, 0.001  # factor and floor of `l1_strength`, as tuned on simulated heads (recipes/reconstruction)
LEAST_WEIGHT = 0.1  # of the estimate against the data: what few conjugate-gradient iterations solve


class Spread(nn.Module):
    """g(x, M, s) > 0, ``(batch, y, x)``: how much noise a draw begins with at each place of an estimate x.

    Three convolutions of |x| / sd, of the mask, a plane, and of ln(s) / 4, then exp. It is 1 until it has learnt.
    """

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, magnitude: Tensor, mask: Tensor, sigma: Tensor) -> Tensor:
        """Return g.

        Args:
            magnitude: |x| / sd, ``(batch, y, x)``.
            mask: M, ``(batch, 1 or y, x)``.
            sigma: s, ``(batch,)``.
        """
        planes = magnitude, mask.to(magnitude.dtype).expand_as(magnitude), (sigma.log() / 4)[:, None, None]
        features = torch.stack([plane.expand_as(magnitude) for plane in planes], dim=1)
        found: Tensor = self.layers(features)[:, 0]
        return found.clamp(-LARGEST_LOG, LARGEST_LOG).exp()


class PosteriorSampler(nn.Module):
    """x(e) = one draw of p(x | y) from standard noise e, by a denoiser D at fixed levels s_1, ..., s_K.

    Each level improves an estimate x of the mean, but the last, which draws; the first starts from none:

        r = `l1_wavelet` of y, few iterations                at the first level, where K > 1,
        r = (A^H A + s^2 / sd^2)^-1 (A^H y + (s^2 / sd) e)   at the first level, where K = 1,
        r = x                                                at others,
        r = x + s w (A^H A + w)^-1 (g(x, M, s) e)            at the last,
        x_0 = r + sd F(r, M, s),
        x = argmin |A x - y|^2 / s_y^2 + |x - x_0|^2 / trust^2      at all but the last, which ends with x_0.

    The second line and x_0 are D of the ``operator`` form. No noise is added to the samples, which would lose what they
    say: with K = 1, r is the minimiser of |A r - y|^2 / s^2 + |r - sd e|^2 / sd^2: y where lines were acquired, and a
    draw of white images of the right size where none were. All draws of a scan share `estimate`, so that n of them take
    K - 1 + n evaluations. s is sqrt(s_k^2 + s_y^2): the level k of K with the noise of the samples. The noise of a draw
    is as wide as g says, and w = 0.1 leaves little of it where the samples say what the image is.

    Args:
        denoiser: the network, of the ``operator`` preconditioning.
        levels: s_1, ..., s_K.
        trust: error per pixel that x_0 is taken to have; 0 leaves out these steps. The weight s_y^2 / trust^2 of x_0 is
            at least 0.1.
        warm: iterations of `l1_wavelet`; 0: there, too, r is the ridge solution, with e = 0.
        digest: sha256 of the file of the weights.
        spread: g; None: one that is 1.

    Errors:
        ValueError: another preconditioning, no level.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        levels: Sequence[float],
        trust: float,
        digest: str = "",
        spread: Spread | None = None,
        warm: int = 0,
    ):
        super().__init__()
        if denoiser.preconditioning != "operator":
            raise ValueError(f"denoiser: expected operator preconditioning, got {denoiser.preconditioning}")
        if not levels:
            raise ValueError("levels: expected at least one")
        self.denoiser, self.levels, self.trust, self.digest = denoiser, tuple(levels), trust, digest
        self.warm = warm
        self.spread = (spread or Spread()).to(denoiser.sigma_data.device)

    def evaluations(self, draws: int) -> int:
        """Network evaluations of ``draws`` of one scan."""
        return len(self.levels) - 1 + draws

    def estimate(
        self,
        kspace: Tensor,
        operator: Sense,
        sigma_y: Tensor,
        conditions: Tensor | None = None,
        warm: int | None = None,
    ) -> Tensor | None:
        """What all draws of a scan share, ``(batch, y, x)``; None where there is one level.

        ``warm``: iterations in place of those that the network was trained with; other arguments of `forward`.
        """
        warm = self.warm if warm is None else warm
        found = self._warm(kspace, operator, sigma_y, warm) if warm and len(self.levels) > 1 else None
        for level in self.levels[:-1]:
            found = self._step(kspace, operator, sigma_y, level, found, None, conditions)
            found = self._agreeing(found, kspace, operator, sigma_y)
        return found

    def forward(
        self,
        kspace: Tensor,
        operator: Sense,
        sigma_y: Tensor,
        noise: Tensor,
        conditions: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Return one draw of each item, ``(batch, y, x)``.

        Args:
            kspace: y, complex64 ``(batch, coil, y, x)``; only what ``operator`` samples is read.
            operator: A with the lines M that are shown, batched.
            sigma_y: standard deviation of the noise in each real number of y, ``(batch,)``.
            noise: e, standard noise of images ``(batch, y, x)``.
            conditions: of the scans, see `Denoiser.forward`.
            start: what `estimate` returned; None: it is made here.
        """
        if start is None:
            start = self.estimate(kspace, operator, sigma_y, conditions)
        return self._step(kspace, operator, sigma_y, self.levels[-1], start, noise, conditions)

    def _step(
        self,
        kspace: Tensor,
        operator: Sense,
        sigma_y: Tensor,
        level: float,
        estimate: Tensor | None,
        noise: Tensor | None,
        conditions: Tensor | None,
    ) -> Tensor:
        """x_0 of one level."""
        sigma, denoiser = torch.hypot(sigma_y, sigma_y.new_tensor(level)), self.denoiser
        if estimate is None:
            seen = operator.adjoint(kspace)
            weight = (sigma**2 / denoiser.sigma_data)[:, None, None]
            start = seen if noise is None else seen + weight * noise
            found: Tensor = denoiser(start, operator, sigma, conditions)
            return found
        if noise is None:
            return denoiser.refined(estimate, operator, sigma, conditions)
        wide = self.spread(estimate.abs() / denoiser.sigma_data, operator.mask, sigma)
        weight = torch.full_like(sigma, LEAST_WEIGHT)
        unseen = LEAST_WEIGHT * ridge_inverse(wide * noise, operator, weight, denoiser.iterations)
        return denoiser.refined(estimate + sigma[:, None, None] * unseen, operator, sigma, conditions)

    @torch.no_grad()
    def _warm(self, kspace: Tensor, operator: Sense, sigma_y: Tensor, iterations: int) -> Tensor:
        """r of the first level."""
        strength = l1_strength(sqrt(2) * sigma_y, *WARM_STRENGTH)
        shifts = torch_generator("warm")  # of the wavelets' grid, every time the same
        return l1_wavelet(operator, kspace, strength=strength, iterations=iterations, generator=shifts, tolerance=0.0)

    def _agreeing(self, estimate: Tensor, kspace: Tensor, operator: Sense, sigma_y: Tensor) -> Tensor:
        """x of an estimate x_0."""
        if self.trust == 0:
            return estimate
        weight = (2 * (sigma_y / self.trust) ** 2).clamp_min(LEAST_WEIGHT)
        left = operator.adjoint(kspace) - operator.normal(estimate)
        return estimate + ridge_inverse(left, operator, weight, self.denoiser.iterations)


def held_out_score(
    sampler: PosteriorSampler,
    batch: Batch,
    images: tuple[Tensor, Tensor],
    noise: tuple[Tensor, Tensor],
    block: tuple[int, int],
    recorruption: Tensor | None = None,
) -> Tensor:
    """`energy_score` of two draws measured again, on what the network was not shown; one number per item ``(batch,)``.

    On the lines of M that M~ lacks: p_i = A x(e_i) + n_i with x(e_i) drawn from the lines of M~, n_i fresh noise of the
    measurements' own level s_y, so that what fits y is the law of the noise-free image. The expected score is least
    where p_1 has the law of y given y~ (on blocks), whatever the law of the further masks.

    On the lines of M~, with a ``recorruption`` r of standard noise: the network is shown y + a s_y r and asked for
    y - s_y r / a, whose noise is independent of what it was shown (Pang et al. 2021, "Recorrupted-to-Recorrupted"), n_i
    having the level s_y sqrt(1 + 1 / a^2) of that. This teaches what no further mask holds out, the centre, and not to
    take noise for image. The two scores are added.

    What neither teaches:

    - how blocks hang together, beyond what the network shares between them;
    - the law given all of M, which a reconstruction shows: the network has seen masks of M~'s density, M is denser by
      what is held out, and means and spreads are other ones there. A linear network, which cannot tell the two apart,
      has three times the variance on the lines still missing in the tests' problem; others carry over as far as masks
      of varying density taught them to, which is why ``posterior.held_out`` lets each slice lose another number of
      lines, down to one. Likewise it has seen noise that is sqrt(1 + a^2) times too high.

    Args:
        sampler: draws.
        batch: with maps.
        images: e_1 and e_2, standard noise of images ``(batch, y, x)``.
        noise: n_1 and n_2 over their level, standard noise of the measurements ``(batch, coil, y, x)``.
        block: rows of `energy_score`, and columns of a patch of as many rows, whose `patch_score` is added; 0: none.
        recorruption: r, like them; None: held-out lines alone.
    """
    operator, shown = batch.operator, batch.shown
    if not (isinstance(operator, Sense) and isinstance(shown, Sense)):
        raise ValueError("batch: expected k-space with coil maps, got images")
    held, level = batch.mask & ~batch.further_mask, batch.sigma_y[:, None, None, None]
    given, target, told = batch.measured, batch.measured, batch.sigma_y
    if recorruption is not None:
        seen, a = batch.further_mask[:, None], RECORRUPTION
        given, told = given + a * level * recorruption, told * sqrt(1 + a**2)
        target = torch.where(seen, target - level / a * recorruption, target)
        level = torch.where(seen, level * sqrt(1 + a**-2), level)
    start = sampler.estimate(given, shown, told, batch.conditions)
    first, second = (
        operator.forward(sampler(given, shown, told, e, batch.conditions, start)) + level * n
        for e, n in zip(images, noise, strict=True)
    )
    rows, columns = block
    score = energy_score(first, second, target, held, rows)
    if columns:
        score = score + patch_score(first, second, target, shown.with_mask(held), (rows, columns))
    return score if recorruption is None else score + energy_score(first, second, target, batch.further_mask, rows)


def energy_score(first: Tensor, second: Tensor, target: Tensor, held: Tensor, rows: int) -> Tensor:
    """Energy score of two draws of k-space against what was measured, a mean over blocks; ``(batch,)``.

        (|p_1 - y| + |p_2 - y| - |p_1 - p_2|) / (2 sqrt(d)),   d real numbers in the block

    |.| is the Euclidean norm over all coils and held-out samples of a block. The score is strictly proper for the joint
    law within blocks (Gneiting and Raftery 2007). Over a whole slice its gradient hardly feels a wrong spread, as norms
    of long vectors vary little; over small blocks it does. A block is ``rows`` neighbouring rows of the image, all
    held-out lines together: where whole lines are held out they are transformed along the readout first, which leaves
    noise white and makes blocks places, so that the spread is learnt where it is. Held-out points are taken in rows of
    k-space. Without held-out samples the score is 0.

    Args:
        first, second: p_1, p_2, complex ``(batch, coil, y, x)``.
        target: y, of the same shape; read where ``held`` alone.
        held: held-out positions, bool ``(batch, 1 or y, x)``.
        rows: of a block; 0: all.
    """
    height = target.shape[-2]
    size = min(rows or height, height)
    parts = torch.stack([first - target, second - target, first - second])
    parts = torch.where(held[:, None], parts, 0)
    if held.shape[-2] == 1:
        parts = torch.fft.ifft(parts, dim=-2, norm="ortho")
    norms = torch.linalg.vector_norm(_in_blocks(parts, size), dim=(2, 4, 5))
    counts = _in_blocks(held.expand(-1, height, -1)[:, None].to(norms.dtype), size).sum((1, 3, 4))
    return _score(norms, 2 * target.shape[1] * counts)


def patch_score(first: Tensor, second: Tensor, target: Tensor, held: Sense, patch: tuple[int, int]) -> Tensor:
    """Energy score of A_h^H p against A_h^H y, images of held-out samples, a mean over patches; ``(batch,)``.

    Blocks of `energy_score` are as wide as the image, so that a spread that is right in each row may be anywhere in
    it. Coils tell places along it apart, and of a local error A_h^H A_h leaves a part where it is.

    Args:
        first, second, target: p_1, p_2, y, complex ``(batch, coil, y, x)``.
        held: A_h, with the mask of held-out samples.
        patch: rows and columns.
    """
    parts = torch.stack([held.adjoint(p) for p in (first - target, second - target, first - second)])
    rows, columns = (min(size or side, side) for size, side in zip(patch, parts.shape[-2:], strict=True))
    patches = _in_blocks(_in_blocks(parts, rows).transpose(-2, -1), columns)  # (3, batch, strip, block, column, row)
    norms = torch.linalg.vector_norm(patches, dim=(-2, -1)).flatten(2)
    share = held.mask.to(norms.dtype).mean((1, 2))  # of a white error
    return _score(norms, (2 * rows * columns * share)[:, None].expand_as(norms[0]))


def _score(norms: Tensor, dimension: Tensor) -> Tensor:
    """Mean over blocks of (|p_1 - y| + |p_2 - y| - |p_1 - p_2|) / (2 sqrt(dimension)), where there is a dimension."""
    full = dimension > 0
    score = (norms[0] + norms[1] - norms[2]) / (2 * torch.where(full, dimension, 1).sqrt())
    return torch.where(full, score, 0).sum(-1) / full.sum(-1).clamp_min(1)


def _in_blocks(parts: Tensor, size: int) -> Tensor:
    """``(..., y, x)`` to ``(..., block, row, x)``, zeros after the last row."""
    blocks = -(-parts.shape[-2] // size)
    padded = nn.functional.pad(parts, (0, 0, 0, size * blocks - parts.shape[-2]))
    return padded.unflatten(-2, (blocks, size))
