"""`outfitter serve` as its own process before the stand-in: ROOT PORT UPSTREAM_PORT."""

import sys
from pathlib import Path

from outfitter.commands.serve import run
from outfitter.vectors import Base
from tests.benchmarks import upstream
from tests.outfitter.harness import FINGERPRINT, SHAPES, make_config

if __name__ == "__main__":
    config = make_config(Path(sys.argv[1]), port=int(sys.argv[2]), drain_seconds=2)
    base = Base(FINGERPRINT, SHAPES)
    command = [sys.executable, upstream.__file__, "--port", sys.argv[3], "--uds"]
    sys.exit(
        run(
            config,
            command=lambda config, uds, fingerprint: [*command, str(uds)],
            prepare_base=lambda config: base,
        )
    )
