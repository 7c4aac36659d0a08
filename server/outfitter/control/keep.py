"""How long the trail is kept. Pure."""

from dataclasses import dataclass

DAY_S = 86_400.0


@dataclass(frozen=True)
class Keep:
    """In seconds; None: for ever. uses: which key used which loadout. changes: who changed what."""

    uses: float | None = 90 * DAY_S
    changes: float | None = None
