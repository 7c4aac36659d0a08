"""The routes of OpenAI's API, and of vLLM and Anthropic, that can be relayed. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class Dialect(StrEnum):
    """How a route's stream and its errors are written."""

    OPENAI = "openai"
    """`data:` lines; an error is an object with `error`."""
    RESPONSES = "responses"
    """Named events; the model is in `response`."""
    ANTHROPIC = "anthropic"
    """Named events; the model is in `message`, and errors have `type` at the top."""


@dataclass(frozen=True)
class Route:
    """A POST route with a JSON body that names a model.

    engine_path: the engine's, where it differs. is_tokens: the answer depends on the tokenizer
    only, so no loadout is needed. needs_model: false where clients may leave the model out, which
    means the base.
    """

    path: str
    summary: str
    engine_path: str = ""
    dialect: Dialect = Dialect.OPENAI
    is_tokens: bool = False
    needs_model: bool = True

    @property
    def target(self) -> str:
        """The path that the engine is asked."""
        return self.engine_path or self.path


def _tokens(path: str, summary: str, engine_path: str = "") -> Route:
    return Route(path, summary, engine_path, is_tokens=True, needs_model=False)


ROUTES = (
    Route("/v1/chat/completions", "A chat completion, streamed or not."),
    Route("/v1/completions", "A text completion, streamed or not."),
    Route("/v1/responses", "A response, streamed or not.", dialect=Dialect.RESPONSES),
    Route("/v1/messages", "A message of Anthropic's API.", dialect=Dialect.ANTHROPIC),
    Route(
        "/v1/messages/count_tokens",
        "How many tokens a message of Anthropic's API has.",
        dialect=Dialect.ANTHROPIC,
        is_tokens=True,
    ),
    Route("/v1/embeddings", "Embeddings, where the model has them."),
    Route("/v1/score", "Scores of pairs of texts, where the model gives them."),
    Route("/score", "The same, as vLLM calls it."),
    Route("/v1/rerank", "Documents in the order of a query, where the model ranks."),
    Route("/v2/rerank", "The same, as Cohere calls it."),
    Route("/rerank", "The same, as vLLM calls it."),
    Route("/classify", "Classes of texts, where the model has them."),
    Route("/pooling", "What the model pools of texts, where it does."),
    _tokens("/tokenize", "The tokens of a text or of messages."),
    _tokens("/v1/tokenize", "The same.", "/tokenize"),
    _tokens("/detokenize", "The text of tokens."),
    _tokens("/v1/detokenize", "The same.", "/detokenize"),
)

NOT_OFFERED = {
    "/v1/audio/{rest:path}": "task vectors are of models that read and write text",
    "/v1/images/{rest:path}": "task vectors are of models that read and write text",
    "/v1/moderations": "no moderation model is served",
    "/v1/responses/{rest:path}": "responses are not stored here: keep what was answered",
    "/v1/files": "files are not kept here",
    "/v1/batches": "batches are not kept here: send the requests themselves",
    "/v1/fine_tuning/{rest:path}": "nothing is trained here: publish a task vector instead",
}
"""Parts of OpenAI's API that no client finds here, and why. Each is a path of a route."""

MODEL_HOLDERS: dict[Dialect, tuple[str, ...]] = {
    Dialect.OPENAI: (),
    Dialect.RESPONSES: ("response",),
    Dialect.ANTHROPIC: ("message",),
}
"""In which objects of an event the model's name is, beside the outermost."""


def dialect_of(path: str) -> Dialect:
    """How a client of this path expects an error to be written."""
    return next((route.dialect for route in ROUTES if route.path == path), Dialect.OPENAI)
