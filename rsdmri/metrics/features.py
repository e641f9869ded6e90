"""What turns images into numbers that distances are measured in, and the words that belong to every such distance."""

import hashlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsdmri.errors import InputError

Array = NDArray[np.float64]

_CONSTANT = 1e-6  # spread below this share of a feature's size, or of the largest spread of one around 0, is rounding


class Features(Protocol):
    """A set of image features; any object with these members may be used."""

    @property
    def name(self) -> str:
        """Name and version: other numbers need another name."""

    @property
    def dimensions(self) -> int:
        """Number of features of an image."""

    @property
    def preprocessing(self) -> str:
        """What the features are and what was done to the images, in words to be printed."""

    @property
    def standardise(self) -> bool:
        """Whether distances need features in units of the reference's spread, see `standardised`."""

    def __call__(self, magnitudes: ArrayLike) -> Array:
        """Features of magnitudes (n, y, x) in the package's units: (n, dimensions)."""


def checked_magnitudes(images: ArrayLike, *, smallest: int) -> NDArray[Any]:
    """``images`` as an array (n, y, x); `InputError` for complex or non-finite values, other ranks, too small sides."""
    x = np.asarray(images)
    if np.iscomplexobj(x):
        raise InputError("images: complex values; take the magnitude first")
    if x.ndim != 3 or min(x.shape[1:]) < smallest:
        raise InputError(f"images: expected (n, y, x) with sides of at least {smallest}, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise InputError("images: NaN or infinite values; leave those images out")
    return x


def standardised(features: ArrayLike, reference: ArrayLike) -> tuple[Array, Array]:
    """Both sets (n, d) as ``(f - mean) / std`` with the mean and standard deviation of ``reference``.

    Features that are constant in the reference are left out of both. `InputError` where none is left.
    """
    f, r = (np.asarray(x, dtype=np.float64) for x in (features, reference))
    mean, std = r.mean(0), r.std(0)
    varies = std > _CONSTANT * np.abs(r).max(0)
    if not varies.any():
        raise InputError(f"reference: the features of its {len(r)} images are all alike; use different images")
    return (f - mean)[:, varies] / std[varies], (r - mean)[:, varies] / std[varies]


def reference_hash(features: ArrayLike) -> str:
    """Sha256 of ``features`` (n, d) rounded to four decimals, in any order of the images; first 16 hex digits."""
    rounded = np.round(np.asarray(features, dtype=np.float64), 4) + 0.0  # no negative zeros
    rows = sorted(row.astype("<f8").tobytes() for row in rounded)
    return hashlib.sha256(b"".join(rows)).hexdigest()[:16]


def describe_features(kind: Features, samples: ArrayLike | None = None, reference: ArrayLike | None = None) -> str:
    """One line to print with every distance: the features, both counts and the hash of the reference's features."""
    text = f"features {kind.name} ({kind.dimensions}: {kind.preprocessing})"
    if kind.standardise:
        text += ", in units of the reference's spread"
    if samples is not None:
        text += f"; {len(np.asarray(samples))} samples"
    if reference is not None:
        text += f"; {len(np.asarray(reference))} reference images, sha256 {reference_hash(reference)}"
    return text
