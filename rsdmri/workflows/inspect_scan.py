"""What a scan is: dimensions, geometry, sampling, noise, coil maps, and what to be careful about."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsdmri.data.scan import Scan
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.physics.classical import sense_cg, sense_strength
from rsdmri.physics.map_quality import map_quality
from rsdmri.physics.noise import NoiseEstimate, noise_level
from rsdmri.physics.prepare import PreparedSlice, prepare_slice
from rsdmri.physics.sense import sense
from rsdmri.privacy import personal_kinds
from rsdmri.runtime import prepare_process
from rsdmri.workflows.reconstruct import load_scan
from rsdmri.workflows.slices import scan_noise

Row = tuple[str, str]


def inspect_scan(path: Path, png: Path | None = None, *, trust: bool = False, **reading: Any) -> list[Row]:
    """Rows (what, value) that describe the scan ``path``; with ``png`` also a picture of its middle slice.

    ``reading`` are options of `load_scan`. Nothing personal is read or shown. `InputError` says what is wrong with a
    file that cannot be read.
    """
    prepare_process()
    scan = load_scan(path, trust, **reading)
    mask = torch.from_numpy(np.array(scan.mask))
    noise = scan_noise(scan, mask)
    rows = [*_dimensions(scan), *_sampling(scan, mask)]
    index = _index(scan)
    prepared = None
    try:
        prepared = prepare_slice(torch.from_numpy(scan.kspace[index]), mask, noise=noise)
        rows += [*_noise(noise, prepared), *_maps(prepared, index)]
    except InputError as error:
        rows += [*_noise(noise), ("coil maps", f"none: {error}")]
    if personal_kinds(path.stem):
        rows.append(("warning", f"the name of the file seems to hold {' and '.join(personal_kinds(path.stem))}"))
    rows += [("warning", warning) for warning in scan.warnings]
    if png is not None:
        _picture(scan, index, prepared, png)
        rows.append(("picture", str(png)))
    return rows


def _dimensions(scan: Scan) -> list[Row]:
    slices, coils, height, width = scan.kspace.shape
    header = scan.header
    rows = [
        ("scan", scan.name),
        ("k-space", f"{slices} slices, {coils} coils, {height} readout samples x {width} phase encodes"),
        ("image", f"{scan.crop[0]} x {scan.crop[1]}"),
        ("acquisition", scan.acquisition),
    ]
    if header is None:
        rows.append(("header", "none"))
    else:
        for name, value in (
            ("encoded", header.encoded),
            ("reconstructed", header.recon),
            ("field of view", header.fov_mm),
        ):
            unit = " mm" if name == "field of view" else ""
            words = " x ".join(f"{number:g}" for number in value) + unit if value else "not given"
            rows.append((f"header, {name}", words))
        if header.encoded and header.recon and header.encoded[0] > header.recon[0]:
            rows.append(("readout oversampling", f"{header.encoded[0] / header.recon[0]:.2g}"))
    target = f"{scan.target_source}, {' x '.join(map(str, scan.target.shape))}" if scan.target is not None else "none"
    return [*rows, ("full image in file", target)]


def _sampling(scan: Scan, mask: torch.Tensor) -> list[Row]:
    absent = torch.from_numpy(np.array(scan.absent))
    if scan.prospective:
        state = "already undersampled: reconstruct it as it is (no --acceleration)"
    else:
        state = "fully sampled: --acceleration R undersamples and scores it"
    rows = [("sampling", masks.describe(mask, absent)), ("", state)]
    if bool(absent.any()):
        rows.append(("absent", f"{int(absent.sum())} phase encodes outside the acquired range (padding)"))
    return rows


def _noise(noise: NoiseEstimate, prepared: PreparedSlice | None = None) -> list[Row]:
    rows = [("noise", str(noise).removeprefix("noise "))]
    if prepared is not None:
        level = f"sigma_y {prepared.sigma_y:.3g} of the bright tissue; peak signal to noise {prepared.scale:.3g}"
        rows.append(("noise level", level))
        if prepared.sigma_y > 0:
            measured = noise_level(prepared.kspace[None] / prepared.sigma_y, prepared.mask)
            rows.append(("whitened", str(measured).removeprefix("noise ")))
    return rows


def _maps(prepared: PreparedSlice, index: int) -> list[Row]:
    """What the coil maps cover and whether they explain the data, with the residual of the SENSE image."""
    operator = sense(prepared.maps[None], prepared.mask)
    kspace, strength = prepared.kspace[None], sense_strength(prepared.sigma_y)
    residual = operator.forward(sense_cg(operator, kspace, strength=strength)) - kspace
    samples = int(prepared.mask.expand(prepared.kspace.shape[-2:]).sum()) * prepared.kspace.shape[0]
    quality = map_quality(prepared.maps, prepared.kspace, masks.acs_block(prepared.mask), sigma_y=prepared.sigma_y)
    words = f"cover {100 * quality.coverage:.0f} % of slice {index + 1}"
    if prepared.sigma_y > 0 and samples:
        size = float(residual.abs().square().sum() / samples) ** 0.5 / prepared.sigma_y
        words += f"; residual of SENSE {size:.2f} noise levels"
    return [("coil maps", words), ("", quality.verdict)]


def _index(scan: Scan) -> int:
    """The middle slice, or the one with most energy where the middle is empty."""
    middle = len(scan.kspace) // 2
    if scan.kspace[middle].any():
        return middle
    return int(np.argmax([np.square(np.abs(kspace)).sum() for kspace in scan.kspace]))


def _picture(scan: Scan, index: int, prepared: PreparedSlice | None, png: Path) -> None:
    from rsdmri.report.figures import kspace_figure
    from rsdmri.report.png import save_png

    image = None
    if prepared is not None:
        operator = sense(prepared.maps[None], prepared.mask)
        image = sense_cg(operator, prepared.kspace[None], strength=sense_strength(prepared.sigma_y))[0].abs().numpy()
    figure = kspace_figure(
        scan.kspace[index],
        scan.mask,
        scan.absent,
        image=image,
        heading=f"{scan.name}, slice {index + 1} of {len(scan.kspace)}",
    )
    try:
        save_png(figure, png)
    except OSError as error:
        raise InputError(f"--png {png}: cannot be written ({error.strerror or error}); choose another path") from None
