"""Where a store's state is: options of `serve`, and the environment of commands on a store."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outfitter.config import GatewayConfig, check_state
from taskvectors.store.settings import TierSettings

if TYPE_CHECKING:
    from outfitter.vectors import Vectors

DATABASE_VARIABLE = "OUTFITTER_DATABASE_URL"
REDIS_VARIABLE = "OUTFITTER_REDIS_URL"
PREFIX_VARIABLE = "OUTFITTER_REDIS_PREFIX"
ORIGIN_VARIABLE = "OUTFITTER_ORIGIN_URL"
TRUST_VARIABLE = "OUTFITTER_TRUST"
LIMITS_VARIABLE = "OUTFITTER_LIMITS"
DEFAULT_PREFIX = TierSettings.redis_prefix

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        envvar=DATABASE_VARIABLE,
        help="The catalog: postgresql://… or sqlite:///…  [default: SQLite in the store]",
        show_default=False,
    ),
]
RedisOption = Annotated[
    str | None,
    typer.Option(envvar=REDIS_VARIABLE, help="Redis or Valkey that several servers share."),
]
PrefixOption = Annotated[
    str, typer.Option(envvar=PREFIX_VARIABLE, help="What every key in Redis starts with.")
]
OriginOption = Annotated[
    str | None,
    typer.Option(
        envvar=ORIGIN_VARIABLE, help="A folder that several servers share: s3://… or a path."
    ),
]


@dataclass(frozen=True)
class LocalStore:
    """A store's folder with the rest of its state, for commands that need no gateway.

    Raises InvalidConfig.
    """

    store: Path
    database_url: str | None = None
    tiers: TierSettings = field(default_factory=TierSettings)
    trust: Path | None = None

    def __post_init__(self) -> None:
        check_state(self.database_url, self.tiers)

    @classmethod
    def of(cls, store: Path, environment: Mapping[str, str] = os.environ) -> "LocalStore":
        """The store in a folder, with the database and tiers that the environment names."""
        tiers = TierSettings(
            redis_url=environment.get(REDIS_VARIABLE) or None,
            redis_prefix=environment.get(PREFIX_VARIABLE) or DEFAULT_PREFIX,
            origin_url=environment.get(ORIGIN_VARIABLE) or None,
        )
        trust = environment.get(TRUST_VARIABLE)
        database_url = environment.get(DATABASE_VARIABLE) or None
        return cls(store, database_url, tiers, Path(trust) if trust else None)

    def open(self) -> "Vectors":
        """Raises TaskVectorError, InvalidConfig, OSError."""
        from outfitter.vectors import open_vectors  # with a database's library, which takes long

        return open_vectors(
            self.store,
            database_url=self.database_url,
            tiers=self.tiers,
            trust=self.trust,
            quarantine_bytes=GatewayConfig.quarantine_bytes,
        )
