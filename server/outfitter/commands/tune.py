"""`outfitter tune`: weights that find themselves, on the prompts that matter to you."""

import asyncio
import platform
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from outfitter.client import GatewayClient, GatewayError
from outfitter.commands.console import count_progress, say
from outfitter.commands.places import DEFAULT_URL, UrlOption
from outfitter.commands.tuned import tell
from outfitter.config import InvalidConfig
from outfitter.tuning.asking import Asker, Terms
from outfitter.tuning.graders import BUILT_IN, GraderFailed, find_grader
from outfitter.tuning.journal import Journal
from outfitter.tuning.optimiser import PROPOSERS
from outfitter.tuning.prompts import read_prompts, split_prompts
from outfitter.tuning.report import Report, report_of, to_json
from outfitter.tuning.space import Space
from outfitter.tuning.stage import NothingFound, Plan
from outfitter.tuning.tuner import Found, Task, Tuner
from taskvectors import __version__
from taskvectors.methods import LINEAR
from taskvectors.spec import MAX_VECTORS, Reference

KeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        help="A key of the gateway; OUTFITTER_API_KEY has it unseen by other users of a machine.",
    ),
]


class ManyVectors(TyperCommand):
    """Lets `--vectors a b c` name several, as `--vectors a --vectors b --vectors c` does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What follows `--vectors` up to the next option are vectors."""
        return super().parse_args(ctx, spread("--vectors", args))


def spread(option: str, args: list[str]) -> list[str]:
    """`args` with the option before each of its values."""
    found: list[str] = []
    is_ours = False
    for arg in args:
        is_ours = arg == option or (is_ours and not arg.startswith("-"))
        if is_ours and arg != option:
            found += [option, arg]
        elif not is_ours:
            found.append(arg)
    return found


