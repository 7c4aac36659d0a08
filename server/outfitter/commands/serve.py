"""`outfitter serve`: the gateway with its engine, from start to the last drained request."""

import asyncio
import json
import logging
import resource
import shlex
import signal
import socket
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
import uvicorn
import uvloop
from rich.markup import escape
from rich.text import Text

from outfitter.app import create_app
from outfitter.commands.console import err
from outfitter.config import GatewayConfig, InvalidConfig, model_name, parse_size
from outfitter.deps import Hooks
from taskvectors.errors import TaskVectorError
from taskvectors.store import DirectoryStore

log = logging.getLogger(__name__)

BACKLOG = 2048
KEEP_ALIVE_S = 65
OPEN_FILES = 65536
"""Wished for: a request in flight takes two."""


def serve(
    model: Annotated[str, typer.Option(help="The base: a checkpoint folder, or a Hub repo id.")],
    store: Annotated[Path, typer.Option(help="The folder that keeps the task vectors.")],
    name: Annotated[str | None, typer.Option(help="Model name for clients.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    dtype: Annotated[
        str, typer.Option(help="Compute type: auto, float32, bfloat16, float16.")
    ] = "auto",
    slots: Annotated[int, typer.Option(help="Distinct loadouts that may run in one batch.")] = 64,
    pool_bytes: Annotated[
        str, typer.Option(help="Memory for resident task vectors, such as 512MiB.")
    ] = "2GiB",
    composed_bytes: Annotated[str, typer.Option(help="Disk for composed loadouts.")] = "8GiB",
    compose_memory: Annotated[
        str, typer.Option(help="Most memory for composing a loadout; two may be composed at once.")
    ] = "8GiB",
    max_upload_bytes: Annotated[str, typer.Option(help="Largest file to accept.")] = "4GiB",
    max_body_bytes: Annotated[str, typer.Option(help="Largest request to accept.")] = "32MiB",
    max_model_len: Annotated[int | None, typer.Option(help="Longest context in tokens.")] = None,
    drain_seconds: Annotated[
        int, typer.Option(help="How long running requests may finish when stopping.")
    ] = 30,
    engine_args: Annotated[
        list[str] | None, typer.Argument(help="After --: further arguments for vLLM.")
    ] = None,
) -> None:
    """Serve a base model with a different mix of task vectors for every request."""
    config = GatewayConfig(
        model=local_model(model),
        name=model_name(model, name),
        store=store,
        host=host,
        port=port,
        dtype=dtype,
        slots=slots,
        pool_bytes=parse_size(pool_bytes),
        composed_bytes=parse_size(composed_bytes),
        compose_memory_bytes=parse_size(compose_memory),
        max_upload_bytes=parse_size(max_upload_bytes),
        max_body_bytes=parse_size(max_body_bytes),
        max_model_len=max_model_len,
        model_as_given=model,
        drain_seconds=drain_seconds,
        engine_args=tuple(engine_args or ()),
    )
    raise typer.Exit(run(config))


def run(config: GatewayConfig, **hooks: Any) -> int:
    """Listen, serve until told to stop, drain; returns the exit status.

    `hooks` replaces fields of `Hooks`.
    """
    _exit_on_signals()
    if not config.is_loopback:
        warning = "there is no authentication: whoever reaches this port can use and change it"
        err.print(f"[bold red]WARNING[/] listening on {escape(config.host)}; {warning}")
    listener = listen(config)
    narrator = Narrator(config)
    options = uvicorn.Config(
        create_app(config, replace(narrator.hooks, **hooks)),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=config.drain_seconds,
    )
    server = narrator.server = uvicorn.Server(options)
    _allow_open_files()
    with narrator, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve([listener]))
    return 1 if narrator.has_failed else 0


class Narrator:
    """Tells the person at the terminal what happens, and stops the server when it cannot serve."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self.server: uvicorn.Server | None = None
        self.has_failed = False
        self._spinner = err.status("starting")
        self.hooks = Hooks(
            announce=self._announce,
            engine_log=self._engine_log,
            on_ready=self._on_ready,
            on_failure=self._on_failure,
        )

    def __enter__(self) -> "Narrator":
        self._spinner.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._spinner.stop()

    def _announce(self, text: str) -> None:
        self._spinner.update(escape(text))
        err.print(f"[bold cyan]outfitter[/] {escape(text)}", highlight=False, soft_wrap=True)

    def _engine_log(self, line: str) -> None:
        text = Text(f"engine | {line}", style="dim")
        err.print(text, highlight=False, soft_wrap=True)

    def _on_ready(self) -> None:
        self._announce(f"ready: {self._config.name} at {self._config.url}/v1")
        self._announce(f"try: {example(self._config)}")
        self._spinner.stop()

    def _on_failure(self, text: str) -> None:
        self.has_failed = True
        self._spinner.stop()
        err.print(f"[bold red]error[/] {escape(text)}", highlight=False, soft_wrap=True)
        if self.server is not None:
            self.server.should_exit = True


def example(config: GatewayConfig) -> str:
    """A curl line that works right now, with a task vector if the store has one."""
    names = _stored_names(config.store)
    question = {"role": "user", "content": "Tell me about tailors."}
    fields = {"model": config.name, "max_tokens": 40, "messages": [question]}
    body = json.dumps({**fields, "task_vectors": {names[0]: 1.0}} if names else fields)
    url = f"{config.url}/v1/chat/completions"
    return f"curl {url} -H 'content-type: application/json' -d {shlex.quote(body)}"


def _stored_names(store: Path) -> list[str]:
    try:
        return [entry.name for entry in DirectoryStore(store).entries()]
    except (TaskVectorError, OSError) as error:
        log.warning("the store cannot be listed: %s", error)
        return []


def listen(config: GatewayConfig) -> socket.socket:
    """The listening socket, bound before anything expensive starts; raises InvalidConfig."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InvalidConfig(f"cannot listen on {config.host}:{config.port}: {error}") from error


def local_model(model: str) -> Path:
    """The checkpoint folder: `model` itself, or its snapshot from the Hugging Face Hub."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or model.startswith(".") or model.count("/") > 1:
        raise InvalidConfig(f"unsupported --model {model!r}; there is no such folder")
    return _download(model)


def _download(repo: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    err.print(f"[bold cyan]outfitter[/] looking for {escape(repo)} on the Hugging Face Hub")
    patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        advice = "there is no such folder, and the Hugging Face Hub does not give it"
        raise InvalidConfig(f"unsupported --model {repo!r}; {advice}: {error}") from error


def _allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _exit_on_signals() -> None:
    """Make signals before and after uvicorn's own time end in an orderly exit."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(0 if number == signal.SIGTERM else 130)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
