"""Imports point one way: outfitter → the torch-free part of taskvectors, and never in a circle."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOTS = {"taskvectors": ROOT / "adapters", "outfitter": ROOT / "server"}
HEAVY = {"torch", "vllm", "transformers"}
ENGINE_SIDE = ("taskvectors.bench.host", "taskvectors.kernels", "taskvectors.vllm_plugin")


def _modules() -> dict[str, Path]:
    found = {}
    for package, root in ROOTS.items():
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            assert node.module
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {path if path in MODULES else node.module for path in paths}
    return names


MODULES = _modules()


@cache
def _graph() -> dict[str, set[str]]:
    """Of every module those of ours that it imports."""
    return {name: _imports(path) & MODULES.keys() for name, path in MODULES.items()}


def test_taskvectors_never_imports_outfitter() -> None:
    """The library works alone."""
    for name, path in MODULES.items():
        if name.startswith("taskvectors"):
            used = _imports(path)
            assert not any(target.startswith("outfitter") for target in used), name


def test_only_the_engine_side_imports_torch_or_vllm() -> None:
    """Gateways and tools run without torch; nothing of the engine leaks into them."""
    for name, path in MODULES.items():
        if name.startswith(ENGINE_SIDE):
            continue
        used = _imports(path)
        heavy = {target for target in used if target.split(".")[0] in HEAVY}
        assert not heavy, f"{name} imports {heavy}"
        assert not any(target.startswith(ENGINE_SIDE) for target in used), name


def test_no_import_circle() -> None:
    """Every module can be understood from what it imports."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for target in _graph()[name] - {name}:
                visit(target, (*path, name))
            done.add(name)

    for module in MODULES:
        visit(module, ())


def test_importing_taskvectors_loads_neither_torch_nor_vllm() -> None:
    """`import taskvectors` is cheap."""
    code = (
        "import sys, taskvectors, taskvectors.format, taskvectors.store, taskvectors.extract;"
        "import taskvectors.exchange, taskvectors.interference, taskvectors.merge;"
        "import taskvectors.bench.run;"
        "sys.exit(bool({'torch', 'vllm'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
