"""The house: layers, lint, types, sizes of functions and modules, and who writes to a terminal."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayeffdet.errors import UserError
from rayeffdet.run import INTERRUPTED, TASKS

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "rayeffdet").rglob("*.py"))
CODE = [*MODULES, *(ROOT / "examples").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]

README = (ROOT / "README.md").read_text(encoding="utf-8")

LONGEST_MODULE = 400
LONGEST_FUNCTION = 80
MOST_PARAMETERS = 10

# Each exception with its reason.
MANY_PARAMETERS = {
    "rayeffdet/ops/postprocess.py:postprocess": "five tensors and the settings of a whole stage",
}
TERMINALS = {
    "rayeffdet/console.py": "the one voice of the command line",
    "rayeffdet/spec/explain.py": "run by itself it prints the spec surface for tests/golden",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs a module or code with this Python in the checkout."""
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def functions(path: Path) -> Iterator[tuple[str, Function]]:
    for node in nodes(path):
        if isinstance(node, Function):
            yield f"{name(path)}:{node.name}", node


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "ruff", "check", "."),
        ("-m", "ruff", "format", "--check", "."),
        ("-m", "mypy"),
        ("-c", "from importlinter.cli import lint_imports_command as lint; lint()"),
    ],
    ids=["ruff check", "ruff format", "mypy", "import-linter"],
)
def test_the_gate_is_open(words):
    done = run(*words)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_line_starts_without_torch_and_ray():
    done = run("-c", "import rayeffdet.run, sys; print({'torch', 'ray'} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stdout + done.stderr


def test_modules_are_at_most_400_lines_long():
    lengths = {name(path): path.read_text(encoding="utf-8").count("\n") for path in MODULES}
    assert {path: n for path, n in lengths.items() if n > LONGEST_MODULE} == {}


def test_functions_are_at_most_80_lines_long():
    lengths = {
        place: function.end_lineno - function.lineno + 1
        for path in CODE
        for place, function in functions(path)
    }
    assert {place: n for place, n in lengths.items() if n > LONGEST_FUNCTION} == {}


def test_functions_take_at_most_10_parameters_unless_there_is_a_reason():
    wide = {
        place
        for path in MODULES
        for place, function in functions(path)
        if len([*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs])
        > MOST_PARAMETERS
    }
    assert wide == set(MANY_PARAMETERS)


def test_nothing_is_marked_as_left_for_later():
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    texts = {name(path): path.read_text(encoding="utf-8") for path in CODE}
    del texts[name(Path(__file__))]
    assert {path: found for path, text in texts.items() if (found := marks.findall(text))} == {}


def test_only_the_console_writes_to_a_terminal():
    writers = {name(path) for path in MODULES if any(map(is_terminal, nodes(path)))}
    assert writers == set(TERMINALS)


def is_terminal(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) in ("sys.stdout", "sys.stderr")
    return isinstance(node, ast.Name) and node.id == "print"


def test_the_readme_names_every_task_and_every_exit_code():
    codes = {kind.exit_code for kind in (UserError, *UserError.__subclasses__())} | {INTERRUPTED}
    assert [task for task in TASKS if f"`{task}`" not in README] == []
    assert [code for code in sorted(codes) if f"\n| {code} |" not in README] == []


def test_files_that_the_readme_names_are_there():
    named = set(re.findall(r"\b(?:specs|examples|tests|rayeffdet)/[\w./-]*\w", README))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
