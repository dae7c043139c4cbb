"""Fails on functions over 70 lines, files over 700 lines, and paths that exist only on somebody's machine.

Run as `python -m tools.check_sizes`. A docstring does not count as part of its function's length; migrations are
generated and not measured.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 700
MEASURED_SUFFIXES = frozenset({".py", ".sh", ".js", ".mjs", ".css", ".html", ".lua"})
_MACHINE_PATH = re.compile(r"(?<![\w.~}/-])/(?:home|root|Users|work)/[\w.-]")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def project_files(root: Path = PROJECT_DIR) -> list[Path]:
    """The files of the project: tracked by git, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607 - git from PATH
        cwd=root,
        capture_output=True,
        check=True,
    )
    names = {name for name in listed.stdout.decode().split("\0") if name}
    return sorted(root / name for name in names if (root / name).is_file())


def function_lines(function: Function) -> int:
    """Lines from `def` to the last statement, without the docstring's lines."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def check_source(name: str, text: str) -> Iterator[str]:
    """What is too long in one source file, as messages `FILE:LINE: ...`."""
    lines = text.count("\n")
    if lines > FILE_LINES_MAX:
        yield f"{name}:1: {lines} lines, at most {FILE_LINES_MAX}"
    if not name.endswith(".py"):
        return
    for node in ast.walk(ast.parse(text, name)):
        if isinstance(node, Function) and (length := function_lines(node)) > FUNCTION_LINES_MAX:
            yield f"{name}:{node.lineno}: {node.name}() has {length} lines, at most {FUNCTION_LINES_MAX}"


def check_paths(name: str, text: str) -> Iterator[str]:
    """Lines that name a place on one particular machine."""
    for number, line in enumerate(text.splitlines(), start=1):
        if found := _MACHINE_PATH.search(line):
            yield f"{name}:{number}: a path of one machine: {found.group()}…"


def problems(root: Path = PROJECT_DIR) -> list[str]:
    """Everything wrong in the project below `root`."""
    found: list[str] = []
    for path in project_files(root):
        name = path.relative_to(root).as_posix()
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image or another binary file
        found += check_paths(name, text)
        if path.suffix in MEASURED_SUFFIXES and "/migrations/" not in name:
            found += check_source(name, text)
    return found


def main() -> int:
    """Print what is wrong; the exit status says whether there was anything."""
    found = problems()
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
