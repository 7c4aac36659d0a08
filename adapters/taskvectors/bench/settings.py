"""What a benchmark runs, decided before it starts."""

from dataclasses import dataclass, field
from pathlib import Path

from taskvectors.bench.machine import has_gpu
from taskvectors.checkpoint import CONFIG, read_json
from taskvectors.errors import TaskVectorError

SCENARIOS = ("memory", "decode", "prefill", "flat", "activation", "ttft", "server")
SEED = 3


class InvalidBench(TaskVectorError):
    """A setting of the benchmark that cannot be run."""


@dataclass(frozen=True)
class Settings:
    """Options of a run; None where the device decides.

    batches: of the decode steps. steps: rounds in which each engine makes one step. dummy: random
    weights of the model's shape. memory: the share of a GPU for each engine. eager: without
    graphs and compilation, which vLLM uses by itself.
    """

    model: Path
    dtype: str | None = None
    batches: tuple[int, ...] | None = None
    steps: int | None = None
    scenarios: tuple[str, ...] = SCENARIOS
    dummy: bool = False
    memory: float | None = None
    threads: int = 1
    eager: bool = False
    seed: int = SEED
    quick: bool = False
    on_gpu: bool = field(default_factory=has_gpu)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.scenarios) - set(SCENARIOS)):
            raise InvalidBench(f"unknown scenario {unknown[0]!r}; choose {', '.join(SCENARIOS)}")
        numbers = [("steps", self.steps), ("threads", self.threads)]
        for name, number in [*numbers, *(("a batch", batch) for batch in self.batches or ())]:
            if number is not None and number < 1:
                raise InvalidBench(f"{name} must be at least 1, not {number}")
        if not self.scenarios or self.batches == ():
            raise InvalidBench("nothing to measure; name at least one scenario and one batch")
        if self.memory is not None and not 0 < self.memory <= 1:
            raise InvalidBench(f"memory must be a share above 0, up to 1, not {self.memory:g}")
        if not (self.model / CONFIG).is_file():
            raise InvalidBench(
                f"{self.model} has no {CONFIG}; give the folder of a Hugging Face model"
            )

    @property
    def value_dtype(self) -> str:
        """Of the engines."""
        return self.dtype or ("bfloat16" if self.on_gpu else "float32")

    @property
    def decode_batches(self) -> tuple[int, ...]:
        """Ascending."""
        if self.batches is not None:
            return tuple(sorted(set(self.batches)))
        return (1, 16) if self.quick else (1, 16, 64, 128) if self.on_gpu else (1, 16, 64)

    @property
    def rounds(self) -> int:
        """Of decode steps."""
        return self.steps or (6 if self.quick else 100 if self.on_gpu else 24)

    @property
    def many(self) -> int:
        """Distinct loadouts, or adapters of stock, in one batch."""
        return 32 if self.on_gpu else 16

    @property
    def prefill_tokens(self) -> int:
        """Of one prompt."""
        return min(2048 if self.on_gpu else 512, self.max_model_len - 1)

    @property
    def prefill_rounds(self) -> int:
        """Prompts for each engine."""
        return 3 if self.quick else 9

    @property
    def flat_batch(self) -> int:
        """Requests side by side."""
        return 64 if self.quick else 256

    @property
    def flat_rounds(self) -> int:
        """Rounds in which every number of loadouts has its turn."""
        return 3 if self.quick else 5

    @property
    def activations(self) -> int:
        """Loadouts and adapters to make ready."""
        return 5 if self.quick else 20

    @property
    def pairs(self) -> int:
        """First tokens of a loadout that is new and of one that is not."""
        return 10 if self.quick else 80

    @property
    def max_model_len(self) -> int:
        """Tokens of a request: as the model can, at most 2049 here."""
        longest = read_json(self.model / CONFIG).get("max_position_embeddings")
        return min(2049, longest) if isinstance(longest, int) and longest > 1 else 2048
