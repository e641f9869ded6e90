"""Reconstructions scored against targets by fastMRI's convention, and methods compared over the same volumes."""

from rsdmri.evaluation.comparison import compare
from rsdmri.evaluation.matching import Selection
from rsdmri.evaluation.record import signature, write_metrics
from rsdmri.evaluation.scoring import METRICS, Metric, evaluate, evaluate_files
from rsdmri.evaluation.tables import format_comparison, format_table

__all__ = [
    "METRICS",
    "Metric",
    "Selection",
    "compare",
    "evaluate",
    "evaluate_files",
    "format_comparison",
    "format_table",
    "signature",
    "write_metrics",
]
