"""`outfitter extract` and `inspect`: task vector files, without a server."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from outfitter.commands.console import byte_progress, err, human_bytes, out, printable
from outfitter.commands.tables import (
    bound_line,
    energies_of,
    file_as_json,
    parameter_table,
    report_as_json,
)
from outfitter.config import InvalidConfig
from taskvectors.extract import OPTIONS, ExtractReport, InvalidExtraction, Size, size_of
from taskvectors.extract import extract as run
from taskvectors.format import file_digest, read_header

VALUE_DTYPES = ("bf16", "fp16", "fp32")
METHODS = tuple(method.replace("_", "-") for method in OPTIONS if method != "lossless")


BY_SIZE = ("magnitude", "breadcrumbs")
LITTLE = 0.5
"""Of the energy: below, what was cut by size has probably lost the skill."""
HINT = (
    "note: {:.1%} of the change is kept. If the skill is gone, keep entries at random"
    " (--method dare) or directions (--method low-rank) instead: a change that is spread over all"
    " entries has no large ones that carry it"
)


def _defaults(option: str) -> str:
    """`dare 0.1, della 0.2`: of each method that takes the option."""
    return ", ".join(
        f"{method.replace('_', '-')} {values[option]}"
        for method, values in OPTIONS.items()
        if option in values
    )


BaseArgument = Annotated[
    Path, typer.Argument(help="The base: a folder with config.json and safetensors.")
]
FinetunedArgument = Annotated[
    Path, typer.Argument(help="The fine-tuned checkpoint: such a folder of the same architecture.")
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The task vector file to write.")]
MethodOption = Annotated[
    str | None,
    typer.Option(
        help=f"What to keep of each matrix: {', '.join(METHODS)}.", show_default=METHODS[0]
    ),
]
LosslessOption = Annotated[
    bool,
    typer.Option(
        "--lossless", help="Keep every change exactly: the checkpoint can be restored bit for bit."
    ),
]
DensityOption = Annotated[
    float | None,
    typer.Option(help="Share of the entries to keep.", show_default=_defaults("density")),
]
ScopeOption = Annotated[
    str | None,
    typer.Option(
        help="Of magnitude: tensor ranks each matrix by itself, global all together.",
        show_default="tensor",
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(help="Of random numbers.", show_default=_defaults("seed"))
]
EpsilonOption = Annotated[
    float | None,
    typer.Option(
        help="Keep with probability density ± epsilon, by rank in the row.",
        show_default=_defaults("epsilon"),
    ),
]
GammaOption = Annotated[
    float | None,
    typer.Option(help="Share of the largest to drop.", show_default=_defaults("gamma")),
]
RankOption = Annotated[
    int | None, typer.Option(help="Of each matrix's factors.", show_default=_defaults("rank"))
]
EnergyOption = Annotated[
    float | None,
    typer.Option(help="Of low-rank, instead of a rank: the share of Σ d² to hold, such as 0.9."),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        help="Of the values: bf16, fp16, fp32, int8 or ternary (a sign, and a scale per tensor).",
        show_default="bf16; --lossless: as fine-tuned",
    ),
]
IndexOption = Annotated[
    str, typer.Option(help="Of the indices: u8, u16, u32, bitmap, or auto: the smallest.")
]
LicenseOption = Annotated[str | None, typer.Option(help="SPDX name, written into the file.")]
PerLayerOption = Annotated[
    bool, typer.Option("--per-layer", help="Show each parameter, not each kind.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def extract(
    base: BaseArgument,
    finetuned: FinetunedArgument,
    out_file: OutOption,
    method: MethodOption = None,
    lossless: LosslessOption = False,
    density: DensityOption = None,
    scope: ScopeOption = None,
    seed: SeedOption = None,
    epsilon: EpsilonOption = None,
    gamma: GammaOption = None,
    rank: RankOption = None,
    energy: EnergyOption = None,
    dtype: DtypeOption = None,
    index: IndexOption = "auto",
    license: LicenseOption = None,
    per_layer: PerLayerOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a task vector file: a fine-tuned checkpoint minus its base.

    magnitude keeps the largest changes; dare (2311.03099), della (2406.11617)
    keep a random share and rescale it; breadcrumbs (2312.06795) drops the
    largest and the small; low-rank keeps the strongest directions, by SVD.
    Norms and biases are kept whole.

    Both checkpoints are read as a stream: memory does not grow with the model.
    The file appears when it is whole; one that was stopped is simply run again.
    """
    options = {
        "density": density,
        "scope": scope,
        "seed": seed,
        "epsilon": epsilon,
        "gamma": gamma,
        "rank": rank,
        "energy": energy,
        "value_dtype": dtype,
        "index": index,
        "license": license,
    }
    report = write_difference(base, finetuned, out_file, method, lossless, options)
    header = read_header(out_file)
    if as_json:
        typer.echo(json.dumps(report_as_json(report, header), indent=2))
        return
    out.print(parameter_table(header, per_layer=per_layer, energies=energies_of(report)))
    if report.unchanged:
        out.print(f"{len(report.unchanged)} parameters did not change", highlight=False)
    out.print(bound_line(report.size), highlight=False, soft_wrap=True)
    print_file(out_file, report.digest, report.nbytes)
    if report.kept < LITTLE and (method or METHODS[0]) in BY_SIZE:
        err.print(HINT.format(report.kept), highlight=False, soft_wrap=True)


