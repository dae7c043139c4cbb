"""Settings that are refused, each with what to do about it."""

from __future__ import annotations

import os
from pathlib import Path

import dj_database_url
import pytest
from django.core.checks import run_checks
from django.test import override_settings

from audit.keys import new_key_text
from hoosh_site import checks

GOOD_KEY = "kQ3v9zXw7Lr2Tn5Bm8Yc4Hd6Jf1Gs0Pa-_EuIoRt"


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """A data directory as `manage.py init` leaves it."""
    for name in ("HOOSH_ALLOWED_HOSTS", "HOOSH_SECRET_KEY", "HOOSH_INSECURE_HTTP"):
        monkeypatch.delenv(name, raising=False)
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    for name in checks.KEY_FILES:
        (keys / name).write_bytes(new_key_text() if name == "signing.key" else b"x" * 50)
        (keys / name).chmod(0o600)
    with override_settings(
        HOOSH_DATA_DIR=tmp_path,
        HOOSH_KEYS_DIR=keys,
        SECRET_KEY=GOOD_KEY,
        HOOSH_BIND="127.0.0.1",
        HOOSH_PUBLIC_URL="",
        HOOSH_TRUSTED_PROXIES=[],
        HOOSH_JOURNAL_SYNC="process",
        HOOSH_SIGNING_KEY="",
        DEBUG=False,
        ALLOWED_HOSTS=["localhost"],
    ):
        yield tmp_path


def told(**changes) -> str:
    with override_settings(**changes):
        return "\n".join(checks.unsafe_settings())


def test_a_plain_loopback_installation_is_fine(data_dir):
    assert told() == ""
    assert told(HOOSH_BIND="::1") == ""
    assert told(DEBUG=True) == ""


def test_a_public_installation_behind_tls_is_fine(data_dir):
    assert told(HOOSH_BIND="0.0.0.0", HOOSH_PUBLIC_URL="https://gw.example", HOOSH_TRUSTED_PROXIES=["10.0.0.2"]) == ""


def test_a_protected_network_without_tls_must_be_said(data_dir, monkeypatch):
    monkeypatch.setenv("HOOSH_ALLOWED_HOSTS", "gw.internal")
    assert "HOOSH_INSECURE_HTTP" in told(HOOSH_BIND="10.0.0.5")
    monkeypatch.setenv("HOOSH_INSECURE_HTTP", "1")
    assert told(HOOSH_BIND="10.0.0.5") == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"HOOSH_BIND": "0.0.0.0", "DEBUG": True}, "HOOSH_DEBUG"),
        ({"HOOSH_BIND": "0.0.0.0"}, "HOOSH_ALLOWED_HOSTS"),
        ({"HOOSH_BIND": "::"}, "HOOSH_ALLOWED_HOSTS"),
        ({"HOOSH_BIND": "0.0.0.0", "ALLOWED_HOSTS": ["*"]}, "contains *"),
        ({"HOOSH_BIND": "gw.example"}, "not an IP address"),
        ({"HOOSH_BIND": ""}, "not an IP address"),
        ({"HOOSH_PUBLIC_URL": "https://gw.example"}, "HOOSH_TRUSTED_PROXIES"),
        ({"HOOSH_PUBLIC_URL": "gw.example"}, "Write it as https://"),
        ({"HOOSH_PUBLIC_URL": "https://gw.example/hoosh", "HOOSH_TRUSTED_PROXIES": ["::1"]}, "without a path"),
        ({"HOOSH_PUBLIC_URL": "https://gw.example:99999", "HOOSH_TRUSTED_PROXIES": ["::1"]}, "HOOSH_PUBLIC_URL"),
        ({"HOOSH_TRUSTED_PROXIES": ["nginx"]}, "neither an address nor a network"),
        ({"HOOSH_TRUSTED_PROXIES": ["0.0.0.0/0"]}, "everybody"),
        ({"HOOSH_JOURNAL_SYNC": "disk"}, "HOOSH_JOURNAL_SYNC"),
        ({"SECRET_KEY": "short"}, "session key"),
        ({"SECRET_KEY": "a" * 64}, "session key"),
        ({"HOOSH_DATA_DIR": Path("/nowhere/at/all")}, "does not exist"),
        ({"HOOSH_KEYS_DIR": Path("/nowhere/at/all")}, "manage.py init"),
    ],
)
def test_each_unsafe_setting_is_refused_with_its_remedy(data_dir, changes, words):
    assert words in told(**changes)


