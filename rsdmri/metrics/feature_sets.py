"""The features that a user may choose, by name."""

from pathlib import Path

from rsdmri.errors import InputError
from rsdmri.metrics.features import Features
from rsdmri.metrics.magnitude_features import MagnitudeFeatures
from rsdmri.metrics.radiomics import RadiomicsFeatures

NAMES = "mr-magnitude-v1, radiomics, inception=PATH"


def select_features(text: str, device: str = "auto") -> Features:
    """Features called ``text``: ``mr-magnitude-v1``, ``radiomics``, or ``inception=PATH`` with a weights file.

    ``device`` is that of the network. `InputError` for other names, and where weights or library are missing.
    """
    name, _, path = text.partition("=")
    match name, bool(path):
        case "mr-magnitude-v1", False:
            return MagnitudeFeatures()
        case "radiomics", False:
            return RadiomicsFeatures()
        case "inception", True:
            from rsdmri.metrics.inception import InceptionFeatures

            return InceptionFeatures(Path(path), device)
        case "inception", False:
            raise InputError("features inception: needs its weights, which are never downloaded: inception=PATH")
        case _:
            raise InputError(f"features {text!r}: expected one of {NAMES}")
