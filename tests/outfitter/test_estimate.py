"""Before the engine has counted a prompt, its bytes tell about how long it is."""

import pytest

from outfitter.control.estimate import prompt_tokens


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, 0),
        ({"prompt": "a coat is warm and dry!!"}, 6),
        ({"prompt": "x"}, 1),
        ({"prompt": "żółw"}, 2),
        ({"prompt": [1, 2, 3]}, 3),
        ({"prompt": ["four", "four", [7, 8]]}, 4),
        ({"prompt": None, "max_tokens": 900, "stop": "x" * 400}, 0),
        ({"messages": [{"role": "user", "content": "x" * 36}]}, 10),
        ({"messages": [{"content": [{"type": "text", "text": "x" * 40}]}]}, 11),
        ({"messages": [{"content": [{"url": "data:image/png;base64," + "x" * 4000}]}]}, 0),
        ({"input": "x" * 8, "instructions": "x" * 8}, 4),
        ({"tools": [{"function": {"name": "x" * 16}}]}, 4),
        ({"prompt": "\ud800" * 8}, 2),
    ],
)
def test_a_token_is_four_bytes_or_a_number(body: dict[str, object], tokens: int) -> None:
    """Of all that the model reads; media count nothing."""
    assert prompt_tokens(body) == tokens
