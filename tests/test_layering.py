"""Imports point one way, and ultralytics is touched in two files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtyolo

PACKAGE = Path(mtyolo.__file__).parent

LAYERS = (
    ("__main__",),
    ("cli",),
    ("demonstration",),
    ("api", "timing"),
    ("prediction", "exporting", "evaluation", "comparing"),
    ("training",),
    ("opening",),
    ("balance", "distill", "data", "features"),
    ("inheritance",),
    ("checkpoint",),
    ("assembly", "original_layers", "summary"),
    ("resolution",),
    ("model", "exported"),
    ("graph", "extractors", "adapters", "tasks"),
    ("drawing",),
    ("imported",),
    ("device", "geometry", "files", "keys", "memory", "modes"),
    ("structures",),
    ("config",),
    ("errors",),
)
"""From the top down. A part imports from lower layers, not from its own."""

ALLOWED = {
    ("features", "mtyolo.data"),  # a store is made from a data set, and yields its labels
    ("tasks", "mtyolo.graph.blocks"),  # branches are made of the graph's blocks
}
"""Parts of one layer where one builds on the other."""

LEVEL = {part: number for number, parts in enumerate(LAYERS) for part in parts}

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported_modules(path: Path) -> Iterator[str]:
    """Full names of what a file imports, in functions too; not what only type checkers see."""
    for node in nodes_that_run(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def nodes_that_run(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from nodes_that_run(child)


def part_of(module: str) -> str | None:
    """mtyolo.data.loader.Dataset -> data."""
    names = module.split(".")
    return names[1] if names[0] == "mtyolo" and len(names) > 1 else None


def own_part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_a_layer() -> None:
    assert {own_part(path) for path in FILES} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    own = own_part(path)
    wrong = [
        module
        for module in imported_modules(path)
        if (part := part_of(module)) in LEVEL
        and part != own
        and LEVEL[part] <= LEVEL[own]
        and not any(own == allowed and module.startswith(lower) for allowed, lower in ALLOWED)
    ]
    assert not wrong, f"{own} may not import {wrong}: lower layers only"


@pytest.mark.parametrize("task", ["detect", "segment", "keypoint"])
def test_tasks_do_not_know_each_other(task: str) -> None:
    others = {"detect", "segment", "keypoint"} - {task}
    wrong = [
        (path.name, module)
        for path in (PACKAGE / "tasks" / task).glob("*.py")
        for module in imported_modules(path)
        if module.startswith("mtyolo.tasks.") and module.split(".")[2] in others
    ]
    assert not wrong


def test_ultralytics_is_imported_where_its_traces_are_undone() -> None:
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(module.split(".")[0] == "ultralytics" for module in imported_modules(path))
    }
    assert importers == {"graph/blocks.py", "graph/families.py"}


def test_settings_and_errors_do_not_need_torch() -> None:
    heavy = {"torch", "torchvision", "timm", "ultralytics", "supervision", "matplotlib", "cv2"}
    light = [path for path in FILES if own_part(path) in ("config", "errors", "__main__")]
    assert not [
        (path.name, module) for path in light for module in imported_modules(path) if module.split(".")[0] in heavy
    ]
