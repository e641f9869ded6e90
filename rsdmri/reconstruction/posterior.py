"""Reconstruction with a trained prior: the network proposes, the measured samples decide.

All methods work per item and take any matrix size. A draw of an item depends on its own random stream alone, so that
several draws of a slice are simply several items of a batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rsdmri.diffusion.acquisitions import coil_part
from rsdmri.diffusion.denoiser import Denoiser, given
from rsdmri.diffusion.sample import item_noise
from rsdmri.errors import InputError
from rsdmri.priors import Prior
from rsdmri.reconstruction.adps import adps
from rsdmri.reconstruction.amortised import amortised
from rsdmri.reconstruction.consistency import Measurements
from rsdmri.reconstruction.latent import fit_latent
from rsdmri.reconstruction.proximal import diffpir, proximal
from rsdmri.reconstruction.settings import (
    AdpsSettings,
    AmortisedSettings,
    DiffpirSettings,
    DrawSettings,
    LatentSettings,
    MethodSettings,
    Network,
    OneStepSettings,
    ProximalSettings,
    method_settings,
)


def ambient_one_step(
    prior: Prior,
    measured: Measurements,
    conditions: Tensor | None = None,
    settings: OneStepSettings | None = None,
) -> Tensor:
    """Estimate E[x | y] by one evaluation, D(A^H y, M, s), then data consistency.

    s is the noise level of the data, but at least ``level``, at whose default briefly trained teachers did best (NRMSE
    0.220 at 0.1 to 0.2 against 0.230 at 0.005, simulated heads at R = 4).

    Args:
        prior: its denoiser is used.
        measured: y, A and the noise of each item.
        conditions: of the scans, see `Prior.conditions`; None: nothing is known.
        settings: level and trust.
    """
    settings = settings or OneStepSettings()
    denoiser, operator = given(prior.denoiser, conditions), measured.operator
    with torch.no_grad():
        zero_filled = operator.adjoint(measured.kspace)
        estimate = denoiser(zero_filled, operator, measured.sigma_y.clamp_min(settings.level))
        return measured.agreeing(estimate, settings.trust)


def draw(
    prior: Prior,
    measured: Measurements,
    *,
    settings: DrawSettings,
    generators: Sequence[torch.Generator],
    start: Tensor | None = None,
    conditions: Tensor | None = None,
    mirrored: Sequence[bool] = (),
) -> Tensor:
    """One draw of each item, complex64 ``(batch, y, x)``, by the method whose ``settings`` these are.

    Args:
        prior: its denoiser or generator is used.
        measured: y, A and the noise of each item.
        settings: of `adps`, `diffpir`, `proximal`, `fit_latent` or `amortised`.
        generators: random stream of each item.
        start: image that a draw starts from, where ``settings.start`` names one, or the `shared_estimate` of variant
            ``amortised``; None: 0, and that estimate is made.
        conditions: of the scans, see `Prior.conditions`; None: nothing is known.
        mirrored: items of variant ``amortised`` whose noise is that of their stream times -1; empty: none.
    """
    coil_noise = prior.bank.coil_noise
    begin = measured.blank if start is None else start
    match settings:
        case AdpsSettings():
            return adps(
                given(prior.denoiser, conditions),
                measured,
                sigma_data=float(prior.denoiser.sigma_data),
                generators=generators,
                settings=settings,
                coil_noise=coil_noise,
                sigma_min=prior.bank.sigma_y,
            )
        case DiffpirSettings():
            denoiser = given(_network(prior, settings.network), conditions)
            return diffpir(
                denoiser, measured, start=begin, generators=generators, settings=settings, coil_noise=coil_noise
            )
        case ProximalSettings():
            denoiser = given(_network(prior, settings.network), conditions)
            return proximal(
                denoiser, measured, start=begin, generators=generators, settings=settings, coil_noise=coil_noise
            )
        case LatentSettings():
            return _latent(prior, measured, settings, generators, start, conditions)
        case AmortisedSettings():
            return amortised(
                prior.posterior,
                measured,
                generators=generators,
                settings=settings,
                conditions=conditions,
                start=start,
                mirrored=mirrored,
            )
        case _:
            raise ValueError(f"settings: expected those of a method that draws, got {type(settings).__name__}")


def chosen_settings(method: str, options: Mapping[str, Any] | None, prior: Prior | None) -> MethodSettings:
    """`method_settings`; of rsd without a ``variant`` those of ``amortised`` where ``prior`` has its network.

    That is the variant that measured best (recipes/reconstruction); ``options`` that only another one has ask for the
    usual ``proximal``.
    """
    given = dict(options or {})
    known = given.keys() <= AmortisedSettings.model_fields.keys()
    if method == "rsd" and known and prior is not None and prior.has_posterior:
        given = {"variant": "amortised", **given}
    return method_settings(method, given)


def weights_digest(prior: Prior, settings: MethodSettings) -> str:
    """What names the weights that a reconstruction with ``settings`` hangs on: their sha256, of both where two do."""
    if isinstance(settings, AmortisedSettings):
        return f"{prior.digest} {prior.posterior.digest}"
    return prior.digest


def _latent(
    prior: Prior,
    measured: Measurements,
    settings: LatentSettings,
    generators: Sequence[torch.Generator],
    start: Tensor | None,
    conditions: Tensor | None,
) -> Tensor:
    generator = prior.generator
    if generator is None:
        raise InputError("--prior: has no one-step generator for variant latent; finish rsdmri train, or use proximal")
    operator = measured.operator
    noise = coil_part(operator, item_noise(generators)(operator.maps)) if prior.bank.coil_noise else None
    fit = fit_latent(
        lambda latents: generator(latents, operator, noise, conditions),
        measured,
        sigma_init=generator.sigma_init,
        generators=generators,
        start=start,
        settings=settings,
    )
    return fit.images


def _network(prior: Prior, name: Network) -> Denoiser:
    if name == "teacher":
        return prior.denoiser
    if prior.generator is None:
        raise InputError("network=generator: this prior has no one-step generator; finish rsdmri train, or use teacher")
    return prior.generator.denoiser
