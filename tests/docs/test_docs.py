"""The documentation names everything users can touch, and the checks behind `make check` can fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tools import check_docs, check_sizes


@pytest.mark.parametrize(
    "names",
    [check_docs.environment_variables, check_docs.commands, check_docs.endpoints, check_docs.error_codes],
    ids=lambda function: function.__name__,
)
def test_the_checker_finds_what_users_can_touch(names: Callable[[], set[str]]) -> None:
    assert len(names()) >= 3, "did the code move?"


def test_everything_users_can_touch_is_documented() -> None:
    assert check_docs.problems() == []


def test_a_name_counts_as_documented_only_as_a_whole_word() -> None:
    assert check_docs.missing("set `HOOSH_BIND_ALL`", ["HOOSH_BIND"]) == ["HOOSH_BIND"]
    assert check_docs.missing("set `HOOSH_BIND`.", ["HOOSH_BIND"]) == []


def test_placeholders_in_paths_may_be_named_differently() -> None:
    assert check_docs.missing("GET /v1/requests/{id}", ["/v1/requests/<str:request_id>"]) == []
    assert check_docs.missing("GET /v1/requests", ["/v1/requests/<str:request_id>"]) == [
        "/v1/requests/<str:request_id>"
    ]


def test_environment_variables_are_read_from_the_settings() -> None:
    assert {"PORT", "DATABASE_URL", "HOOSH_DATA_DIR", "HOOSH_WORKERS"} <= check_docs.environment_variables()


def test_a_function_of_71_lines_is_refused_and_its_docstring_does_not_count() -> None:
    def source(statements: int) -> str:
        return "def f():\n    '''One.\n\n    Two.\n    '''\n" + "    x = 1\n" * statements

    assert list(check_sizes.check_source("a.py", source(69))) == []
    assert list(check_sizes.check_source("a.py", source(70))) == ["a.py:1: f() has 71 lines, at most 70"]


def test_a_file_of_701_lines_is_refused() -> None:
    assert list(check_sizes.check_source("a.css", "x\n" * 700)) == []
    assert len(list(check_sizes.check_source("a.css", "x\n" * 701))) == 1


def test_a_path_of_one_machine_is_refused() -> None:
    mine = str(Path("/", "home", "somebody", "hoosh"))
    assert len(list(check_sizes.check_paths("a.md", f"see {mine}"))) == 1
    below_home, below_another = f"~{Path('/', 'work', 'x')}", f"a{Path('/', 'root', 'b')}"
    text = f"see https://example.org/home/page and {below_home} and {below_another}"
    assert list(check_sizes.check_paths("a.md", text)) == []
