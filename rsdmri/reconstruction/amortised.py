"""Reconstruction by one evaluation a draw and a few for all draws, of a network that was trained for it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import sqrt

import torch
from torch import Tensor

from rsdmri.diffusion.amortised import PosteriorSampler
from rsdmri.diffusion.sample import item_noise
from rsdmri.physics.classical import l1_strength, l1_wavelet
from rsdmri.reconstruction.consistency import Measurements
from rsdmri.reconstruction.settings import AmortisedSettings
from rsdmri.runtime import torch_generator


def amortised(
    sampler: PosteriorSampler,
    measured: Measurements,
    *,
    generators: Sequence[torch.Generator],
    settings: AmortisedSettings | None = None,
    conditions: Tensor | None = None,
    start: Tensor | None = None,
    mirrored: Sequence[bool] = (),
) -> Tensor:
    """One draw of each item, ``(batch, y, x)``, by one evaluation of the network and, on request, a proximal step.

    What the network has learnt, and what not, says `rsdmri.diffusion.amortised.held_out_score`.

    Measured on 10 simulated heads (128 x 128, 8 coils; recipes/reconstruction), 8 draws: PSNR 35.3 dB at R = 4 and
    28.4 at R = 8, TV 31.7 and 23.9, `proximal` 30.3 and 25.8. The draws' spread does not tell where in a head they are
    wrong.

    Args:
        sampler: trained by ``rsdmri train --stage posterior``.
        measured: y, A and the noise of each item.
        generators: random stream of each item.
        settings: trust; at 0 the network's image is the result, which was made consistent with the data on the way.
        conditions: of the scans, see `Prior.conditions`; None: nothing is known.
        start: of `shared_estimate`, which all draws of a scan have in common; None: it is made here.
        mirrored: items that take -e in place of the e of their stream; empty: none. A pair of e and -e is as good as
            draws are, and its mean has none of the noise that the network passes on linearly.
    """
    settings = settings or AmortisedSettings()
    with torch.no_grad(), _precision(sampler, settings):
        noise = item_noise(generators)(measured.blank)
        if any(mirrored):
            noise[torch.tensor(mirrored, device=noise.device)] *= -1
        if start is None:
            start = shared_estimate(sampler, measured, conditions, settings)
        sigma_y = measured.sigma_y / sqrt(2)
        images: Tensor = sampler(measured.kspace, measured.operator, sigma_y, noise, conditions, start)
        return images if settings.trust == 0 else measured.agreeing(images, settings.trust)


def shared_estimate(
    sampler: PosteriorSampler,
    measured: Measurements,
    conditions: Tensor | None = None,
    settings: AmortisedSettings | None = None,
) -> Tensor | None:
    """What all draws of a scan start from, ``(batch, y, x)``; None where the network was trained without it.

    More iterations of ``settings.warm`` than in training help where the network is out of its depth.
    """
    settings = settings or AmortisedSettings()
    scan = measured.kspace, measured.operator, measured.sigma_y / sqrt(2)
    with torch.no_grad(), _precision(sampler, settings):
        return sampler.estimate(*scan, conditions, settings.warm)


@contextmanager
def _precision(sampler: PosteriorSampler, settings: AmortisedSettings) -> Iterator[None]:
    """The network in bfloat16 for a while, where that is asked for; the physics never."""
    if not settings.bfloat16:
        yield
        return
    before, sampler.denoiser.autocast = sampler.denoiser.autocast, True
    try:
        yield
    finally:
        sampler.denoiser.autocast = before


def sparse_change(measured: Measurements, mean: Tensor, settings: AmortisedSettings) -> Tensor:
    """What `l1_wavelet` makes of the samples that an image leaves unexplained, ``(batch, y, x)``, for all its draws.

        d = argmin 1/2 |A d - (y - A m)|^2 + strength |Psi d|_1,   the image is then m + d

    The idea of a prior image and a sparse difference is that of PICCS (Chen, Tang and Leng 2008, Med. Phys. 35:660). It
    helps where the network is out of its depth; elsewhere it brings back noise of the samples.

    Args:
        measured: y, A and the noise of each item.
        mean: m, of the draws ``(batch, y, x)``.
        settings: iterations, of which few do, factor and floor of the strength.
    """
    operator = measured.operator
    left = measured.kspace - operator.forward(mean)
    strength = l1_strength(measured.sigma_y, settings.factor, settings.floor)
    shifts = torch_generator("agree")
    return l1_wavelet(operator, left, strength=strength, iterations=settings.agree, generator=shifts)
