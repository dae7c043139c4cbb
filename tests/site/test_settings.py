"""The settings as the environment gives them: what is read, and what is refused in a sentence."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from hoosh_site import env
from tests import environment

PROJECT = Path(__file__).resolve().parents[2]
Load = Callable[..., dict[str, Any]]


@pytest.fixture
def load(monkeypatch, tmp_path) -> Load:
    """Reads the settings anew with these variables and no others of ours."""
    for name in [name for name in os.environ if name.startswith("HOOSH_") or name in ("DATABASE_URL", "PORT")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOOSH_DATA_DIR", str(tmp_path))

    def read(**values: str) -> dict[str, Any]:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        return runpy.run_path(str(PROJECT / "hoosh_site" / "settings.py"))

    return read


def manage(*arguments: str, **values: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=PROJECT,
        env={**environment.clean_environment(), **values},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_connections_to_postgresql_end_with_their_request(load):
    database = load(DATABASE_URL="postgres://hoosh:pw@db:5433/name")["DATABASES"]["default"]
    assert (database["NAME"], database["PORT"], database["CONN_MAX_AGE"]) == ("name", 5433, 0)


@pytest.mark.parametrize("url", ["sqlite:////tmp/x", "mysql://u:hunter2@db/x", "ftp://u:hunter2@db/x", "hunter2"])
def test_a_database_url_names_postgresql_or_is_refused_without_its_password(load, url):
    with pytest.raises(ImproperlyConfigured, match=r"DATABASE_URL.*postgres://") as caught:
        load(DATABASE_URL=url)
    assert "hunter2" not in str(caught.value)


def test_ipv6_addresses_are_allowed_as_a_host_header_writes_them(load):
    found = load(HOOSH_BIND="FD00:0::1", HOOSH_PUBLIC_URL="http://[fd00::2]:8088", HOOSH_ALLOWED_HOSTS="fd00::3,gw")
    assert found["ALLOWED_HOSTS"] == ["localhost", "127.0.0.1", "[::1]", "[fd00::3]", "gw", "[fd00::1]", "[fd00::2]"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOOSH_LOG_LEVEL", "foo"),
        ("HOOSH_PUBLIC_URL", "https://[::1"),
        ("HOOSH_DATA_DIR", "~nosuchuser/x"),
        ("PORT", "99999"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(load, name, value):
    with pytest.raises(ImproperlyConfigured, match=f"^{name} "):
        load(**{name: value})


def test_a_file_of_a_variable_is_read_refused_or_counts_as_unset(monkeypatch, tmp_path):
    file = tmp_path / "value"
    monkeypatch.setenv("SOME_VALUE", "from the variable")
    monkeypatch.setenv("SOME_VALUE_FILE", str(file))
    with pytest.raises(ImproperlyConfigured, match="SOME_VALUE_FILE"):
        env.text("SOME_VALUE")
    file.write_bytes(b"secret\xff")
    with pytest.raises(ImproperlyConfigured, match="not UTF-8") as caught:
        env.text("SOME_VALUE")
    assert "secret" not in str(caught.value)
    file.write_text(" from the file\n")
    assert env.text("SOME_VALUE") == "from the file"
    file.write_text("\n")
    assert env.text("SOME_VALUE", "default") == "default"
    assert env.integer("SOME_VALUE", 7, minimum=1, maximum=9) == 7


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff" * 50])
def test_a_damaged_session_key_leaves_the_commands_working(load, tmp_path, content):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "session.key").write_bytes(content)
    assert len(load()["SECRET_KEY"]) >= 50


@pytest.mark.processes
def test_a_bad_setting_ends_a_command_in_a_sentence(tmp_path):
    done = manage("check", HOOSH_DATA_DIR=str(tmp_path), HOOSH_LOG_LEVEL="foo")
    assert done.returncode == 1
    assert done.stderr.startswith("hoosh: HOOSH_LOG_LEVEL must be one of")


@pytest.mark.processes
def test_the_deployment_check_is_content_with_a_gateway_behind_tls(tmp_path):
    values = {"HOOSH_PUBLIC_URL": "https://gw.example", "HOOSH_TRUSTED_PROXIES": "127.0.0.1"}
    (tmp_path / "static").mkdir()
    done = manage("check", "--deploy", "--fail-level", "WARNING", HOOSH_DATA_DIR=str(tmp_path), **values)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.processes
def test_an_option_of_serve_counts_before_the_file_of_its_variable(tmp_path):
    (tmp_path / "bind").write_text("127.0.0.1")
    values = {"HOOSH_BIND_FILE": str(tmp_path / "bind"), "HOOSH_DATA_DIR": str(tmp_path)}
    done = manage("serve", "--bind", "nowhere", **values)
    assert "HOOSH_BIND is 'nowhere'" in done.stderr


def test_the_folder_of_the_embedder_is_a_path_or_nothing(load: Load) -> None:
    assert load()["HOOSH_EMBEDDER"] is None
    assert load(HOOSH_EMBEDDER="/srv/model")["HOOSH_EMBEDDER"] == Path("/srv/model")
