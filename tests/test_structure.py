"""What the import contract cannot say: no room imports the package root, versions agree."""

import ast
import tomllib
from pathlib import Path

import onsil

ROOT = Path(__file__).resolve().parents[1]


def test_no_room_imports_the_package_root():
    guilty = []
    for path in (ROOT / "src" / "onsil").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                guilty += [path for alias in node.names if alias.name == "onsil"]
            if isinstance(node, ast.ImportFrom) and node.module == "onsil":
                guilty.append(path)
    assert guilty == []


def test_every_verb_of_the_package_loads_and_the_version_is_one():
    for name in onsil.__all__:
        assert getattr(onsil, name) is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == onsil.__version__
