"""`outfitter serve`: the gateway with its engine, from start to the last drained request."""

import asyncio
import logging
import os
import resource
import shlex
import signal
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
import uvicorn
import uvloop
from rich.markup import escape

from outfitter.app import create_app
from outfitter.commands.console import err
from outfitter.commands.listener import listen, server_config
from outfitter.commands.narrator import Narrator
from outfitter.commands.options import (
    DEFAULT_PREFIX,
    LIMITS_VARIABLE,
    TRUST_VARIABLE,
    DatabaseOption,
    OriginOption,
    PrefixOption,
    RedisOption,
)
from outfitter.config import (
    GatewayConfig,
    InvalidConfig,
    model_name,
    parse_age,
    parse_seconds,
    parse_size,
    parse_tiers,
    read_limits,
)
from outfitter.control.keep import Keep
from outfitter.control.prices import Prices
from outfitter.observers import logs
from outfitter.observers.tracing import open_tracing
from outfitter.opening import open_store
from taskvectors.store.settings import TIERS, TierSettings

log = logging.getLogger(__name__)

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
    max_vectors: Annotated[int, typer.Option(help="Task vectors that may be resident.")] = 64,
    pool_bytes: Annotated[
        str, typer.Option(help="Memory for resident task vectors, such as 512MiB.")
    ] = "2GiB",
    composed_bytes: Annotated[str, typer.Option(help="Disk for composed loadouts.")] = "8GiB",
    compose_memory: Annotated[
        str, typer.Option(help="Most memory for composing a loadout; two may be composed at once.")
    ] = "8GiB",
    placement: Annotated[
        str, typer.Option(help="auto composes hot loadouts in the background; off never does.")
    ] = "off",
    compile_model: Annotated[
        bool, typer.Option("--compile", help="On a CPU: faster answers, for a slower start.")
    ] = False,
    max_upload_bytes: Annotated[str, typer.Option(help="Largest file to accept.")] = "4GiB",
    max_body_bytes: Annotated[str, typer.Option(help="Largest request to accept.")] = "32MiB",
    limits: Annotated[
        Path | None,
        typer.Option(
            envvar=LIMITS_VARIABLE,
            help="YAML or JSON: what tenants may use; see docs/quotas.md.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    price_prompt: Annotated[
        float, typer.Option(help="Of a million tokens of prompts, for the cost of experiments.")
    ] = 0.0,
    price_cached: Annotated[
        float | None,
        typer.Option(
            help="Of a million that the cache had.", show_default="what other prompts cost"
        ),
    ] = None,
    price_completion: Annotated[float, typer.Option(help="Of a million tokens of answers.")] = 0.0,
    max_running: Annotated[
        int, typer.Option(help="Requests in the engine at once; others wait, fair by tenant.")
    ] = GatewayConfig.max_running,
    max_waiting: Annotated[
        int, typer.Option(help="Requests that may wait for their turn.")
    ] = GatewayConfig.max_waiting,
    max_wait: Annotated[str, typer.Option(help="How long a request may wait for it.")] = "60s",
    max_model_len: Annotated[int | None, typer.Option(help="Longest context in tokens.")] = None,
    database_url: DatabaseOption = None,
    redis_url: RedisOption = None,
    redis_prefix: PrefixOption = DEFAULT_PREFIX,
    redis_bytes: Annotated[
        str, typer.Option(help="Most of Redis for files, all servers together.")
    ] = "4GiB",
    redis_ttl: Annotated[
        str, typer.Option(help="Redis forgets a file that nobody reads for so long.")
    ] = "7d",
    origin: OriginOption = None,
    host_bytes: Annotated[
        str, typer.Option(help="Host memory for files, beside the pool; 0 for none.")
    ] = "1GiB",
    tiers: Annotated[
        str, typer.Option(help="Where files are looked for, in this order.")
    ] = ",".join(TIERS),
    pin: Annotated[
        list[str] | None,
        typer.Option(help="A task vector that is loaded at start and stays; repeatable."),
    ] = None,
    allow_pull: Annotated[
        list[str] | None,
        typer.Option(help="Clients may pull from URLs that start so; repeatable."),
    ] = None,
    allow_promotions: Annotated[
        bool,
        typer.Option("--allow-promotions", help="Clients may promote: change the resident base."),
    ] = False,
    auth: Annotated[
        str | None,
        typer.Option(
            help="keys: every request needs one; open: none does, on a loopback address only.",
            show_default="open on a loopback address, else keys",
        ),
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option(
            envvar=TRUST_VARIABLE,
            help="The signature policy of each namespace.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    quarantine_bytes: Annotated[
        str, typer.Option(help="Disk for files that failed a check, kept for a look.")
    ] = "1GiB",
    keep_uses: Annotated[
        str, typer.Option(help="Which key used which loadout is known for so long, or ever.")
    ] = "90d",
    keep_audit: Annotated[
        str, typer.Option(help="Who changed what is known for so long, or ever.")
    ] = "ever",
    drain_seconds: Annotated[
        int, typer.Option(help="How long running requests may finish when stopping.")
    ] = 30,
    stall_seconds: Annotated[
        int, typer.Option(help="How long a client may take no bytes of its answer.")
    ] = 60,
    ssl_certfile: Annotated[
        Path | None, typer.Option(help="Serve TLS with this certificate chain, in PEM.")
    ] = None,
    ssl_keyfile: Annotated[
        Path | None, typer.Option(help="The certificate's key, without a password.")
    ] = None,
    proxy_headers: Annotated[
        bool,
        typer.Option("--proxy-headers", help="Believe X-Forwarded-For and -Proto of a proxy."),
    ] = False,
    forwarded_allow_ips: Annotated[
        str, typer.Option(help="Proxies that are believed: addresses or networks, with commas.")
    ] = "127.0.0.1",
    log_format: Annotated[str, typer.Option(help="text, or json: an object a line.")] = "text",
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="Log each request; no prompts.")
    ] = True,
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
        max_vectors=max_vectors,
        pool_bytes=parse_size(pool_bytes),
        composed_bytes=parse_size(composed_bytes),
        compose_memory_bytes=parse_size(compose_memory),
        placement=placement,
        compiles=compile_model,
        tiers=TierSettings(
            order=parse_tiers(tiers),
            memory_bytes=parse_size(host_bytes),
            redis_url=redis_url or None,
            redis_prefix=redis_prefix,
            redis_bytes=parse_size(redis_bytes),
            redis_ttl_s=int(parse_seconds(redis_ttl)),
            origin_url=origin or None,
        ),
        database_url=database_url or None,
        pins=tuple(pin or ()),
        pull_from=tuple(allow_pull or ()),
        allow_promotions=allow_promotions,
        auth=auth,
        trust=trust,
        quarantine_bytes=parse_size(quarantine_bytes),
        max_upload_bytes=parse_size(max_upload_bytes),
        max_body_bytes=parse_size(max_body_bytes),
        max_running=max_running,
        max_waiting=max_waiting,
        max_wait_s=parse_seconds(max_wait),
        limits=read_limits(limits),
        prices=Prices(
            price_prompt, price_prompt if price_cached is None else price_cached, price_completion
        ),
        max_model_len=max_model_len,
        model_as_given=model,
        keep=Keep(uses=parse_age(keep_uses), changes=parse_age(keep_audit)),
        drain_seconds=drain_seconds,
        stall_seconds=stall_seconds,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        proxy_headers=proxy_headers,
        forwarded_allow_ips=forwarded_allow_ips,
        log_format=log_format,
        access_log=access_log,
        engine_args=tuple(engine_args or ()),
    )
    raise typer.Exit(run(config))


