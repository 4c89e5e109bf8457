"""The house of docs/architecture.md: a module imports only from lower floors or its own room."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rekindle

SOURCE = Path(rekindle.__file__).parent
FLOORS = {
    "errors": 0, "progress": 0, "ranks": 0, "version": 0, "config": 0.5, "store": 1, "models": 1, "anatomy": 2,
    "edit": 3, "methods": 4, "apply": 5, "codec": 5, "train": 6, "laws": 6, "music": 6.5, "recovery": 6.5,
    "search": 6.5, "metaopt": 6.5, "report": 7, "api": 8, "sweep": 8.5, "lab": 9, "cli": 10,
}  # fmt: skip
NO_TORCH_ABOVE = {
    "errors",
    "progress",
    "ranks",
    "version",
    "config",
    "store",
    "anatomy",
    "edit",
    "methods",
    "apply",
    "laws",
    "report",
    "api",
    "cli",
}
BETWEEN = ("music", "recovery", "search", "metaopt")  # trainer and report; they may use all below but laws
STRANGERS = {("train", "laws"), ("laws", "train"), ("report", "train"), ("report", "apply"), ("report", "edit")}
STRANGERS |= {pair for here in BETWEEN for pair in ((here, "laws"), ("report", here))}
METHODS_SEE = {"errors", "config", "anatomy", "edit", "methods"}
FILES = sorted(path for path in SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path: Path) -> list[tuple[str, ast.stmt, bool]]:
    """(module, statement, whether it runs when the file is imported) of every import."""
    tree = ast.parse(path.read_text())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and node.module == "rekindle":
                names = [f"rekindle.{alias.name}" for alias in node.names]
            found += [(name, node, node in tree.body) for name in names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path):
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    for name, node, _ in imports(path):
        parts = name.split(".")
        if parts[0] != "rekindle" or len(parts) == 1:
            continue
        there = parts[1]
        where = f"{path.name}:{node.lineno} imports {name}"
        assert there in FLOORS, where
        assert there == here or FLOORS[there] < FLOORS[here], where
        assert (here, there) not in STRANGERS, where
        assert here != "methods" or there in METHODS_SEE, where


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_heavy_imports_sit_inside_functions(path):
    if room(path) not in NO_TORCH_ABOVE:
        return
    heavy = {"torch", "transformers", "matplotlib", "accelerate", "datasets", "pyarrow", "jinja2", "huggingface_hub"}
    top = {name.split(".")[0] for name, _, runs in imports(path) if runs}
    assert not top & heavy, f"{path.name} imports {top & heavy} at module level"


def test_no_room_is_unknown():
    rooms = {room(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms <= FLOORS.keys()


def test_only_the_command_line_prints():
    for path in FILES:
        if room(path) == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            assert not (isinstance(called, ast.Name) and called.id == "print"), f"{path.name}:{node.lineno}"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from rekindle.cli import verbs; print([m for m in ('numpy', 'torch', 'yaml') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "room", ["train", "train/text", "train/objectives", "search", "recovery", "music", "music/abc"]
)
def test_a_room_s_map_has_all_its_modules(room):
    doc = ast.get_docstring(ast.parse((SOURCE / room / "__init__.py").read_text())) or ""
    there = {path.name for path in (SOURCE / room).glob("*.py")} | {
        f"{path.parent.name}/" for path in (SOURCE / room).glob("*/__init__.py")
    }
    named = {line.split()[0] for line in doc.splitlines() if line.split()}
    assert there - {"__init__.py"} <= named


def reached(path: Path) -> set[Path]:
    """The files of the package that a file imports, for its types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rekindle"):
            for alias in node.names:
                place = SOURCE.joinpath(*node.module.split(".")[1:])
                names = [place / f"{alias.name}.py", place.with_suffix(".py"), place / "__init__.py"]
                found |= set([name for name in names if name.is_file()][:1])
    return found - {path, SOURCE / "__init__.py"}


def test_arrows_run_one_way():
    """No file imports what imports it, by whatever way."""
    imports_of = {path: reached(path) for path in FILES}
    order: list[Path] = []
    while ready := [path for path in imports_of if path not in order and imports_of[path] <= set(order)]:
        order += ready
    assert [str(path.relative_to(SOURCE)) for path in FILES if path not in order] == []
