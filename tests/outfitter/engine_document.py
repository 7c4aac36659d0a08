"""What a real vLLM serves, written down for the stand-in.

Written by `python -m tests.outfitter.engine_document`. `paths` and `components` are those of the
engine that `outfitter serve` starts for a text model, cut down to what the gateway reads; `routes`
are all that vLLM can have: with every task, in its development mode, and with LoRA files loaded at
run time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

PATH = Path(__file__).with_name("engine_document.json")
EVERYTHING = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_TORCH_PROFILER_DIR": "/nowhere",
}
TASKS = ("generate", "transcription", "realtime", "embed", "score", "classify", "token_embed")


def document() -> dict:
    """The engine's OpenAPI document, and its routes as `[method, path]`."""
    return json.loads(PATH.read_text())


def _app(tasks: tuple[str, ...], *flags: str) -> object:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.openai.api_server import build_app
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", "x", *flags])
    return build_app(args, tasks)


def _routes(app: object) -> list[list[str]]:
    found = {(m, r.path) for r in app.routes for m in (getattr(r, "methods", None) or ["GET"])}
    return sorted(map(list, found))


def _cut(schema: object) -> object:
    """A schema without its texts and bounds."""
    kept = ("$ref", "anyOf", "oneOf", "items", "properties", "type")
    if isinstance(schema, list):
        return [_cut(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    cut = {key: value for key, value in schema.items() if key in kept}
    if isinstance(cut.get("properties"), dict):
        properties = {name: _cut(entry) for name, entry in cut["properties"].items()}
        return {**{k: _cut(v) for k, v in cut.items()}, "properties": properties}
    return {key: _cut(value) for key, value in cut.items()}


def _describe() -> dict:
    whole = _app(("generate",)).openapi()
    paths = {
        path: {
            method: {"requestBody": {"content": {kind: {"schema": _cut(entry["schema"])}}}}
            for method, operation in methods.items()
            for kind, entry in operation.get("requestBody", {"content": {"-": {"schema": {}}}})[
                "content"
            ].items()
        }
        for path, methods in whole["paths"].items()
    }
    schemas = {name: _cut(schema) for name, schema in whole["components"]["schemas"].items()}
    return {"paths": paths, "components": {"schemas": schemas}}


if __name__ == "__main__":
    if "--routes" in sys.argv:
        print("routes:" + json.dumps(_routes(_app(TASKS, "--enable-fault-tolerance"))))
        sys.exit()
    command = [sys.executable, "-m", "tests.outfitter.engine_document", "--routes"]
    asked = subprocess.run(
        command, env={**os.environ, **EVERYTHING}, check=True, capture_output=True, text=True
    )
    line = next(line for line in asked.stdout.splitlines() if line.startswith("routes:"))
    found = {**_describe(), "routes": json.loads(line.removeprefix("routes:"))}
    PATH.write_text(json.dumps(found, separators=(",", ":"), sort_keys=True) + "\n")
