"""What became of a request that was relayed: what is counted, charged and logged. Pure."""

from dataclasses import dataclass

from outfitter.control.principal import Principal


@dataclass
class Outcome:
    """One relayed request, filled in while it is served.

    model: the name that the client sent, a saved loadout or the base. loadout: as in the header,
    `base` or `sha256:…`. began, first_token, ended: seconds on the monotonic clock. status: of the
    answer; that of a stream's error event if it ended with one, 499 if the client left. tokens are
    what the engine counted, or for a stream that was cut the events seen.
    """

    request_id: str
    principal: Principal
    route: str
    model: str
    saved_model: str | None
    """The name and version of the saved loadout that served it; None for the base or an ad hoc
    mix."""
    loadout: str
    is_stream: bool
    began: float
    first_token: float | None = None
    ended: float | None = None
    status: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