def test_only_sqlite_and_postgresql_with_a_name_are_taken():
    def found(url: str) -> str:
        return " ".join(sentence for _, sentence in checks.database_findings({"default": dj_database_url.parse(url)}))

    assert found("postgres://hoosh:pw@db/hoosh") == ""
    assert found("sqlite:////tmp/x") == ""
    assert "PostgreSQL" in found("mysql://hoosh:pw@db/hoosh")
    assert "names no database" in found("postgres://hoosh:pw@db")
    assert "pw" not in found("mysql://hoosh:pw@db/hoosh")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_file_others_may_use_is_refused(data_dir, mode):
    (data_dir / "keys" / "vault.key").chmod(mode)
    assert "chmod 600" in told()


def test_a_key_directory_others_may_change_is_refused(data_dir):
    (data_dir / "keys").chmod(0o777)
    assert "chmod 700" in told()


@pytest.mark.parametrize("name", ["session.key", "vault.key", "signing.key"])
def test_a_key_file_that_is_missing_empty_or_damaged_is_refused(data_dir, name):
    file = data_dir / "keys" / name
    for content, words in ((b"", "is empty"), (b"\n", "is empty"), (b"\xff" * 50, "is damaged")):
        file.write_bytes(content)
        assert f"{file} {words}" in told()
    file.unlink()
    assert f"{file} is missing" in told()


def test_a_signing_key_that_is_short_made_up_or_no_key_is_refused(data_dir):
    file = data_dir / "keys" / "signing.key"
    for text in (b"c2hvcnQ=", b"A" * 43 + b"=", b"not base64", b"-----BEGIN PRIVATE KEY-----\nMC4C\n"):
        file.write_bytes(text)
        assert "The signing key in" in told()
        assert text.decode() not in told()


def test_a_signing_key_from_the_environment_needs_no_file(data_dir):
    (data_dir / "keys" / "signing.key").unlink()
    assert told(HOOSH_SIGNING_KEY=new_key_text().decode()) == ""
    assert "HOOSH_SIGNING_KEY has 5 bytes" in told(HOOSH_SIGNING_KEY="c2hvcnQ=")


def test_anchors_that_cannot_work_are_refused(data_dir):
    assert "host:port" in told(HOOSH_AUDIT_ANCHOR_SYSLOG="logs")
    assert "absolute path" in told(HOOSH_AUDIT_ANCHOR_FILE="anchors.jsonl")
    assert told(HOOSH_AUDIT_ANCHOR_SYSLOG="/dev/log", HOOSH_AUDIT_ANCHOR_FILE="/mnt/anchors.jsonl") == ""


def test_a_session_key_from_the_environment_needs_no_file(data_dir, monkeypatch):
    (data_dir / "keys" / "session.key").unlink()
    assert "session.key" in told()
    monkeypatch.setenv("HOOSH_SECRET_KEY", GOOD_KEY)
    assert told() == ""


def test_an_unwritable_data_directory_is_refused(data_dir):
    # Root may write anywhere but into a file system that takes nothing.
    assert "not writable" in told(HOOSH_DATA_DIR=Path("/proc/self") if os.getuid() == 0 else Path("/"))


def test_no_sentence_shows_a_secret(data_dir):
    assert "short-secret" not in told(SECRET_KEY="short-secret")


def test_the_check_command_reports_settings_with_ids_but_not_missing_files(data_dir):
    with override_settings(HOOSH_JOURNAL_SYNC="disk", HOOSH_KEYS_DIR=Path("/nowhere")):
        found = {message.id for message in run_checks() if str(message.id).startswith("hoosh.")}
    assert found == {"hoosh.E006"}
