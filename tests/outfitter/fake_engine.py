"""A stand-in for vLLM's API server: what the gateway does around it is tested without a model.

Real vLLM behind the gateway is exercised in tests/end_to_end. This one serves the same socket and
routes, starts a child that outlives its parent (as vLLM's EngineCore would), and does what the
prompt says: echo, stream, flood, hang, fall ill, die, die midway, or fail in one of vLLM's shapes.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator

from aiohttp import web

CHILD = "import time; time.sleep(600)"
PROPERTIES = {"model": {}, "prompt": {}, "messages": {}, "stream": {}, "min_tokens": {}}
STAMP = {"system_fingerprint": "vllm-0.32.0-0a1b2c3d"}
SEEN: dict[str, int] = {"aborted": 0, "ill": 0, "flooded": 0}


async def complete(request: web.Request) -> web.StreamResponse:
    try:
        return await answer(request)
    except (asyncio.CancelledError, ConnectionError):
        SEEN["aborted"] += 1
        raise


async def answer(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    prompt = body.get("prompt") or body["messages"][-1]["content"]
    if prompt == "hang":
        await asyncio.sleep(600)
    if prompt.startswith("sleep "):
        await asyncio.sleep(float(prompt.split()[1]))
    if prompt == "fall ill":
        SEEN["ill"] = 1
    if prompt == "die":
        os._exit(7)
    if prompt in ERRORS:
        status, fields = ERRORS[prompt](body["model"])
        return web.Response(status=status, text=fields, content_type="application/json")
    if body.get("stream"):
        return await stream(request, body, prompt)
    seen = {"body": body, "headers": dict(request.headers), **SEEN}
    text = json.dumps(seen) if prompt == "echo" else f'said "model":"{body["model"]}"'
    fields = completion(body["model"], text, prompt)
    return web.Response(text=fields, content_type="application/json")


async def stream(request: web.Request, body: dict, prompt: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    if prompt == "flood":
        await flood(response, body)
    for event in events(request.path, body, prompt):
        for start in range(0, len(event), 7):
            await response.write(event[start : start + 7])
            await asyncio.sleep(0)
        if b'"role"' in event:
            continue
        if prompt == "die midway":
            os._exit(7)
        if prompt == "hang midway":
            await asyncio.sleep(600)
        if prompt == "slowly":
            await asyncio.sleep(0.3)
        if prompt == "fail midway" and b"three" in event:
            error = {"error": {"message": f"no {body['model']}", "type": "X", "code": 500}}
            await response.write(b"data: " + json.dumps(error).encode() + b"\n\n")
            break
    await response.write(b"data: [DONE]\n\n")
    return response


async def flood(response: web.StreamResponse, body: dict) -> None:
    """As many events as the other end takes."""
    event = b"data: " + chunk("/v1/completions", body["model"], "x" * 1000).encode() + b"\n\n"
    while True:
        await response.write(event)
        SEEN["flooded"] += len(event)


def events(path: str, body: dict, prompt: str) -> Iterator[bytes]:
    """A stream as vLLM 0.32 writes it, usage included where it is asked for.

    Its fingerprint stands in the usage, and without one in the last event of each choice.
    """
    options = body.get("stream_options") or {}
    asked = bool(options.get("include_usage"))
    is_continuous = asked and bool(options.get("continuous_usage_stats"))
    model, words = body["model"], ("one", f'"model":"{body["model"]}"', "three")
    if path == "/v1/chat/completions":
        yield event(chunk(path, model, "", usage(prompt, 0) if is_continuous else None))
    for count, word in enumerate(words, 1):
        is_last = count == len(words)
        told = usage(prompt, count) if is_continuous else None
        yield event(chunk(path, model, word, told, is_last=is_last, is_stamped=not asked))
    if asked:
        told = {**usage(prompt, len(words)), "prompt_tokens_details": {"cached_tokens": 1}}
        fields = {**head(path, model), "choices": [], "usage": told, **STAMP}
        yield event(json.dumps(fields, separators=(",", ":")))


def event(fields: str) -> bytes:
    return b"data: " + fields.encode() + b"\n\n"


def chunk(
    path: str,
    model: str,
    word: str,
    told: dict | None = None,
    *,
    index: int = 0,
    is_last: bool = False,
    is_stamped: bool = False,
) -> str:
    """One event; without a word, that with which a chat begins."""
    choice: dict = {"index": index, "text": word}
    if path == "/v1/chat/completions":
        delta = {"content": word} if word else {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta}
    choice |= {"logprobs": None, "finish_reason": "stop" if is_last else None}
    fields = {**head(path, model), "choices": [choice]}
    if told is not None:
        fields["usage"] = told
    if is_last and is_stamped:
        fields |= STAMP
    return json.dumps(fields, separators=(",", ":"))


def head(path: str, model: str) -> dict:
    is_chat = path == "/v1/chat/completions"
    kind = "chat.completion.chunk" if is_chat else "text_completion"
    return {"id": "cmpl-1", "object": kind, "created": 1, "model": model}


def usage(prompt: str, completion: int) -> dict:
    """A word is a token."""
    asked = len(prompt.split())
    return {
        "prompt_tokens": asked,
        "total_tokens": asked + completion,
        "completion_tokens": completion,
    }


def completion(model: str, text: str, prompt: str) -> str:
    choices = [{"index": 0, "text": text, "finish_reason": "stop"}]
    told = {**usage(prompt, len(text.split())), "prompt_tokens_details": {"cached_tokens": 1}}
    fields = {**head("/v1/completions", model), "choices": choices, "usage": told}
    return json.dumps(fields, separators=(",", ":"))


ERRORS = {
    "vllm error": lambda model: (
        400,
        json.dumps({"error": {"message": f"bad {model}", "type": "BadRequestError", "code": 400}}),
    ),
    "detail error": lambda model: (422, json.dumps({"detail": "no such thing"})),
    "bare error": lambda model: (401, json.dumps({"error": "Unauthorized"})),
    "text error": lambda model: (500, "Internal Server Error at /tmp/outfitter-x/engine.sock"),
}


async def openapi(request: web.Request) -> web.Response:
    schemas = {
        name: {"properties": PROPERTIES} for name in ("ChatCompletionRequest", "CompletionRequest")
    }
    return web.json_response({"components": {"schemas": schemas}})


STATS = {
    "tiers": {
        "memory": {
            "hits": 3,
            "misses": 1,
            "errors": 0,
            "corrupt": 0,
            "evictions": 0,
            "read_bytes": 5,
            "written_bytes": 7,
            "seconds": 0.5,
            "nbytes": 7,
            "budget": 70,
            "is_up": True,
        }
    },
    "placement": {
        "decisions": {"composed": 5, "few_requests": 7},
        "compositions": 1,
        "failures": 2,
        "requests": 5,
        "loadouts": 1,
    },
    "pool": {"vectors": 2, "nbytes": 9, "budget": 90, "loads": 4, "evictions": 1, "waiting": 0},
    "load_seconds": {"count": 4, "sum": 0.25},
}
PREFETCHED: list[dict] = []


async def stats(request: web.Request) -> web.Response:
    return web.json_response({**STATS, "prefetched": PREFETCHED})


async def prefetch(request: web.Request) -> web.Response:
    body = await request.json()
    PREFETCHED.append(body)
    return web.json_response({"states": dict.fromkeys(body["digests"], "ready")})


PROMOTED: dict = {"loadout": None}


async def promotion(request: web.Request) -> web.Response:
    if request.method == "DELETE":
        PROMOTED["loadout"] = None
    elif request.method == "POST":
        PROMOTED["loadout"] = (await request.json())["loadout"]
    if '"weight":3.25' in (PROMOTED["loadout"] or ""):
        PROMOTED["loadout"] = None
        error = {"message": "no memory", "code": "promotion_too_large", "param": "task_vectors"}
        return web.json_response({"error": error}, status=507)
    return web.json_response({**PROMOTED, "asked": request.query_string})


METRICS = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 7.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="base-model"} 3.0
# HELP vllm:prefix_cache_hits_total Prefix cache hits, in terms of number of cached tokens.
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="base-model"} 40.0
# HELP vllm:prefix_cache_hits_created Prefix cache hits, in terms of number of cached tokens.
# TYPE vllm:prefix_cache_hits_created gauge
vllm:prefix_cache_hits_created{engine="0",model_name="base-model"} 1.7e+09
# HELP vllm:lora_requests_info Running stats on lora requests.
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="8",running_lora_adapters="tv:0a",waiting_lora_adapters=""} 1.7e+09
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="base-model"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="base-model"} 2.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="base-model"} 2.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="base-model"} 0.5
"""


async def metrics(request: web.Request) -> web.Response:
    return web.Response(text=METRICS, content_type="text/plain")


async def health(request: web.Request) -> web.Response:
    return web.Response(status=503 if SEEN["ill"] else 200)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--uds")
    parser.add_argument("--pids")
    parser.add_argument("--fail", action="store_true")
    args, _ = parser.parse_known_args()
    if args.fail:
        sys.exit(3)
    child = subprocess.Popen([sys.executable, "-S", "-c", CHILD], start_new_session=True)
    if args.pids:
        with open(args.pids, "a") as file:
            file.write(f"{os.getpid()} {child.pid}\n")
    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/openapi.json", openapi)
    app.router.add_get("/taskvectors/stats", stats)
    app.router.add_post("/taskvectors/prefetch", prefetch)
    app.router.add_route("*", "/taskvectors/promotion", promotion)
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    for path in ("/tokenize", "/v1/load_lora_adapter"):
        app.router.add_route("*", path, health)
    print("fake engine started", flush=True)
    web.run_app(app, path=args.uds, print=None, handler_cancellation=True)


if __name__ == "__main__":
    main()
