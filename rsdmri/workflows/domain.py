"""What a prior is told of its training scans, and whether a scan is like them."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rsdmri.data.dataset import TrainingSlices
from rsdmri.data.derived import contrast
from rsdmri.data.remote import name_of
from rsdmri.data.scan import Scan
from rsdmri.diffusion.acquisitions import Acquisitions
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.physics.prepare import scale_slice
from rsdmri.priors import Prior
from rsdmri.reconstruction.domain import DomainStatistics, fit_statistics, slice_features
from rsdmri.runtime import numpy_generator, torch_generator
from rsdmri.workflows.slices import scan_noise

OutOfDomain = Literal["fallback", "warn"]
FALLBACK = "l1-wavelet"

_MOST_TRAINING, _MOST_NOISIER, _MOST_SLICES = 1024, 256, 16  # slices of statistics and of a verdict, at most
_LEAST_LINES = 4


def domain_facts(
    slices: TrainingSlices, bank: Acquisitions, say: Callable[[str], None], further: float = 0.0
) -> dict[str, Any]:
    """Statistics of the training slices for ``config.json``, from acquired samples alone; empty where there are none.

    Also those with noise of ``further`` added per real number, which the posterior network sees, and with half and a
    quarter of that. Priors of images have none, nor has one of too few scans, after a line that says so.
    """
    if bank.maps is None:
        return {}
    group = slices.commonest()
    count = min(len(group), _MOST_TRAINING)
    chosen = sorted(numpy_generator("domain", len(group)).choice(group, count, replace=False).tolist())
    refs = [slices.slices[item] for item in chosen]
    lines = min(masks.acs_lines(ref.mask) for ref in refs)
    lines = min(lines, max(_LEAST_LINES, refs[0].file.x // 8))
    try:
        stated = {ref.contrast for ref in refs}
        known = sorted(stated) if all(contrast(name) == name for name in stated) else ()
        scans = [name_of(ref.path) for ref in refs]
        found = fit_statistics(*_features(slices, chosen, lines, 0), scans, lines, known)
    except InputError as error:
        say(f"the prior will not know its domain: {error}")
        return {}
    step, noisier = math.ceil(count / _MOST_NOISIER), []
    for level in (further / part for part in (4, 2, 1) if further > 0):
        with suppress(InputError):  # nothing is left to see
            noisier.append(
                fit_statistics(*_features(slices, chosen[::step], lines, level), scans[::step], lines, known)
            )
    return {"domain": replace(found, noisier=noisier).to_dict()}


def _features(slices: TrainingSlices, items: Sequence[int], lines: int, level: float) -> tuple[np.ndarray, float]:
    """Features (slice, F) with noise of ``level`` per real number added, and the median noise that there is then."""
    found, noise = [], []
    for item in items:
        kspace, mask, sigma_y = slices.scaled(item)
        if level > 0:
            kspace = kspace + torch.where(mask, level * unit_noise(kspace, torch_generator("domain", item, level)), 0)
            sigma_y = math.hypot(sigma_y, math.sqrt(2) * level)
        found.append(slice_features(kspace, mask, sigma_y, lines))
        noise.append(sigma_y)
    return np.stack(found), float(np.median(noise))


def domain_verdict(prior: Prior, scan: Scan, mask: Tensor) -> tuple[str | None, str | None, float | None]:
    """Why ``scan``, acquired under ``mask``, is foreign to the prior, why that is not known, and its distance.

    The first is None where it is not foreign, the second where it was found out; the distance is the median over at
    most 16 slices, None where it was not found.
    """
    if "domain" not in prior.meta:
        return None, "not checked whether the scan is like the training data: the prior holds no statistics", None
    statistics = DomainStatistics.from_dict(prior.meta["domain"])
    noise = scan_noise(scan, mask)
    seen, levels = [], []
    for index in np.unique(np.linspace(0, len(scan.kspace) - 1, _MOST_SLICES).round().astype(int)):
        kspace = torch.where(mask, torch.from_numpy(scan.kspace[index]), 0)
        if not bool((kspace != 0).any()):
            continue
        try:
            scaled = scale_slice(kspace, mask, noise=noise)
            seen.append(slice_features(*scaled, statistics.lines))
        except InputError as error:
            return None, f"not checked whether the scan is like the training data: {error}", None
        levels.append(scaled[2])
    if not seen:
        return statistics.verdict([], contrast(scan.acquisition)), None, None
    statistics = statistics.at(float(np.median(levels)))
    distances = [statistics.distance(features) for features in seen]
    return statistics.verdict(distances, contrast(scan.acquisition)), None, float(np.median(distances))


def chosen_method(
    method: str, prior: Prior | None, scan: Scan, mask: Tensor, out_of_domain: OutOfDomain
) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """Method that ``scan`` is reconstructed with, warnings, attributes: another one where it is foreign to the prior.

    Raises:
        InputError: ``out_of_domain`` is none of fallback, warn.
    """
    if out_of_domain not in ("fallback", "warn"):
        raise InputError(f"out_of_domain {out_of_domain!r}: expected fallback or warn")
    if prior is None:
        return method, (), {}
    foreign, unknown, distance = domain_verdict(prior, scan, mask)
    attrs: dict[str, Any] = {} if distance is None else {"domain_distance": distance}
    if unknown is not None:
        return method, (unknown,), attrs
    if foreign is None:
        return method, (), attrs
    attrs |= {"out_of_domain": foreign}
    if out_of_domain == "warn":
        return method, (f"outside what the prior knows: {foreign}; the image may look right and be wrong",), attrs
    line = f"outside what the prior knows: {foreign}; reconstructed with {FALLBACK} instead of {method}"
    return FALLBACK, (line,), attrs | {"method_asked": method}


def prior_warnings(scan: Scan, mask: Tensor, prior: Prior | None) -> tuple[str, ...]:
    """Where the scan is unlike what the prior was trained on."""
    if prior is None:
        return ()
    notes = []
    trained, here = prior.bank.shape, scan.kspace.shape[-2:]
    if trained != here:
        notes.append(f"the prior was trained on {trained[0]} x {trained[1]} images, this scan is {here[0]} x {here[1]}")
    usual = prior.config.acquisition.acceleration
    achieved = masks.achieved_acceleration(mask, torch.as_tensor(scan.absent))
    if not 0.6 < achieved / usual < 1.6:
        notes.append(f"the prior was trained at acceleration {usual:g}, this scan has {achieved:.2f}")
    return tuple(notes)
