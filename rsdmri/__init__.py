"""rsdmri: generative priors for accelerated MRI, learnt from undersampled k-space alone.

Research use only, not for diagnosis.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
RESEARCH_ONLY = "Research use only, not for diagnosis."

if TYPE_CHECKING:
    from rsdmri.priors import load_prior as load_prior
    from rsdmri.workflows.reconstruct import load_scan as load_scan
    from rsdmri.workflows.reconstruct import reconstruct as reconstruct

__all__ = ["RESEARCH_ONLY", "__version__", "load_prior", "load_scan", "reconstruct"]

_PUBLIC = {
    "load_prior": "rsdmri.priors",
    "load_scan": "rsdmri.workflows.reconstruct",
    "reconstruct": "rsdmri.workflows.reconstruct",
}


def __getattr__(name: str) -> Any:
    """Load the public functions on first use, so that ``import rsdmri`` stays light."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'rsdmri' has no attribute {name!r}")