def inspect(
    file: Annotated[Path, typer.Argument(help="A task vector file.")],
    per_layer: PerLayerOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a task vector file holds: digest, base, metadata, and what each kind costs.

    The checksums are not compared; pushing the file does that.
    """
    if not file.is_file():
        raise InvalidConfig(f"there is no file {file}")
    header = read_header(file)
    digest = file_digest(file)
    if as_json:
        typer.echo(json.dumps(file_as_json(header, digest), indent=2, default=str))
        return
    facts = Table(box=None, show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")
    facts.add_row("digest", f"sha256:{digest}")
    facts.add_row("base", escape(printable(header.base.name)))
    facts.add_row("fingerprint", header.base.fingerprint or "not given")
    facts.add_row("size", human_bytes(header.nbytes))
    for key, value in header.metadata.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        facts.add_row(escape(printable(key)), escape(printable(text)))
    out.print(facts)
    out.print(parameter_table(header, per_layer=per_layer))
    total = sum((size_of(header, name) for name in header.parameters), Size())
    out.print(bound_line(total), highlight=False, soft_wrap=True)


def check_float_dtype(dtype: str | None) -> None:
    """Raise InvalidConfig unless `--dtype` is absent or one of VALUE_DTYPES."""
    if dtype is not None and dtype not in VALUE_DTYPES:
        raise InvalidConfig(f"unsupported --dtype {dtype!r}; choose {', '.join(VALUE_DTYPES)}")


def print_file(path: Path, digest: str, nbytes: int) -> None:
    """One line that says what was written."""
    line = f"{printable(str(path))} {human_bytes(nbytes)} sha256:{digest}"
    out.print(line, highlight=False, markup=False, soft_wrap=True)


def write_difference(
    base: Path,
    finetuned: Path,
    out_file: Path,
    method: str | None,
    lossless: bool,
    options: Mapping[str, Any],
) -> ExtractReport:
    """Extract with a bar; what the library refuses is told in the words of the command line.

    Raises InvalidConfig, IncompatibleCheckpoints, InvalidCheckpoint, OSError.
    """
    _check_folders(base, finetuned)
    chosen = {"method": _method(method, lossless), **options}
    with byte_progress() as bar:
        task = bar.add_task("reading", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=escape(printable(what)))

        try:
            return run(base, finetuned, out_file, progress=show, allow_empty=False, **chosen)
        except InvalidExtraction as error:
            raise InvalidConfig(_spelled(str(error))) from error


def _method(method: str | None, lossless: bool) -> str:
    """The library's name of what was asked for; raises InvalidConfig."""
    if lossless and method is not None:
        raise InvalidConfig(f"--lossless and --method {method} exclude each other; choose one")
    if lossless:
        return "lossless"
    method = METHODS[0] if method is None else method
    if method not in METHODS:
        raise InvalidConfig(f"unsupported --method {method!r}; choose {', '.join(METHODS)}")
    return method.replace("-", "_")


def _spelled(message: str) -> str:
    """The library's message with options as they are typed."""
    flags = re.sub(r"`(\w+)`", r"--\1", message).replace("--value_dtype", "--dtype")
    return flags.replace("--method lossless", "--lossless").replace("low_rank", "low-rank")


def _check_folders(*folders: Path) -> None:
    for folder in folders:
        if not folder.is_dir():
            raise InvalidConfig(f"there is no folder {folder}; name that of a checkpoint")
