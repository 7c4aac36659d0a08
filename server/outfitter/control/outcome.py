"""What became of a request that was relayed: what is counted, charged and logged. Pure."""

from dataclasses import dataclass

from outfitter.control.experiments.exposure import Exposure
from outfitter.control.principal import Principal

CLIENT_LEFT = 499
"""The status of a request whose client did not wait for the answer; nobody is sent it."""


@dataclass
class Outcome:
    """One relayed request, filled in while it is served.

    model: the name that the client sent, a saved loadout or the base. loadout: as in the header,
    `base` or `sha256:…`. began, first_token, last_token, ended: seconds on the monotonic clock; the
    tokens' only of a stream. status: of the answer; that of a stream's error event if it ended with
    one, 499 if the client left. code: of the error, if it was one of ours. charged: tokens that it
    was taken for when its turn came, None if that never did. estimate: tokens of its prompt,
    charged at sent_at, Unix time, when it went to the engine. num_events: those of a stream that
    brought tokens. tokens are what the engine counted; for a stream that was cut the events seen,
    and where the client left, the estimate of the prompt.
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
    last_token: float | None = None
    ended: float | None = None
    status: int = 0
    code: str | None = None
    charged: float | None = None
    estimate: int = 0
    sent_at: float = 0.0
    num_events: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    exposure: Exposure | None = None
    """The variant that served it; None where the model was no experiment."""
    finish_reason: str | None = None
    """Why the answer ended, in OpenAI's words; looked for only where there is an exposure."""
    is_recorded: bool = False
    """Whether its experiment has its event."""

    @property
    def is_error(self) -> bool:
        """Whether the client did not get what it asked for, and had not left."""
        return self.status >= 400 and self.status != CLIENT_LEFT

    @property
    def seconds(self) -> float | None:
        """From the request's arrival to its end."""
        return None if self.ended is None else self.ended - self.began

    @property
    def first_token_seconds(self) -> float | None:
        """From the request's arrival to the first token of a stream."""
        return None if self.first_token is None else self.first_token - self.began

    @property
    def inter_token_seconds(self) -> float | None:
        """The mean from one event of a stream to the next; None where there were fewer than two."""
        if self.first_token is None or self.last_token is None or self.num_events < 2:
            return None
        return (self.last_token - self.first_token) / (self.num_events - 1)

    @property
    def saved_name(self) -> str | None:
        """The name of the saved loadout, without its version."""
        return None if self.saved_model is None else self.saved_model.partition("@")[0]


@dataclass
class InFlight:
    """How many relayed requests there are now, and how many of them have begun to stream."""

    requests: int = 0
    streams: int = 0
