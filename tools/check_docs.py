"""Fails when something users can touch is not in the documentation: variables, commands, endpoints, error codes.

Run as `python -m tools.check_docs`. The lists come from the code itself, so what is added there must be written about
in README.md or docs/ before the checks pass.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools import management_docs

PROJECT_DIR = Path(__file__).resolve().parent.parent
APPS = ("hoosh_site", "gateway", "providers", "budgets", "events", "audit")
_ENV_READERS = frozenset({"text", "integer", "boolean", "items"})
_SET_BY_OURSELVES = frozenset({"HOOSH_TESTING"})
_ENDPOINT = re.compile(r"/(?:(?:api/)?v1/[a-z0-9_/{}<>:.-]+|livez|readyz|metrics)")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}|<[^<>]*>|\[[^\[\]]*\]")


def documentation(root: Path = PROJECT_DIR) -> str:
    """The text of README.md and every page under docs/, in one string."""
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages if page.exists())


def environment_variables(root: Path = PROJECT_DIR) -> set[str]:
    """Names our code reads from the environment, and those the catalogue looks at for provider keys."""
    names: set[str] = set()
    for node in _walk_apps(root, APPS):
        if isinstance(node, ast.Call) and _reads_environment(node) and node.args:
            names |= _strings([node.args[0]])
    for node in _walk(root / "providers" / "catalog.py"):
        if isinstance(node, ast.keyword) and node.arg == "env":
            names |= _strings([node.value])
    return {name for name in names if re.fullmatch(r"[A-Z][A-Z0-9_]+", name)} - _SET_BY_OURSELVES


def commands(root: Path = PROJECT_DIR) -> set[str]:
    """Names of our management commands."""
    files = (file for app in APPS for file in (root / app / "management" / "commands").glob("*.py"))
    return {file.stem for file in files if not file.stem.startswith("_")}


def endpoints(root: Path = PROJECT_DIR) -> set[str]:
    """Paths of the inference path table, of the workers' own probes and of the control API; not the admin's pages."""
    texts = (node.value for node in _walk_apps(root, ("gateway",)) if isinstance(node, ast.Constant))
    found = {text for text in texts if isinstance(text, str) and _ENDPOINT.fullmatch(text)}
    return found | set(_django_paths())


def error_codes(root: Path = PROJECT_DIR) -> set[str]:
    """The `code` of every error clients can see: class attributes of the error tree, and codes given when raising."""
    codes: set[str] = set()
    for node in _walk(root / "gateway" / "errors.py"):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _target(node) == "code":
            codes |= _strings([node.value])
    for node in _walk_apps(root, ("gateway",)):
        if isinstance(node, ast.keyword) and node.arg == "code":
            codes |= _strings([node.value])
    return {code for code in codes if re.fullmatch(r"[a-z][a-z0-9_]+", code)}


def missing(text: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that `text` does not mention as whole words; placeholders in paths may have any name."""
    plain = _PLACEHOLDER.sub("{}", text)
    absent = []
    for name in sorted(set(names)):
        wanted = re.escape(_PLACEHOLDER.sub("{}", name).rstrip("/"))
        if not re.search(rf"(?<![\w-]){wanted}(?![\w-])", plain):
            absent.append(name)
    return absent


def problems(root: Path = PROJECT_DIR) -> list[str]:
    """What the documentation leaves out, one message each. Needs Django's settings to be loadable."""
    text = documentation(root)
    subjects = {
        "environment variable": environment_variables(root),
        "command": {f"manage.py {name}" for name in commands(root)},  # "models" alone would be found on any page
        "endpoint": endpoints(root),
        "error code": {f"`{code}`" for code in error_codes(root)},
    }
    found = [f"not documented: {kind} {name}" for kind, names in subjects.items() for name in missing(text, names)]
    return found + management_docs.problems()


def _walk_apps(root: Path, apps: Iterable[str]) -> Iterator[ast.AST]:
    for app in apps:
        for file in sorted((root / app).rglob("*.py")):
            if "migrations" not in file.parts:
                yield from _walk(file)


def _walk(file: Path) -> Iterator[ast.AST]:
    if file.exists():
        yield from ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file)))


def _reads_environment(call: ast.Call) -> bool:
    match call.func:
        case ast.Attribute(value=ast.Name(id="env"), attr=name) | ast.Name(id=name):
            return name in _ENV_READERS
    return False


def _target(node: ast.Assign | ast.AnnAssign) -> str:
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    return target.id if isinstance(target, ast.Name) else ""


def _strings(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _django_paths() -> Iterator[str]:
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hoosh_site.settings")
    django.setup()
    from django.urls import URLPattern, URLResolver, get_resolver

    def walk(resolver: URLResolver, prefix: str) -> Iterator[str]:
        for entry in resolver.url_patterns:
            path = prefix + str(entry.pattern).removeprefix("^").removesuffix("$")
            if isinstance(entry, URLPattern):
                yield path
            elif entry.namespace != "admin":
                yield from walk(entry, path)

    for path in walk(get_resolver(), "/"):
        if _ENDPOINT.fullmatch(path):
            yield path


def main() -> int:
    """Print what is missing; the exit status says whether there was anything."""
    found = problems()
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
