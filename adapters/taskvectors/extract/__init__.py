"""From two checkpoints to a task vector file, and back where nothing was left out."""

from taskvectors.extract.extraction import extract
from taskvectors.extract.report import ExtractReport, ParameterReport, Progress
from taskvectors.extract.restore import Restoration, restore
from taskvectors.extract.settings import METHODS, OPTIONS, SCOPES, InvalidExtraction
from taskvectors.extract.sizes import Size, size_of

__all__ = [
    "METHODS",
    "OPTIONS",
    "SCOPES",
    "ExtractReport",
    "InvalidExtraction",
    "ParameterReport",
    "Progress",
    "Restoration",
    "Size",
    "extract",
    "restore",
    "size_of",
]
