"""What the person at the terminal is told while a gateway starts and serves."""

import json
import logging
import shlex

import uvicorn
from rich.markup import escape
from rich.text import Text

from outfitter.client import KEY_VARIABLE
from outfitter.commands.console import count_progress, err
from outfitter.config import GatewayConfig
from outfitter.gateway import Hooks
from outfitter.state.records import Query
from outfitter.urls import shown
from outfitter.vectors import Vectors
from taskvectors.errors import TaskVectorError

log = logging.getLogger(__name__)
engine_log = logging.getLogger("outfitter.engine")


class Narrator:
    """Tells the person at the terminal what happens, and stops the server when it cannot serve.

    Where the log is JSON nobody sits at a terminal: then all of this goes to the log.
    """

    def __init__(self, config: GatewayConfig, vectors: Vectors) -> None:
        self._config = config
        self._vectors = vectors
        self._is_json = config.log_format == "json"
        self._bar = count_progress()
        self.server: uvicorn.Server | None = None
        self.has_failed = False
        self._spinner = err.status("starting")
        self.hooks = Hooks(
            announce=self._announce,
            engine_log=self._engine_log,
            on_ready=self._on_ready,
            on_failure=self._on_failure,
            on_warming=self._on_warming,
        )

    def __enter__(self) -> "Narrator":
        self._announce(state_line(self._config))
        if not self._is_json:
            self._spinner.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._spinner.stop()

    def _announce(self, text: str) -> None:
        if self._is_json:
            log.info("%s", text)
            return
        self._spinner.update(escape(text))
        err.print(f"[bold cyan]outfitter[/] {escape(text)}", highlight=False, soft_wrap=True)

    def _engine_log(self, line: str) -> None:
        if self._is_json:
            engine_log.info("%s", line)
            return
        text = Text(f"engine | {line}", style="dim")
        err.print(text, highlight=False, soft_wrap=True)

    def _on_ready(self) -> None:
        self._announce(f"ready: {self._config.name} at {self._config.url}/v1")
        self._announce(f"try: {example(self._config, some_name(self._vectors))}")
        self._spinner.stop()

    def _on_warming(self, done: int, total: int) -> None:
        """The spinner has stopped by now: a terminal shows one of them at a time."""
        if self._is_json:
            return
        if not self._bar.tasks:
            self._bar.add_task("warming pinned task vectors")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        if done == total:
            self._bar.stop()
            self._bar.remove_task(self._bar.task_ids[0])

    def _on_failure(self, text: str) -> None:
        self.has_failed = True
        self._spinner.stop()
        if self._is_json:
            log.error("%s", text)
        else:
            err.print(f"[bold red]error[/] {escape(text)}", highlight=False, soft_wrap=True)
        if self.server is not None:
            self.server.should_exit = True


def example(config: GatewayConfig, name: str | None) -> str:
    """A curl line that works right now, with a task vector if the store has one."""
    question = {"role": "user", "content": "Tell me about tailors."}
    fields = {"model": config.name, "max_tokens": 40, "messages": [question]}
    body = json.dumps({**fields, "task_vectors": {name: 1.0}} if name else fields)
    url = f"{config.url}/v1/chat/completions"
    key = f' -H "authorization: Bearer ${KEY_VARIABLE}"' if config.asks_for_keys else ""
    return f"curl {url}{key} -H 'content-type: application/json' -d {shlex.quote(body)}"


def state_line(config: GatewayConfig) -> str:
    """Where the store and its catalog are, without passwords."""
    tiers = config.tiers
    catalog = shown(config.database_url) if config.database_url else "in it (SQLite)"
    parts = [f"store {config.store}", f"catalog {catalog}"]
    parts += [f"redis {shown(tiers.redis_url)}"] if tiers.redis_url else []
    parts += [f"origin {shown(tiers.origin_url)}"] if tiers.origin_url else []
    return ", ".join(parts)


def some_name(vectors: Vectors) -> str | None:
    """A task vector that the store has."""
    try:
        page = vectors.find(Query(limit=1))
    except TaskVectorError as error:
        log.warning("the store cannot be listed: %s", error)
        return None
    return page.versions[0].name if page.versions else None
