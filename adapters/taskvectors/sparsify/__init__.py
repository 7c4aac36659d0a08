"""Which entries of a task vector to keep: pure functions of supports, the same on any machine.

A *support* is `index`: int64 [n], strictly ascending within a parameter of `numel` elements, and
`values`: float32 [n]; every other element is zero.
"""

from taskvectors.sparsify.breadcrumbs import BandPicker, breadcrumbs
from taskvectors.sparsify.dare import dare
from taskvectors.sparsify.della import check_epsilon, della
from taskvectors.sparsify.hashing import uniform
from taskvectors.sparsify.magnitude import top_k
from taskvectors.sparsify.summing import ordered_sum
from taskvectors.sparsify.threshold import Cut, Picker, Stream, Threshold, find_cut

__all__ = [
    "BandPicker",
    "Cut",
    "Picker",
    "Stream",
    "Threshold",
    "breadcrumbs",
    "check_epsilon",
    "dare",
    "della",
    "find_cut",
    "ordered_sum",
    "top_k",
    "uniform",
]
