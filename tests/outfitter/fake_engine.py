"""A stand-in for vLLM's API server: what the gateway does around it is tested without a model.

Real vLLM behind the gateway is exercised in tests/end_to_end. This one serves the same socket and
routes with vLLM's own OpenAPI document, starts a child that outlives its parent (as vLLM's
EngineCore would), and does what the prompt says: echo, stream, flood, hang, fall ill, die, die
midway, or fail in one of vLLM's shapes.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from aiohttp import web
from fake_shapes import SHAPES, Shape, dump, prompt_of, sse
from fake_streams import METRICS, chunk, events

CHILD = "import time; time.sleep(600)"
DOCUMENT = Path(__file__).with_name("engine_document.json")
SEEN: dict[str, int] = {"aborted": 0, "ill": 0, "flooded": 0}


async def complete(request: web.Request) -> web.StreamResponse:
    try:
        return await answer(request)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        fields = {"message": f"{error!r}", "type": "Bad Request", "param": None, "code": 400}
        return web.json_response({"error": fields}, status=400)  # as pydantic would see it
    except (asyncio.CancelledError, ConnectionError):
        SEEN["aborted"] += 1
        raise


async def answer(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    prompt = prompt_of(body)
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
    if prompt == "bytes":
        return web.Response(body=b'{"model":"x"}\x00', content_type="application/octet-stream")
    shape = SHAPES[request.path]
    if body.get("stream"):
        return await stream(request, body, prompt, shape)
    seen = {"body": body, "headers": dict(request.headers), **SEEN}
    text = json.dumps(seen) if prompt == "echo" else f'said "model":"{body["model"]}"'
    return web.Response(text=dump(shape.whole(body, text)), content_type="application/json")


async def stream(
    request: web.Request, body: dict, prompt: str, shape: "Shape"
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    if prompt == "flood":
        await flood(response, body)
    words = ("one", f'"model":"{body["model"]}"', "three")
    named = [*shape.begin(body), *(shape.part(body, word) for word in words)]
    plain = [*events(request.path, body, prompt), b"data: [DONE]\n\n"]
    for text in [sse(fields, True) for fields in named] if shape.is_named else plain:
        for start in range(0, len(text), 7):
            await response.write(text[start : start + 7])
            await asyncio.sleep(0)
        if b'"role"' in text and not shape.is_named:
            continue
        if prompt == "die midway":
            os._exit(7)
        if prompt == "hang midway":
            await asyncio.sleep(600)
        if prompt == "slowly":
            await asyncio.sleep(0.3)
        if prompt == "fail midway" and b"three" in text:
            error = {"message": f"no {body['model']}", "type": "X", "code": 500}
            failed = {"type": "error", "error": error} if shape.is_named else {"error": error}
            await response.write(sse(failed, shape.is_named))
            if not shape.is_named:
                await response.write(b"data: [DONE]\n\n")
                return response
    for event_ in shape.end(body):
        await response.write(sse(event_, shape.is_named))
    if prompt == "die at the end":
        os._exit(7)
    if prompt == "hang at the end":
        await asyncio.sleep(600)
    return response


async def flood(response: web.StreamResponse, body: dict) -> None:
    """As many events as the other end takes."""
    event = b"data: " + chunk("/v1/completions", body["model"], "x" * 1000).encode() + b"\n\n"
    while True:
        await response.write(event)
        SEEN["flooded"] += len(event)


ERRORS = {
    "vllm error": lambda model: (
        400,
        json.dumps({"error": {"message": f"bad {model}", "type": "BadRequestError", "code": 400}}),
    ),
    "detail error": lambda model: (422, json.dumps({"detail": "no such thing"})),
    "busy error": lambda model: (429, json.dumps({"error": {"message": "later"}})),
    "away error": lambda model: (503, json.dumps({"error": {"message": "later"}})),
    "bare error": lambda model: (401, json.dumps({"error": "Unauthorized"})),
    "text error": lambda model: (500, "Internal Server Error at /tmp/outfitter-x/engine.sock"),
}


async def openapi(request: web.Request) -> web.Response:
    return web.Response(text=DOCUMENT.read_text(), content_type="application/json")


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
    for path in SHAPES:
        app.router.add_post(path, complete)
    app.router.add_get("/openapi.json", openapi)
    app.router.add_get("/taskvectors/stats", stats)
    app.router.add_post("/taskvectors/prefetch", prefetch)
    app.router.add_route("*", "/taskvectors/promotion", promotion)
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    for path in ("/sleep", "/v1/load_lora_adapter"):
        app.router.add_route("*", path, health)
    print("fake engine started", flush=True)
    web.run_app(app, path=args.uds, print=None, handler_cancellation=True)


if __name__ == "__main__":
    main()
