"""An engine that is killed comes back, and nobody is left waiting."""

import asyncio
import time

import openai

from tests.end_to_end.conftest import START_TIMEOUT_S, Gateway
from tests.end_to_end.test_truth import gather


def test_a_killed_engine_comes_back(gateway: Gateway) -> None:
    """In-flight requests get an OpenAI-shaped error, plain or in the stream; then all is well."""

    async def run() -> tuple[object, object]:
        async with gateway.client() as client:
            endless = {"model": gateway.model, "prompt": "Count: 1 2 3", "max_tokens": 1500}
            body = {"ignore_eos": True, "task_vectors": {"sparse": 0.4}}
            plain = asyncio.create_task(client.completions.create(**endless, extra_body=body))
            stream = await client.completions.create(**endless, stream=True, extra_body=body)
            events = aiter(stream)
            await anext(events)
            for process in gateway.engine_processes():
                if "--uds" not in process.cmdline():
                    process.kill()

            async def drain() -> None:
                async for _ in events:
                    pass

            return await asyncio.gather(plain, drain(), return_exceptions=True)

    plain, streamed = asyncio.run(run())
    assert isinstance(plain, openai.InternalServerError), plain
    assert plain.type == "server_error"
    assert isinstance(streamed, openai.APIError), streamed
    deadline = time.monotonic() + START_TIMEOUT_S
    while gateway.get("/health/ready")[1].get("engine_restarts") != 1:
        assert time.monotonic() < deadline, "the engine was not started again"
        time.sleep(0.2)
    gateway.wait_until_ready()
    [answer] = gather(gateway, [("The capital of France is", {"sparse": 0.4})], tokens=2)
    assert answer.choices[0].text
