"""The task vectors that the experiments start from."""

from functools import cache
from pathlib import Path

import numpy as np
from skills import SKILLS

from taskvectors.checkpoint import Checkpoint, fingerprint
from taskvectors.delta import DenseDelta
from taskvectors.format import read_vector
from taskvectors.vector import BaseInfo, TaskVector


class Library:
    """Skills from files, and full fine-tunes as the difference of two checkpoints.

    Each vector is read once and kept.
    """

    def __init__(self, base: Path, vectors: Path, full: Path) -> None:
        self._base, self._vectors, self._full = base, vectors, full
        self.skill = cache(self._read_skill)
        self.full = cache(self._subtract)

    @property
    def skills(self) -> list[str]:
        """In the order of the demonstration."""
        return list(SKILLS)

    def path(self, name: str) -> Path:
        """The file of one skill."""
        return self._vectors / f"{name}.safetensors"

    def _read_skill(self, name: str) -> TaskVector:
        return read_vector(self.path(name))

    def _subtract(self, name: str) -> TaskVector:
        """Every parameter that training changed, as a dense float32 delta."""
        base, finetuned = Checkpoint.open(self._base), Checkpoint.open(self._full / name)
        deltas = {}
        for parameter in base.shapes:
            before = base.read(parameter)
            difference = finetuned.read(parameter).astype(np.float32) - before
            if difference.any():
                deltas[parameter] = DenseDelta(difference)
        return TaskVector(BaseInfo(self._base.name, fingerprint(self._base)), deltas)
