"""Results as strict JSON that says what it was computed from and shows whether it was changed since."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.errors import InputError
from rsdmri.files import write_text
from rsdmri.metrics.haarpsi import HAARPSI_CONVENTION
from rsdmri.metrics.image import CONVENTION
from rsdmri.metrics.intervals import INTERVAL

_OTHERS = {
    "haarpsi": HAARPSI_CONVENTION,
    "nrmse_complex": "of complex volumes (reconstruction_complex in both files), one phase of each slice fitted",
    "coverage_90": "share of the object (above 0.1 of the target's 99th percentile) within quantile_05..quantile_95",
    "held_out_residual": "of the reconstruction's file: mean over slices, 1 where nothing but noise is left",
    "mean": "over volumes; two_std is twice their sample standard deviation",
    "interval": INTERVAL,
    "sha256": "of each file; that of the result is of its JSON without it, keys sorted, no white space",
}


def signed(result: Mapping[str, Any]) -> dict[str, Any]:
    """``result`` with convention, versions, note and its own hash."""
    whole = {
        **result,
        "convention": {**CONVENTION, **_OTHERS},
        "versions": _versions(),
        "note": RESEARCH_ONLY,
    }
    return {**whole, "sha256": signature(whole)}


def signature(result: Mapping[str, Any]) -> str:
    """Sha256 of a result without its ``sha256``, as it stands in JSON: ``result["sha256"]`` unless it was changed."""
    bare = {name: value for name, value in result.items() if name != "sha256"}
    text = json.dumps(finite(bare), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_metrics(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Write ``result`` as strict JSON, atomically; an infinite PSNR (equal volumes) becomes ``null``."""
    path = Path(path)
    if path.is_dir():
        path = path / "metrics.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(finite(result), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror}); choose another") from None


def finite(value: Any) -> Any:
    """``value`` with None for each number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("numpy", "scikit-image", "h5py")}
    return {"rsdmri": __version__, **packages, "python": platform.python_version()}
