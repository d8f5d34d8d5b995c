"""Imports point down only: reads every import of the package, the lazy ones too."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from sweeps import few

import detcheck

PACKAGE = Path(detcheck.__file__).parent
TIERS = (
    {"__main__"},
    {"cli", "pytest_plugin"},
    {"repro"},
    {"gate", "report", "probes", "mismatch", "runner"},
    {"execution"},
    {"listener"},
    {"engines", "analysis", "budget"},
    {"rundir", "traffic"},
    {"kernels", "models", "environment"},
    {"completion", "grid"},
    {"evidence", "targets"},
    {"config", "experiment"},
    {"options", "kernels.settings", "parsers", "prompts"},
    {"errors", "text"},
)
"""Rooms from the top down; a room may import those of lower tiers, and itself."""
SIDEWAYS: dict[tuple[str, str], str] = {}
"""Imports between rooms of one tier that are allowed, and why."""
ROOMS_WITHIN = {"kernels.settings"}
"""Files that are rooms of their own: names without code, which lower rooms need."""
WITHOUT_TORCH = {
    *("analysis", "cli", "completion", "config", "errors", "evidence", "experiment", "gate"),
    *(
        "grid",
        "options",
        "parsers",
        "prompts",
        "pytest_plugin",
        "report",
        "rundir",
        "targets",
        "text",
        "traffic",
    ),
}
HEAVY = ("torch", "transformers")


@dataclass(frozen=True)
class Import:
    """One import: what `module` (dotted) imports at `line`; lazy where a function does it."""

    module: str
    imported: str
    line: int
    lazy: bool


def imports_of(package: Path) -> Iterator[Import]:
    for path in sorted(package.rglob("*.py")):
        yield from imports_in(path, path.read_text(encoding="utf-8"), package)


@cache
def imports_in(path: Path, text: str, package: Path) -> tuple[Import, ...]:
    """Imports of one file. Its text is given, since a test may plant another one."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    anchor = module if parts[-1] == "__init__" else module.rpartition(".")[0]
    return tuple(
        Import(module, name, node.lineno, lazy)
        for node, lazy in walk(ast.parse(text), lazy=False)
        for name in names_of(node, anchor)
    )


def walk(node: ast.AST, *, lazy: bool) -> Iterator[tuple[ast.stmt | ast.Call, bool]]:
    """Every import below `node`, and whether it is left for later than the module's import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom | ast.Call):
            yield child, lazy
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from walk(child, lazy=lazy or later or typing_only)


def names_of(node: ast.stmt | ast.Call, anchor: str) -> list[str]:
    """Dotted names that an import takes, absolute; `anchor` is the package it is in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = anchor.split(".")[: len(anchor.split(".")) - node.level + 1]
            base = ".".join([*parents, base] if base else parents)
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        return [arg.value for arg in node.args if is_text(arg)]  # type: ignore[attr-defined]
    return []


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def room_of(module: str) -> str | None:
    """`gate` of `detcheck.gate.rules`; None for the public API itself."""
    parts = module.split(".")
    within = ".".join(parts[1:3])
    if within in ROOMS_WITHIN:
        return within
    return parts[1] if len(parts) > 1 else None


def violations(package: Path) -> list[str]:
    return [
        f"{found.module}:{found.line} imports {found.imported}: {fault}"
        for found in imports_of(package)
        if (fault := fault_of(found))
    ]


def fault_of(found: Import) -> str | None:
    room = room_of(found.module)
    if room is None:
        return None if found.lazy else fault_of_api(found)
    if room in WITHOUT_TORCH and found.imported.split(".")[0] in HEAVY:
        return "this room works without it"
    if not (found.imported + ".").startswith("detcheck.") or found.imported == (
        "detcheck.__version__"
    ):
        return None
    target = room_of(found.imported)
    if target is None:
        return "the public API stands above every room"
    return fault_between(room, target)


def fault_of_api(found: Import) -> str | None:
    """`import detcheck` must stay light: the API brings its rooms in when they are asked for."""
    heavy = found.imported.split(".")[0] in (*HEAVY, "matplotlib", "pandas", "scipy", "jinja2")
    return "importing detcheck must stay light" if heavy else None


def fault_between(room: str, target: str) -> str | None:
    tiers = {name: number for number, tier in enumerate(TIERS) for name in tier}
    for name in (room, target):
        if name not in tiers:
            return f"{name} has no place in TIERS: give it one"
    if room == target or tiers[target] > tiers[room] or (room, target) in SIDEWAYS:
        return None
    return "upward" if tiers[target] < tiers[room] else "sideways"


