"""Reconstruction of scans: acquired samples in, images, scores and their provenance out."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsdmri.data import sandbox
from rsdmri.data.dataset import MaskLaw
from rsdmri.data.derived import digest
from rsdmri.data.scan import Scan
from rsdmri.data.stack import cut_geometry
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.physics.noise import whiten, whitening_matrix
from rsdmri.physics.prepare import prepare_slice
from rsdmri.physics.sense import sense
from rsdmri.priors import Prior, load_prior, newest_prior
from rsdmri.reconstruction.held_out import check_share
from rsdmri.reconstruction.posterior import chosen_settings
from rsdmri.reconstruction.settings import AmortisedSettings, MethodSettings, method_settings
from rsdmri.runtime import prepare_process, select_device
from rsdmri.workflows.coil_maps import with_calibration, with_maps
from rsdmri.workflows.domain import OutOfDomain, chosen_method, prior_warnings
from rsdmri.workflows.result import Reconstruction, provenance, score
from rsdmri.workflows.slices import SliceWork, scan_noise
from rsdmri.workflows.trust import Trust, UndeterminedMaps, checked

METHODS = ("rsd", "adps", "diffpir", "ambient-one-step", "sense", "l1-wavelet", "tv", "zero-filled")
LEARNT = METHODS[:4]
DRAWN = METHODS[:3]

_LEAST_ACS = 4  # lines that coil maps need


def load_scan(
    path: str | os.PathLike[str],
    trust: bool = False,
    *,
    variable: str | None = None,
    axes: str | None = None,
    frame: int | None = None,
    keep_oversampling: bool = False,
) -> Scan:
    """Read a scan from a file of any format; `InputError` says in one line what is wrong with it.

    Args:
        path: fastMRI, ISMRMRD, BART, NumPy, MATLAB, CMRxRecon, SKM-TEA or Siemens twix; its content says which.
        trust: parse the file in this process, about 0.2 s faster, and not in a child process with limits
            (`rsdmri.data.sandbox`).
        variable: name of the array that holds the k-space, where there are several.
        axes: names of its axes, such as ``y x coil slice``, where the file does not say.
        frame: time frame, echo or repetition, from 0.
        keep_oversampling: leave the readouts of scanner files as long as they were measured.
    """
    reading = {"variable": variable, "axes": axes, "frame": frame, "keep_oversampling": keep_oversampling}
    return sandbox.load_scan(path, trust=trust, **reading)


def reconstruct(
    scan: Scan | str | os.PathLike[str],
    *,
    method: str = "rsd",
    prior: Prior | str | os.PathLike[str] | None = None,
    acceleration: float | None = None,
    samples: int = 8,
    seed: int = 0,
    device: str = "auto",
    mask: str = "random",
    center_fraction: float | None = None,
    maps: str | os.PathLike[str] | None = None,
    calibration: Scan | str | os.PathLike[str] | None = None,
    map_sets: int = 1,
    held_out: float | None = None,
    out_of_domain: OutOfDomain = "fallback",
    trust: bool = False,
    options: Mapping[str, Any] | None = None,
    advance: Callable[[int], None] = lambda slices: None,
) -> Reconstruction:
    """Reconstruct a scan from its acquired samples.

    Noise covariance, coil maps and scale come from the acquired samples alone. A fully sampled scan is reconstructed
    from all of its data; with ``acceleration`` from a part, and scored against the full scan, which no method sees.

    Args:
        scan: a record from `load_scan`, or a file.
        method: one of `METHODS`.
        prior: for the learnt methods; None takes the newest finished run under ``runs/``.
        acceleration: R at which a fully sampled scan is undersampled, one mask for all slices.
        samples: posterior draws of `DRAWN` methods; their mean is the image, their spread is ``std``.
        seed: of mask, wavelet shifts and draws.
        device: ``auto``, or a torch device; that of the prior if one is given as an object.
        mask, center_fraction: family of the mask (`rsdmri.physics.masks.FAMILIES`); share in the ACS, None: `MaskLaw`.
        maps: file of coil maps to use, see `rsdmri.data.maps`; None: from the scan itself.
        calibration: a separate scan of the same coils and field of view whose centre gives the coil maps.
        map_sets: 2 for objects wider than the field of view: a second set of maps for what lies on one another.
        held_out: share of acquired lines, such as 0.1, to check a second reconstruction with; doubles the time.
        out_of_domain: ``fallback``: scans unlike the training data are reconstructed by l1-wavelet, or ``warn`` alone.
        trust: read files in this process, see `load_scan`.
        options: settings of the method by name, see `rsdmri.reconstruction.settings`.
        advance: called with the number of slices after each batch.

    Raises:
        InputError: one line on the argument or file that cannot be used.
    """
    check_arguments(method, samples, options, held_out)
    _check_sets(map_sets, method, given=maps is not None or calibration is not None)
    network, target_device = _prior_and_device(method, prior, device)
    scan = _with_coils(scan if isinstance(scan, Scan) else load_scan(scan, trust), maps, calibration, trust)
    started = time.monotonic()
    used, law = _used_mask(scan, acceleration, mask, center_fraction, seed)
    chosen, warnings, facts = chosen_method(method, network, scan, used, out_of_domain)
    settings = chosen_settings(chosen, options if chosen == method else None, network)
    sets, learnt = None if map_sets == 1 else map_sets, network if chosen in LEARNT else None
    unseen = None if held_out is None else UndeterminedMaps(scan)
    work = SliceWork(scan, used, chosen, learnt, samples, seed, target_device, sets, settings, unseen)
    work.run(advance)
    facts["seconds_per_slice"] = (time.monotonic() - started - work.watched) / len(work.volume)
    return _finished(work, law, network, checked(work, held_out, unseen), warnings, facts)


def _prior_and_device(
    method: str, prior: Prior | str | os.PathLike[str] | None, device: str
) -> tuple[Prior | None, torch.device]:
    prepare_process()
    network = chosen_prior(prior, device) if method in LEARNT else None
    return network, select_device(device) if network is None else network.device


def _used_mask(
    scan: Scan, acceleration: float | None, family: str, center_fraction: float | None, seed: int
) -> tuple[Tensor, MaskLaw | None]:
    """Positions to reconstruct from, and the law of those that are left out, if any."""
    if acceleration is None and (family, center_fraction) != ("random", None):
        raise InputError("--mask, --center-fraction: they say which lines --acceleration leaves; give it, too")
    law = None if acceleration is None else _mask_law(scan, acceleration, family, center_fraction, seed)
    used = torch.as_tensor(np.array(scan.mask))
    used = used if law is None else used & law.draw(scan.kspace.shape[-1], f"{scan.name}.h5", 0)
    _check_acs(scan, used, acceleration)
    return used, law


def _check_sets(sets: int, method: str, *, given: bool) -> None:
    if sets not in (1, 2):
        raise InputError(f"--map-sets {sets}: must be 1 or 2")
    if sets == 2 and method in LEARNT:
        raise InputError(f"--map-sets 2: {method} takes one set of maps; use --method l1-wavelet, tv or sense")
    if sets == 2 and given:
        raise InputError("--map-sets 2: the second set comes from the scan itself; leave --maps and --calibration out")


def _with_coils(
    scan: Scan,
    maps: str | os.PathLike[str] | None,
    calibration: Scan | str | os.PathLike[str] | None,
    trust: bool,
) -> Scan:
    """The scan with coil maps from elsewhere, where asked for."""
    if maps is not None and calibration is not None:
        raise InputError("--maps and --calibration both give coil maps; leave one out")
    if maps is not None:
        return with_maps(scan, maps, trust=trust)
    if calibration is not None:
        return with_calibration(scan, calibration if isinstance(calibration, Scan) else load_scan(calibration, trust))
    return scan


def _finished(
    work: SliceWork,
    law: MaskLaw | None,
    network: Prior | None,
    trust: Trust,
    warnings: tuple[str, ...],
    facts: dict[str, Any],
) -> Reconstruction:
    """The result of ``work`` with its scores and provenance, ``facts`` among it."""
    scan = work.scan
    target, scores, scored, notes = score(scan, work.volume, law is not None)
    attrs = {
        **provenance(scan, work.mask, law, work.method, network),
        "scale": work.scale,
        "sigma_y": work.sigma_y,
        "noise_source": work.noise.source,
        "noise_floor": work.noise.rss_limit,
        "samples": work.samples,
        "settings": work.settings.model_dump_json(),
        "evaluations": _evaluations(work),
        "seed": work.seed,
        "source_sha256": digest(scan.kspace),
        **_sampler_facts(work),
        **facts,
        **trust.attrs,
        **({} if scores is None else scores),
    }
    return Reconstruction(
        name=scan.name,
        volume=work.volume,
        std=work.std,
        quantiles=trust.quantiles,
        complex_images=work.images,
        mask=work.mask.numpy(),
        scale=work.scale,
        sigma_y=work.sigma_y,
        target=target,
        scores=scores,
        scored=scored,
        attrs=attrs,
        warnings=(
            scan.warnings
            + work.warnings()
            + prior_warnings(scan, work.mask, network)
            + warnings
            + trust.warnings
            + notes
        ),
        geometry=None if scan.geometry is None else cut_geometry(scan.geometry, scan.kspace.shape[-2:], scan.crop),
        header=scan.header,
        acquisition=scan.acquisition,
        held_out=trust.check,
        undetermined=trust.undetermined,
    )


def _evaluations(work: SliceWork) -> int:
    """Network evaluations of one image."""
    if work.prior is not None and isinstance(work.settings, AmortisedSettings):
        return work.prior.posterior.evaluations(work.samples)
    return work.settings.evaluations * work.samples


def _sampler_facts(work: SliceWork) -> dict[str, str]:
    if work.prior is None or not isinstance(work.settings, AmortisedSettings):
        return {}
    return {"posterior_sha256": work.prior.posterior.digest}


def reference_images(scan: Scan, law: MaskLaw) -> np.ndarray:
    """Images (S, y, x) complex64 of a fully sampled scan, in the scaled units of a prior trained under ``law``.

    Scale and coil maps come from each slice's samples under the law's mask, as in training; the images from all.
    """
    noise = scan_noise(scan, law.draw(scan.kspace.shape[-1], f"{scan.name}.h5", 0))
    whitening = whitening_matrix(noise.covariance)
    images = np.empty((len(scan.kspace), *scan.kspace.shape[-2:]), np.complex64)
    for index, kspace in enumerate(torch.from_numpy(scan.kspace)):
        width = kspace.shape[-1]
        mask = law.draw(width, f"{scan.name}.h5", index)
        item = prepare_slice(kspace, mask, noise=noise, centre=law.centre(width))
        acquired = torch.from_numpy(np.array(scan.mask))
        images[index] = sense(item.maps, acquired).adjoint(whiten(kspace, whitening) / item.scale).numpy()
    return images


def check_arguments(
    method: str, samples: int, options: Mapping[str, Any] | None = None, held_out: float | None = None
) -> MethodSettings:
    """Settings of ``method``; `InputError` for a method, draws, ``options`` or share of lines that cannot be."""
    if held_out is not None:
        check_share(held_out)
    if method not in METHODS:
        raise InputError(f"--method {method}: expected one of {', '.join(METHODS)}")
    if samples < 1:
        raise InputError(f"--samples {samples}: must be at least 1")
    try:
        return method_settings(method, options)
    except InputError:
        if method == "rsd" and "variant" not in (options or {}) and options:  # a prior may have the other network
            with suppress(InputError):
                return method_settings(method, {"variant": "amortised", **options})
        raise


def chosen_prior(prior: Prior | str | os.PathLike[str] | None, device: str) -> Prior:
    """The prior itself, or the one in that folder, or the newest finished one; `InputError` for one without coils."""
    found = prior if isinstance(prior, Prior) else load_prior(newest_prior() if prior is None else Path(prior), device)
    if found.bank.maps is None:
        raise InputError(
            f"--prior: trained on images without coil maps ({found.config.objective}, {found.config.corruption.kind}), "
            "it can be sampled but reconstructs no k-space; give one of teacher.objective ambient or fourier-ambient, "
            "or --method l1-wavelet"
        )
    if not found.denoises:
        raise InputError(
            f"--prior: trained without a teacher ({found.config.prior.objective}), it can be sampled but has no "
            "denoiser to reconstruct with; give a distilled one, or --method l1-wavelet"
        )
    return found


def _mask_law(scan: Scan, acceleration: float, family: str, center_fraction: float | None, seed: int) -> MaskLaw:
    """How the fully sampled ``scan`` is undersampled, checked."""
    if scan.prospective:
        achieved = masks.achieved_acceleration(torch.as_tensor(np.array(scan.mask)), torch.as_tensor(scan.absent))
        raise InputError(f"already undersampled, R={achieved:.2f}; leave --acceleration out")
    width = scan.kspace.shape[-1]
    masks.check_acceleration(width, acceleration, center_fraction or 0)
    law = MaskLaw(family, acceleration, center_fraction, seed=seed)
    masks.check_acceleration(width, acceleration, law.fraction(width))
    return law


def _check_acs(scan: Scan, mask: Tensor, acceleration: float | None) -> None:
    """`InputError` where undersampling leaves a centre too small for coil maps."""
    _, coils, _, width = scan.kspace.shape
    lines = masks.acs_lines(mask)
    if acceleration is None or lines >= _LEAST_ACS or (lines > 0 and (coils == 1 or scan.maps is not None)):
        return
    raise InputError(
        f"acceleration {acceleration:g}: leaves {lines} centre (ACS) lines of {width}, coil maps need {_LEAST_ACS}; "
        f"use at most {width / (2 * _LEAST_ACS):g}, or a larger center fraction"
    )
