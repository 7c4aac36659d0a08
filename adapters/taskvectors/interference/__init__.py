"""Will these task vectors disturb each other? Figures per pair, layer and kind (advisory)."""

from taskvectors.interference.compare import compare
from taskvectors.interference.report import ADVICE, Figures, PairReport, Report, VectorFigures
from taskvectors.interference.subspace import Overlap

__all__ = [
    "ADVICE",
    "Figures",
    "Overlap",
    "PairReport",
    "Report",
    "VectorFigures",
    "compare",
]
