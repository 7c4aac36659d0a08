"""What keeps a file beside the versions that name it."""

from outfitter.state.experiment_rows import ExperimentVectorRow
from outfitter.state.models import LoadoutVectorRow

KEPT = (LoadoutVectorRow.digest, ExperimentVectorRow.digest)
"""Columns: the digests that saved loadouts and experiments refer to."""
