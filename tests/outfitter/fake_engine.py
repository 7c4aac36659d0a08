"""A stand-in for vLLM's API server: what the gateway does around it is tested without a model.

Real vLLM behind the gateway is exercised in tests/end_to_end. This one serves the same socket and
routes, starts a child that outlives its parent (as vLLM's EngineCore would), and does what the
prompt says: echo, stream, hang, fall ill, die, die midway, or fail in one of vLLM's shapes.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys

from aiohttp import web

CHILD = "import time; time.sleep(600)"
PROPERTIES = {"model": {}, "prompt": {}, "messages": {}, "stream": {}, "min_tokens": {}}
PROPERTIES["cache_salt"] = {}
SEEN: dict[str, int] = {"aborted": 0, "ill": 0}


async def complete(request: web.Request) -> web.StreamResponse:
    try:
        return await answer(request)
    except asyncio.CancelledError:
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
    seen = {"body": body, "headers": dict(request.headers), "aborted": SEEN["aborted"]}
    text = json.dumps(seen) if prompt == "echo" else f'said "model":"{body["model"]}"'
    return web.Response(text=completion(body["model"], text), content_type="application/json")


async def stream(request: web.Request, body: dict, prompt: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for word in ("one", f'"model":"{body["model"]}"', "three"):
        event = b"data: " + completion(body["model"], word).encode() + b"\n\n"
        for start in range(0, len(event), 7):
            await response.write(event[start : start + 7])
            await asyncio.sleep(0)
        if prompt == "die midway":
            os._exit(7)
        if prompt == "hang midway":
            await asyncio.sleep(600)
        if prompt == "slowly":
            await asyncio.sleep(0.3)
    if prompt == "fail midway":
        error = {"error": {"message": f"no {body['model']}", "type": "X", "code": 500}}
        await response.write(b"data: " + json.dumps(error).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


def completion(model: str, text: str) -> str:
    fields = {"id": "cmpl-1", "object": "text_completion", "model": model}
    choices = [{"index": 0, "text": text, "finish_reason": "stop"}]
    return json.dumps({**fields, "choices": choices}, separators=(",", ":"))


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
    for path in ("/metrics", "/tokenize", "/v1/load_lora_adapter"):
        app.router.add_route("*", path, health)
    print("fake engine started", flush=True)
    web.run_app(app, path=args.uds, print=None, handler_cancellation=True)


if __name__ == "__main__":
    main()
