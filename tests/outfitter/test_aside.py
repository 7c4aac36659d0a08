"""A large body is read beside the event loop, and others are answered meanwhile."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from outfitter.aside import AT_ONCE_BYTES
from outfitter.routes import openai
from tests.outfitter.harness import make_config, running


def test_others_go_on_while_a_large_body_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is answered, too; a small one is not handed to a thread."""
    begun, may_go_on, where = threading.Event(), threading.Event(), []
    parse = openai.parse_body

    def slowly(raw: bytes) -> dict[str, object]:
        where.append(threading.current_thread().name)
        if len(raw) > AT_ONCE_BYTES:
            begun.set()
            assert may_go_on.wait(60)
        return parse(raw)

    monkeypatch.setattr(openai, "parse_body", slowly)
    config = make_config(tmp_path, max_body_bytes=2**20)
    with (
        running(config) as gateway,
        gateway.client as client,
        ThreadPoolExecutor(1) as other,
    ):
        gateway.wait_ready()

        def ask(prompt: str) -> int:
            body = {"model": "base-model", "prompt": prompt}
            return client.post("/v1/completions", json=body).status_code

        large = other.submit(ask, "x" * AT_ONCE_BYTES)
        assert begun.wait(60)
        assert ask("hi") == 200
        may_go_on.set()
        assert large.result() == 200
        assert client.post("/v1/completions", content=b"{" * 2**19).status_code == 400
    assert [name.startswith("bodies") for name in where] == [True, False, True]
