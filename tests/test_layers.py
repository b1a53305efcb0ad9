"""Which folder may import from which: a layer imports only from the layers below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"utils"},
    {"data", "models", "evaluation"},
    {"losses"},
    {"inference"},
    {"training"},
    {"tools", "EDARFusion_train", "EDARFusion_test_val"},
    {"app", "edarfusion"},
)
"""From the ground up; the folders of one layer do not know each other."""

FLOOR = {name: floor for floor, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for name in FLOOR for path in (*(ROOT / name).rglob("*.py"), *ROOT.glob(f"{name}.py")))


def imported(path: Path) -> set[str]:
    """First names of all modules of the project that a file imports, wherever it does."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {module.split(".")[0] for module in modules} & FLOOR.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_imports_from_below_only(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    upwards = {name for name in imported(path) - {own} if FLOOR[name] >= FLOOR[own]}
    assert not upwards