def run(config: GatewayConfig, **hooks: Any) -> int:
    """Listen, serve until told to stop, drain; returns the exit status.

    `hooks` replaces fields of `Hooks`.
    """
    _exit_on_signals()
    logs.configure(config.log_format, access_log=config.access_log)
    if config.asks_for_keys:
        _say_keyed(config)
    else:
        _say_open(config)
    tracing = open_tracing(os.environ)
    listener = listen(config)
    vectors = open_store(config)
    narrator = Narrator(config, vectors)
    given = {"open_vectors": lambda _: vectors, "open_tracing": lambda: tracing, **hooks}
    options = server_config(config, create_app(config, replace(narrator.hooks, **given)))
    server = narrator.server = uvicorn.Server(options)
    _allow_open_files()
    with narrator, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve([listener]))
    return 1 if narrator.has_failed else 0


def _say_open(config: GatewayConfig) -> None:
    warning = (
        f"no keys are asked for on {config.host}: whoever reaches this port can use, change and"
        " delete everything; --auth keys asks for them"
    )
    if config.log_format == "json":
        log.warning("OPEN %s", warning)
    else:
        err.print(f"[bold red]OPEN[/] {escape(warning)}", soft_wrap=True)


def _say_keyed(config: GatewayConfig) -> None:
    """Where keys come from: a gateway's first one can only be made in its database."""
    hint = (
        "every request needs a key; for the first: outfitter tenant create NAME, then outfitter key"
        f" create NAME --scope admin, both with --store {shlex.quote(str(config.store))}"
    )
    if config.log_format == "json":
        log.info("KEYS %s", hint)
    else:
        err.print(f"[bold cyan]KEYS[/] {escape(hint)}", highlight=False, soft_wrap=True)


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
