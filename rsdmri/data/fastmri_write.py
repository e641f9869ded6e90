"""Writing fastMRI-shaped HDF5: scans, and reconstructions in the submission form."""

import os
from collections.abc import Mapping

import h5py
import numpy as np

from rsdmri import RESEARCH_ONLY
from rsdmri.data.fastmri_header import format_header
from rsdmri.data.scan import Header
from rsdmri.files import atomic_path

PathLike = str | os.PathLike[str]


def write_reconstruction(
    path: PathLike,
    volume: np.ndarray,
    *,
    std: np.ndarray | None = None,
    quantiles: np.ndarray | None = None,
    undetermined: np.ndarray | None = None,
    attrs: Mapping[str, object] | None = None,
) -> None:
    """Write magnitudes in fastMRI's submission form: data set ``reconstruction``, attributes, maps of uncertainty.

    These are ``std`` and ``quantile_05``, ``quantile_50``, ``quantile_95``, in the units of the reconstruction; the
    last three are the ends and the median of the band that should hold 90 %. Attributes ``quantile_estimator``,
    ``interval_factor`` and ``interval_source`` of the file say how they came about, see `rsdmri.Reconstruction`.

    Args:
        path: file to write, replaced atomically.
        volume: (slice, h, w) real, written as float32.
        std: standard deviation of each pixel over posterior samples, the shape of ``volume``.
        quantiles: (3, slice, h, w), ascending.
        undetermined: share of the magnitude around each pixel that samples do not determine, the shape of ``volume``.
        attrs: file attributes; the research-only note is always added.
    """
    arrays = {"reconstruction": volume} | ({} if std is None else {"std": std})
    if quantiles is not None:
        arrays |= dict(zip(("quantile_05", "quantile_50", "quantile_95"), quantiles, strict=True))
    arrays |= {} if undetermined is None else {"undetermined": undetermined}
    for name, array in arrays.items():
        if array.ndim != 3 or array.shape != volume.shape or np.iscomplexobj(array):
            raise ValueError(f"{name}: expected real (slice, h, w) like the volume, got {array.dtype} {array.shape}")
    _write(path, {name: np.asarray(array, np.float32) for name, array in arrays.items()}, attrs)


def write_scan(
    path: PathLike,
    kspace: np.ndarray,
    *,
    target: np.ndarray | None = None,
    emulated: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    header: Header | None = None,
    attrs: Mapping[str, object] | None = None,
) -> None:
    """Write a scan as fastMRI lays it out, uncompressed and contiguous.

    Args:
        path: file to write, replaced atomically.
        kspace: (slice, coil, y, x), or (slice, y, x) single-coil; written as complex64.
        target: (slice, h, w), written as ``reconstruction_rss``.
        emulated: (slice, h, w) image of an emulated coil, written as ``reconstruction_esc``.
        mask: acquired positions, (x,) or (y, x); written as 0 and 1.
        header: geometry, written as ``ismrmrd_header``.
        attrs: file attributes such as ``acquisition``; the research-only note is always added.
    """
    if kspace.ndim not in (3, 4):
        raise ValueError(f"kspace: expected (slice, coil, y, x) or (slice, y, x), got {kspace.shape}")
    arrays: dict[str, object] = {"kspace": np.asarray(kspace, np.complex64)}
    if header is not None:
        arrays["ismrmrd_header"] = np.bytes_(format_header(header))
    if target is not None:
        arrays["reconstruction_rss"] = np.asarray(target, np.float32)
    if emulated is not None:
        arrays["reconstruction_esc"] = np.asarray(emulated, np.float32)
    if mask is not None:
        arrays["mask"] = np.asarray(mask, bool).astype(np.uint8)
    _write(path, arrays, attrs)


def _write(path: PathLike, arrays: Mapping[str, object], attrs: Mapping[str, object] | None) -> None:
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        for name, value in {**(attrs or {}), "note": RESEARCH_ONLY}.items():
            file.attrs[name] = value
