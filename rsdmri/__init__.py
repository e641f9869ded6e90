"""rsdmri: generative priors for accelerated MRI, learnt from undersampled k-space alone.

Research use only, not for diagnosis.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
RESEARCH_ONLY = "Research use only, not for diagnosis."

if TYPE_CHECKING:
    from rsdmri.workflows import load_prior as load_prior
    from rsdmri.workflows import load_scan as load_scan
    from rsdmri.workflows import reconstruct as reconstruct

__all__ = ["RESEARCH_ONLY", "__version__", "load_prior", "load_scan", "reconstruct"]


def __getattr__(name: str) -> Any:
    """Load the public functions on first use, so that ``import rsdmri`` stays light."""
    if name in ("load_prior", "load_scan", "reconstruct"):
        from rsdmri import workflows

        return getattr(workflows, name)
    raise AttributeError(f"module 'rsdmri' has no attribute {name!r}")