def tune(
    vectors: Annotated[
        list[str],
        typer.Option(help="The vectors to weigh: a b c, or a,b,c.", metavar="VECTOR..."),
    ],
    evaluation: Annotated[
        Path,
        typer.Option(
            "--eval",
            help='JSON lines: {"prompt" or "messages", "expected"}.',
            exists=True,
        ),
    ],
    grader: Annotated[
        str,
        typer.Option(help=f"{', '.join(BUILT_IN)}, module:function or file.py:function."),
    ] = "exact",
    expected: Annotated[
        str | None, typer.Option(help="What is expected where a prompt does not say.")
    ] = None,
    weights: Annotated[str, typer.Option(help="Bounds of each weight.")] = "0:1.5",
    method: Annotated[
        list[str] | None,
        typer.Option(help="A merge method to search, linear if none; repeatable."),
    ] = None,
    density: Annotated[str, typer.Option(help="Bounds, for methods that have one.")] = "0.1:1",
    budget: Annotated[
        int,
        typer.Option(help="Evaluations: each is as many answers as there are prompts.", min=1),
    ] = 32,
    batch: Annotated[int, typer.Option(help="Loadouts that are tried at once.", min=1)] = 8,
    held_out: Annotated[float, typer.Option(help="Share of prompts for the honest score.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the split, the search and the intervals.")] = 0,
    optimiser: Annotated[str, typer.Option(help=f"{', '.join(PROPOSERS)}.")] = "tpe",
    race: Annotated[bool, typer.Option(help="Ask hopeless loadouts no further.")] = True,
    random_search: Annotated[
        bool,
        typer.Option(help="Compare with random search, which costs the budget again."),
    ] = True,
    model: Annotated[
        str | None,
        typer.Option(help="The base, if not the first model that is listed."),
    ] = None,
    completions: Annotated[
        bool,
        typer.Option("--completions", help="Ask /v1/completions, without a chat template."),
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="Of each answer.", min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0, max=2)] = 0.0,
    concurrency: Annotated[int, typer.Option(help="Requests at once.", min=1, max=1024)] = 32,
    journal: Annotated[
        Path, typer.Option(help="Every evaluation; the same command goes on from it.")
    ] = Path("tune.jsonl"),
    save: Annotated[str | None, typer.Option(help="Save the best as this model.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture: .png, .svg, .pdf.")] = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Search the weights of a loadout on a running gateway, and score it on held-out prompts."""
    names = names_of(vectors)
    space = Space(
        len(names),
        _bounds(weights, "--weights"),
        tuple(dict.fromkeys(method or [LINEAR.name])),
        _bounds(density, "--density"),
    )
    _check(optimiser, held_out, save, output, plot)
    prompts, digest = read_prompts(evaluation)
    graded = find_grader(grader, expected)
    graded.check(prompts)
    split = split_prompts(prompts, held_out, seed)
    plan = Plan(space, split.search, budget, batch, seed, race)
    if plan.answers < (len(space.equals) + len(space.alone)) * len(split.search) + plan.for_finals:
        least = len(space.equals) + len(space.alone) + -(-plan.for_finals // len(split.search))
        raise InvalidConfig(f"--budget {budget} does not pay the baselines; give {least + 8}")
    with GatewayClient(url or DEFAULT_URL, api_key) as client:
        found = [client.show(name) for name in names]
        base = model or _base(client)
        pinned = tuple(map(_pinned, found))
        terms = Terms(base, max_tokens, temperature, not completions, concurrency)
        task = Task(pinned, tuple(names), prompts, split, graded, plan, optimiser, random_search)
        question = {
            "vectors": [str(one["digest"]) for one in found],
            "base": base,
            "fingerprint": (found[0].get("base") or {}).get("fingerprint"),
            "eval": digest,
            "grader": graded.identity,
            "held_out": held_out,
            "seed": seed,
            "space": space.to_json(),
            "optimiser": optimiser,
            "race": race,
            "chat": not completions,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        with Journal(journal, question) as kept:
            report, run = _run(task, terms, client, kept)
        fields = to_json(
            report,
            task,
            question,
            {"vectors": dict(zip(names, pinned, strict=True)), "grader": grader, **run},
        )
        tell(report, fields, output, plot, as_json=as_json)
        if save is not None:
            _save(client, save, report, task)


def _run(
    task: Task, terms: Terms, client: GatewayClient, journal: Journal
) -> tuple[Report, dict[str, Any]]:
    known = journal.num_scores
    if known:
        say(f"going on from {journal.path}: {known} answers are known")
    started = time.monotonic()
    try:
        tuner, found, retries = asyncio.run(_search(task, terms, client, journal))
    except (GatewayError, GraderFailed, NothingFound) as error:
        kept = f"{journal.path} has {journal.num_scores} answers; the same command goes on"
        raise GatewayError(f"{error}. {kept}") from error
    except KeyboardInterrupt:
        say(f"stopped; {journal.path} has {journal.num_scores} answers, the same command goes on")
        raise typer.Exit(130) from None
    answers = journal.num_scores - known
    rate = answers / len(task.plan.order) / tuner.asked_seconds * 60 if answers else None
    return report_of(task, tuner, found), {
        "command": _command(),
        "seconds": round(time.monotonic() - started, 1),
        "seconds_of_all_runs": round(journal.seconds, 1),
        "answers": answers,
        "answers_known_before": known,
        "retries": retries,
        "concurrency": terms.concurrency,
        "evaluations_per_minute": rate and round(rate, 2),
        "versions": {"outfitter": __version__, "python": platform.python_version()},
    }


async def _search(
    task: Task, terms: Terms, client: GatewayClient, journal: Journal
) -> tuple[Tuner, Found, int]:
    with count_progress() as bar:
        line = bar.add_task("starting", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(line, completed=done, total=max(total, done), description=what)

        async with Asker(client.url, client.headers, terms) as asker:
            tuner = Tuner(task, asker, journal, show)
            return tuner, await tuner.run(), asker.num_retries


def _save(client: GatewayClient, name: str, report: Report, task: Task) -> None:
    vectors = report.tuned.candidate.task_vectors(task.names)
    if vectors is None:
        raise InvalidConfig(f"the base alone is the best that was found: {name} is not saved")
    score = f"{report.tuned.held_out.mean:.3f} on {report.num_held_out} held-out prompts"
    fields = {
        "name": name,
        "task_vectors": vectors,
        "description": f"outfitter tune: {score}",
    }
    saved = client.save_loadout(fields)
    say(f"saved: {saved.get('id')}, {report.tuned.loadout}")


def names_of(vectors: list[str]) -> list[str]:
    """The vectors that are named, commas taken apart. Raises InvalidConfig, InvalidReference."""
    names = [name.strip() for text in vectors for name in text.split(",") if name.strip()]
    for name in names:
        Reference.parse(name)
    if len(set(names)) < len(names) or not 1 <= len(names) <= MAX_VECTORS:
        raise InvalidConfig(
            f"unsupported --vectors {', '.join(names)[:200]!r}; name 1 to {MAX_VECTORS}, each once"
        )
    return names


def _bounds(text: str, option: str) -> tuple[float, float]:
    low, colon, high = text.partition(":")
    try:
        if colon:
            return float(low), float(high)
    except ValueError:
        pass
    raise InvalidConfig(f"unsupported {option} {text[:80]!r}; use LOW:HIGH such as 0:1.5")


def _check(
    optimiser: str,
    held_out: float,
    save: str | None,
    output: Path | None,
    plot: Path | None,
) -> None:
    if optimiser not in PROPOSERS:
        choices = ", ".join(PROPOSERS)
        raise InvalidConfig(f"unsupported --optimiser {optimiser!r}; choose {choices}")
    if not 0 < held_out < 1:
        raise InvalidConfig(f"unsupported --held-out {held_out:g}; use a share such as 0.5")
    if save is not None and Reference.parse(save).path != save:
        raise InvalidConfig(f"unsupported --save {save!r}; use a name such as acme/best")
    for path in (output, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise InvalidConfig(f"there is no folder {path.absolute().parent}")
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise InvalidConfig(f"unsupported --plot {str(plot)!r}; end it in .png, .svg or .pdf")


def _base(client: GatewayClient) -> str:
    """The base is the first model of the listing."""
    models = client.json("GET", "/v1/models").get("data")
    if not models:
        raise GatewayError(f"{client.name} lists no models; name the base with --model")
    return str(models[0]["id"])


def _pinned(vector: dict[str, Any]) -> str:
    """A reference that stays the same when the name gets a next version."""
    name, version = vector.get("name"), vector.get("version")
    return f"{name}@{version}" if name and version else str(vector["digest"])


def _command() -> str:
    """As anyone would type it: no home of this machine, no key."""
    words = [re.sub(r"^(--api-key=).*", r"\1…", word, flags=re.DOTALL) for word in sys.argv[1:]]
    shown = ["…" if i and words[i - 1] == "--api-key" else word for i, word in enumerate(words)]
    return "outfitter " + shlex.join(shown).replace(str(Path.home()), "~")
