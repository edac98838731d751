"""The shape of the package: which way imports point, what is pure, that every room has a sign and a test.

    cli → doctor → daemon → proxy → kernel → core → errors     a layer imports from itself and from those after it

Read from the syntax trees, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tnat64d"

LAYERS = (
    "__main__",
    "cli",
    "doctor",
    "daemon",
    "proxy",
    "kernel",
    "core",
    "errors",
    "",
)  # "": tnat64d/__init__.py

# The standard library that neither does I/O, nor reads a clock, nor depends on the machine.
PURE = {
    *("__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "difflib", "enum"),
    *(
        "errno",
        "fnmatch",
        "functools",
        "hashlib",
        "heapq",
        "ipaddress",
        "itertools",
        "json",
        "math",
        "operator",
        "re",
        "shlex",
    ),
    *("string", "struct", "textwrap", "tomllib", "types", "typing"),
}

# Modules without a test file of their own, and why.
UNMIRRORED = {
    "__main__.py": "one call of cli, made by every test of a command",
    "core/config_words.py": "the words of core/config.py, whose tests are of whole files",
    "core/settings_keys.py": "the keys of core/settings.py, whose tests are of whole files",
    "errors.py": "declarations: the commands' exit codes are asserted where they end",
}

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def tree_of(module: Path) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(), str(module))


def imports_of(module: Path) -> set[str]:
    """Absolute dotted names of all that a module imports; `from a import b` gives `a.b`."""
    package = ["tnat64d", *module.parent.parts]
    names: set[str] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*origin, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def layer_of(module: Path) -> str:
    return "" if module == Path("__init__.py") else module.parts[0].removesuffix(".py")


def layer_of_import(name: str) -> str:
    """The second word of `tnat64d.…`, or "" for what `tnat64d/__init__.py` itself holds."""
    word = name.split(".")[1] if "." in name else ""
    return word if word in LAYERS or (PACKAGE / word).is_dir() or (PACKAGE / f"{word}.py").is_file() else ""


def is_below(layer: str, imported: str) -> bool:
    return imported in LAYERS[LAYERS.index(layer) :]


def test_every_module_is_in_a_layer() -> None:
    assert {layer_of(module) for module in MODULES} <= set(LAYERS)


def test_imports_point_downwards() -> None:
    upwards = [
        f"{module} imports {name}"
        for module in MODULES
        for name in sorted(imports_of(module))
        if name.partition(".")[0] == "tnat64d" and not is_below(layer_of(module), layer_of_import(name))
    ]
    assert upwards == []


def test_core_imports_only_what_is_pure() -> None:
    impure = [
        f"{module} imports {name}"
        for module in MODULES
        if layer_of(module) in ("core", "errors")
        for name in sorted(imports_of(module))
        if name.partition(".")[0] not in PURE | {"tnat64d"}
    ]
    assert impure == []


def test_nothing_imports_the_tests() -> None:
    assert [m for m in MODULES if any(name.partition(".")[0] == "tests" for name in imports_of(m))] == []


def test_every_module_has_a_docstring() -> None:
    assert [module for module in MODULES if not ast.get_docstring(tree_of(module))] == []


def test_every_module_has_its_test_file() -> None:
    without = {
        str(module)
        for module in MODULES
        if module.name != "__init__.py"
        and module.parts[0] != "cli"  # tests/test_cli.py and its neighbours run the commands
        and not (ROOT / "tests" / module.parent / f"test_{module.name}").is_file()
    }
    assert without == set(UNMIRRORED)


def test_init_files_hold_no_code() -> None:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    inits = [module for module in MODULES if module.name == "__init__.py"]
    assert [m for m in inits if any(isinstance(node, definitions) for node in ast.walk(tree_of(m)))] == []