def circles(package: Path) -> list[str]:
    """A circle among the imports that happen when modules are imported, if there is one."""
    graph: dict[str, set[str]] = {}
    found = [each for each in imports_of(package) if not each.lazy]
    modules = {each.module for each in found}
    for each in found:
        name = each.imported
        target = name if name in modules else name.rpartition(".")[0]
        if target in modules and target != each.module:
            graph.setdefault(each.module, set()).add(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout


ENGINE_NAMES = {"continuous", "static", "openai", "vllm", "scripted"}


def engine_names_in(package: Path) -> list[str]:
    """Places outside the targets and engines that decide something by an engine's name."""
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] in ("engines", "targets"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [
            f"{path.relative_to(package)}:{node.lineno} {ast.unparse(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Compare | ast.Match) and names_an_engine(node)
        ]
    return found


def names_an_engine(node: ast.AST) -> bool:
    return any(
        isinstance(part, ast.Constant) and part.value in ENGINE_NAMES for part in ast.walk(node)
    ) or any(isinstance(part, ast.Attribute) and part.attr == "engine" for part in ast.walk(node))


def test_no_room_decides_by_an_engines_name():
    assert engine_names_in(PACKAGE) == []


@pytest.mark.parametrize(
    "line",
    [
        "lockstep = run.target.engine == 'static'",
        "if name in ('openai', 'vllm'):\n    pass",
        "served = target.engine != OPENAI",
        "match engine:\n    case 'vllm':\n        pass",
    ],
)
def test_a_planted_decision_by_name_is_found(planted, line):
    assert len(engine_names_in(planted("analysis/a.py", line))) == 1


def test_imports_point_down():
    assert violations(PACKAGE) == []


def test_there_are_no_circles():
    assert circles(PACKAGE) == []


@pytest.fixture
def planted(tmp_path):
    """A copy of the package's shape with one more line in one module."""

    def plant(path: str, line: str) -> Path:
        package = tmp_path / "detcheck"
        target = package / path
        target.parent.mkdir(parents=True)
        (package / "__init__.py").write_text("", encoding="utf-8")
        (target.parent / "__init__.py").touch()
        target.write_text(line + "\n", encoding="utf-8")
        return package

    return plant


@pytest.mark.parametrize(
    ("path", "line", "fault"),
    [
        ("analysis/a.py", "from detcheck.gate.rules import RULES", "upward"),
        ("analysis/a.py", "from detcheck import gate", "upward"),
        ("analysis/a.py", "from ..gate import policy", "upward"),
        ("analysis/a.py", "def f():\n    import detcheck.runner", "upward"),
        ("rundir/a.py", "from detcheck.analysis import analyse", "upward"),
        ("gate/a.py", "from detcheck.report import html", "sideways"),
        ("analysis/a.py", "from detcheck.engines.base import Engine", "sideways"),
        ("analysis/a.py", "from detcheck import load", "TIERS"),
        ("analysis/a.py", "import detcheck", "public API"),
        ("attic/a.py", "from detcheck.errors import UsageError", "attic has no place"),
        ("gate/a.py", "def f():\n    import torch.nn", "without it"),
        ("gate/a.py", "import importlib\nimportlib.import_module('torch')", "without it"),
        ("report/a.py", "from transformers import AutoModel", "without it"),
    ],
)
def test_a_planted_import_is_found(planted, path, line, fault):
    found = violations(planted(path, line))
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("gate/a.py", "from detcheck.analysis.results import Group"),
        ("gate/a.py", "from detcheck import __version__"),
        ("gate/a.py", "from .b import c"),
        ("kernels/a.py", "import torch"),
        ("cli/a.py", "def f():\n    from detcheck.engines import static"),
    ],
)
def test_an_import_downward_is_no_fault(planted, path, line):
    assert violations(planted(path, line)) == []


def test_a_planted_circle_is_found(planted):
    package = planted("gate/a.py", "from detcheck.gate.b import x")
    (package / "gate/b.py").write_text("from detcheck.gate import a\n", encoding="utf-8")
    assert {"detcheck.gate.a", "detcheck.gate.b"} <= set(circles(package))


def test_a_circle_that_is_lazy_is_none(planted):
    package = planted("gate/a.py", "from detcheck.gate.b import x")
    (package / "gate/b.py").write_text(
        "def f():\n    from detcheck.gate import a\n", encoding="utf-8"
    )
    assert circles(package) == []


HEAVY_MODULES = ("torch", "transformers", "pandas", "matplotlib", "scipy", "jinja2")
LOADED = f"print(sorted({{name.split('.')[0] for name in sys.modules}} & {set(HEAVY_MODULES)}))"


def test_importing_detcheck_is_light():
    assert run_python(f"import sys, detcheck; {LOADED}") == "[]\n"


@few("args", [["--help"], ["gate", "--help"], ["compare", "--help"]])
def test_help_is_light(args):
    code = f"import sys\nfrom detcheck.cli.app import run_program\nrun_program({args})\n{LOADED}"
    assert run_python(code).endswith("[]\n")


def test_the_light_check_sees_a_heavy_import():
    assert "jinja2" in run_python(f"import sys, detcheck, jinja2; {LOADED}")


def test_rooms_without_torch_load_without_it():
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).with_suffix("").parts[0] in {*WITHOUT_TORCH, "environment"}
    ]
    code = (
        f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert run_python(code) == "False False\n"
