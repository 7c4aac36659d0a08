"""The gateway under fire as its own process: ROOT PORT DATABASE_URL REDIS_URL, stand-in engine."""

import sys
from pathlib import Path

from outfitter.commands.serve import run
from outfitter.config import GatewayConfig
from outfitter.vectors import Base
from taskvectors.store.settings import TierSettings
from tests.outfitter.harness import FINGERPRINT, SHAPES, fake_command, make_config

MODEL = "base-model"
MAX_RUNNING, MAX_WAITING, MAX_WAIT_S = 48, 64, 10
DRAIN_S = 5
MAX_BODY_BYTES = 2**20


def config_of(root: Path, port: int, database_url: str, redis_url: str) -> GatewayConfig:
    """Few requests run and few may wait, so that the load meets both bounds."""
    return make_config(
        root,
        port=port,
        database_url=database_url,
        tiers=TierSettings(redis_url=redis_url, redis_prefix="fire"),
        auth="keys",
        max_running=MAX_RUNNING,
        max_waiting=MAX_WAITING,
        max_wait_s=float(MAX_WAIT_S),
        max_upload_bytes=2**26,
        max_body_bytes=MAX_BODY_BYTES,
        drain_seconds=DRAIN_S,
        access_log=False,
    )


if __name__ == "__main__":
    config = config_of(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5])
    base = Base(FINGERPRINT, SHAPES)
    sys.exit(run(config, command=fake_command(), prepare_base=lambda _: base))
