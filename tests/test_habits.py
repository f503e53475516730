"""The tools' settings fit the tree: import contract, versions, the module search path."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

tomllib = pytest.importorskip("tomllib", reason="Python 3.11")


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def test_every_module_of_utils_is_in_the_import_contract():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = settings["contracts"][0]["layers"]
    named = {name.strip(" ()") for layer in layers for name in re.split("[|:]", layer)}
    modules = {str(path.relative_to(ROOT).with_suffix("")).replace("/", ".") for path in python_files("utils")}
    packages = {name.removesuffix(".__init__") for name in modules if name.endswith(".__init__")}
    left = [name for name in modules if not any(f"{name}.".startswith(f"{layer}.") for layer in named)]
    assert {name.removesuffix(".__init__") for name in left} <= packages
    optional = {name for layer in layers for name in re.findall(r"\((.+?)\)", layer)}
    assert named - modules - optional <= packages | {"scripts", "benchmarks", "datasets", "models"}  # no old name


def test_every_requirement_has_a_tested_version():
    pinned = (ROOT / "constraints.txt").read_text()
    for file in ("requirements.txt", "requirements-dev.txt"):
        for name in re.findall(r"^([\w-]+)>=", (ROOT / file).read_text(), re.MULTILINE):
            assert re.search(rf"^{name}==", pinned, re.MULTILINE), name


def test_the_module_search_path_is_changed_where_a_script_must_find_the_project():
    found = {
        str(path.relative_to(ROOT))
        for path in python_files("benchmarks", "datasets", "models", "scripts", "tests", "utils")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("sys.path.")
    }
    assert found <= {"benchmarks/bench.py", "scripts/_root.py"}
