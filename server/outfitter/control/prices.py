"""What tokens cost. Pure."""

from dataclasses import dataclass

MILLION = 1e6


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, in whatever currency. cached: of prompts, where the cache had them."""

    prompt: float = 0.0
    cached: float = 0.0
    completion: float = 0.0

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
        """Of a request. cached_tokens: among those of the prompt."""
        fresh = prompt_tokens - cached_tokens
        told = fresh * self.prompt + cached_tokens * self.cached
        return (told + completion_tokens * self.completion) / MILLION
