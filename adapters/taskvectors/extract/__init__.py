"""From two checkpoints to a task vector file."""

from taskvectors.extract.difference import extract
from taskvectors.extract.report import ExtractReport, ParameterReport, Progress

__all__ = ["ExtractReport", "ParameterReport", "Progress", "extract"]
