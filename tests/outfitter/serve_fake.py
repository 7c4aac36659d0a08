"""`outfitter serve` as its own process before the stand-in engine: ROOT PORT DRAIN [FLAGS]."""

import sys
from pathlib import Path

from outfitter.commands.serve import run
from outfitter.vectors import Base
from tests.outfitter.harness import FINGERPRINT, SHAPES, fake_command, make_config

if __name__ == "__main__":
    root = Path(sys.argv[1])
    config = make_config(root, port=int(sys.argv[2]), drain_seconds=int(sys.argv[3]))
    command = fake_command("--pids", str(root / "pids"), *sys.argv[4:])
    base = Base(FINGERPRINT, SHAPES)
    sys.exit(run(config, command=command, prepare_base=lambda config: base))
