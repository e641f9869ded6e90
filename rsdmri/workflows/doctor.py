"""What is installed, what is missing, and how to get it."""

import os
import platform
import re
import shutil
from importlib import metadata, util
from pathlib import Path

from rsdmri import __version__
from rsdmri.runtime import select_device

Row = tuple[str, str, str]

_TOOLS = {
    "bart": "reference reconstructions; Debian package bart",
    "dciodvfy": "DICOM checks; Debian package dicom3tools",
}
_OPTIONAL = {
    "highdicom": ("parametric-map", "DICOM Parametric Maps"),
    "finufft": ("noncartesian", "radial, spiral and other trajectories"),
    "aiohttp": ("remote", "scans behind http(s) addresses"),
    "s3fs": ("remote", "scans in S3 stores"),
    "tensorboard": ("tensorboard", "event files of a training"),
    "deepinv": ("deepinv", "its operators here and ours there"),
    "mrpro": ("mrpro", "its operators here and ours there"),
    "diffusers": ("diffusers", "its U-Net as the backbone"),
    "monai": ("monai", "its U-Net as the backbone"),
}


def doctor() -> list[Row]:
    """Rows (item, value, verdict): Python, packages against their floors, device, HDF5, disk, anatomy, extras."""
    python = platform.python_version()
    rows: list[Row] = [
        ("rsdmri", __version__, "ok"),
        ("python", python, "ok" if (3, 11) <= _numbers(python)[:2] < (3, 14) else "needs 3.11 to 3.13"),
        ("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores", "ok"),
    ]
    rows += _packages() + _torch() + _files()
    rows += [_optional(name, extra, use) for name, (extra, use) in _OPTIONAL.items()]
    return rows + [_tool(name, use) for name, use in _TOOLS.items()]


def _packages() -> list[Row]:
    rows = []
    for requirement in metadata.requires("rsdmri") or []:
        match = re.match(r"([\w.\-]+)\s*>=\s*([\d.]+)", requirement)
        if match is None or "extra ==" in requirement:
            continue
        name, floor = match.groups()
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            rows.append((name, "-", f"missing: python -m pip install '{name}>={floor}'"))
            continue
        fine = _numbers(version) >= _numbers(floor)
        rows.append((name, version, "ok" if fine else f"old: python -m pip install '{name}>={floor}'"))
    return rows


def _torch() -> list[Row]:
    import torch

    device = select_device("auto")
    words = str(device) if device.type == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"
    return [
        ("device", words, "ok" if device.type != "cpu" else "ok, but training at full size wants a CUDA device"),
        ("threads", str(torch.get_num_threads()), "ok"),
        *((name, os.environ.get(name, "unset"), "ok") for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")),
    ]


def _files() -> list[Row]:
    import h5py

    free = shutil.disk_usage(Path.cwd()).free / 1e9
    anatomy = util.find_spec("nilearn") is not None
    if anatomy:
        from rsdmri.data.anatomy import load_atlas

        try:
            words, verdict = f"ICBM152, {' x '.join(map(str, load_atlas().shape[-3:]))}", "ok"
        except (OSError, ValueError) as error:
            words, verdict = "-", f"unreadable ({type(error).__name__}): reinstall nilearn"
    else:
        words, verdict = "-", "missing: python -m pip install nilearn"
    return [
        ("HDF5 library", h5py.version.hdf5_version, "ok"),
        ("disk", f"{free:.1f} GB free here", "ok" if free > 2 else "low: a run needs about 1 GB"),
        ("packaged anatomy", words, verdict),
    ]


def _optional(name: str, extra: str, use: str) -> Row:
    try:
        return (name, metadata.version(name), "ok")
    except metadata.PackageNotFoundError:
        return (name, "-", f"not needed ({use}; python -m pip install 'rsdmri[{extra}]')")


def _tool(name: str, use: str) -> Row:
    found = shutil.which(name)
    return (name, "found" if found else "-", "ok" if found else f"not needed ({use})")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
