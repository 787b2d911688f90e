"""Imports point one way, heavy packages stay out until they are used, and compiled code keeps its marks.

errors, typing, _jit, sampling  <-  radix | constrained | speculative | kernels  <-  hf  <-  lang  <-  demo, cli
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "infercore"
LEAVES = {"", "errors", "typing", "_jit", "sampling"}  # "" is infercore/__init__.py, for `infercore.__version__`
PARTS = {"radix", "constrained", "speculative", "kernels"}
MAY_IMPORT = {
    **dict.fromkeys(["", "errors", "typing", "_jit"], frozenset[str]()),
    "sampling": {"errors", "typing"},
    **dict.fromkeys(PARTS, LEAVES),
    "hf": LEAVES | PARTS,
    "lang": LEAVES | PARTS | {"hf"},
    "testing": LEAVES | PARTS | {"hf", "lang"},
    "demo": LEAVES | PARTS | {"hf", "lang"},
    "warmup": LEAVES | PARTS | {"hf"},
    "__main__": {"cli"},
    "cli": LEAVES | PARTS | {"hf", "lang", "testing", "demo", "warmup"},
}
HEAVY = {"torch", "triton", "transformers", "numba", "tokenizers", "accelerate", "gguf", "rich", "pydantic"}
ONLY_IN = {"numba": {"_jit"}, "transformers": {"hf", "demo", "warmup"}, "accelerate": {"demo"}, "gguf": {"demo"}}
FILES = sorted(SOURCE.rglob("*.py"))


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    target: str  # dotted, absolute
    at_module_level: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(SOURCE.parent)}:{self.line} imports {self.target}"


def test_imports_between_parts_point_one_way() -> None:
    wrong = [
        str(found)
        for found in _all_imports()
        if found.target.split(".")[0] == "infercore"
        and _part_of_target(found.target) not in {*MAY_IMPORT[_part(found.file)], _part(found.file)}
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_has_a_place_in_the_layers() -> None:
    assert {_part(file) for file in FILES} <= MAY_IMPORT.keys()


def test_a_part_uses_only_the_public_files_of_another() -> None:
    wrong = [
        str(found)
        for found in _all_imports()
        if found.target.startswith("infercore.")
        and _part_of_target(found.target) not in {_part(found.file), "_jit"}
        and any(piece.startswith("_") and not piece.startswith("__") for piece in found.target.split(".")[1:])
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_only_where_they_belong() -> None:
    wrong = [
        str(found)
        for found in _all_imports()
        if (package := found.target.split(".")[0]) in ONLY_IN and _part(found.file) not in ONLY_IN[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_triton_is_imported_by_kernel_files_and_inside_calls_only() -> None:
    wrong = [
        str(found)
        for found in _all_imports()
        if found.at_module_level
        and any(name.startswith("triton") for name in found.target.split("."))
        and not (_part(found.file) == "kernels" and found.file.name.startswith("triton"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "stays_out"),
    [
        ("infercore", HEAVY | {"numpy"}),
        ("infercore.radix", {"triton", "transformers", "pydantic"}),
        ("infercore.constrained", {"triton", "transformers", "pydantic"}),
        ("infercore.speculative", {"triton", "transformers"}),
        ("infercore.kernels", {"triton", "transformers", "numba"}),
        ("infercore.sampling", {"triton", "transformers", "numba"}),
        ("infercore.demo", HEAVY),
        ("infercore.cli", HEAVY),
    ],
)
def test_importing_a_part_loads_no_more_than_it_needs(module: str, stays_out: set[str]) -> None:
    program = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}} & {stays_out!r}))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    loaded = run.stdout.split()
    assert not loaded, f"import {module} loaded {loaded}"


def test_functions_for_numba_carry_no_type_check() -> None:
    """The import hook that checks shapes in the suite would wrap them, and numba cannot compile what it makes."""
    bare = [
        f"{file.relative_to(SOURCE.parent)}:{function.lineno} {function.name}"
        for file in SOURCE.rglob("_compiled.py")
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        and any(_last_name(decorator).startswith("compiled") for decorator in function.decorator_list)
        and "no_type_check" not in map(_last_name, function.decorator_list)
    ]
    assert not bare, "\n".join(bare)


def test_compiled_functions_live_in_files_of_that_name() -> None:
    elsewhere = [
        str(found)
        for found in _all_imports()
        if found.target.startswith("infercore._jit.compiled") and found.file.name != "_compiled.py"
    ]
    assert not elsewhere, "\n".join(elsewhere)


def _part(file: Path) -> str:
    """First level below `infercore`: "radix" for radix/tree.py, "errors" for errors.py, "" for __init__.py."""
    first = file.relative_to(SOURCE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def _part_of_target(target: str) -> str:
    pieces = target.split(".")
    return (
        pieces[1] if len(pieces) > 1 and (SOURCE / pieces[1]).exists() | (SOURCE / f"{pieces[1]}.py").exists() else ""
    )


def _all_imports() -> Iterator[Import]:
    for file in FILES:
        yield from _imports(file)


def _imports(file: Path) -> Iterator[Import]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = ["infercore", *file.relative_to(SOURCE).parts[:-1]]
    inside_calls = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            targets = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(file, node.lineno, target, id(node) not in inside_calls)


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
