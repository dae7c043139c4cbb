"""Setting up: keys, directories, first rows; and making keys on the command line."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from unittest import mock

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import TestCase, override_settings

from budgets import access, keys
from budgets.models import ApiKey, Pool
from hoosh_site import checks, keyfiles
from hoosh_site.initialise import initialise
from providers import publish, services
from providers.models import ConfigVersion, Provider
from providers.vault import Vault
from tests import environment

PROJECT = Path(__file__).resolve().parents[2]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_made_once_and_for_their_owner_only(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    with override_settings(HOOSH_KEYS_DIR=directory):
        made = keyfiles.create_missing()
        assert sorted(path.name for path in made) == ["session.key", "signing.key", "vault.key"]
        assert {path.name for path in made} == set(checks.KEY_FILES)
        assert mode(directory) == 0o700
        assert {mode(path) for path in made} == {0o600}
        assert len((directory / "session.key").read_text().strip()) >= 64
        assert isinstance(keyfiles.load_signing_key(), Ed25519PrivateKey)
        Vault.load(directory / "vault.key")
        before = {path: path.read_bytes() for path in made}
        assert keyfiles.create_missing() == []
        assert {path: path.read_bytes() for path in made} == before
        assert keyfiles.unsafe_files() == []
        assert sorted(path.name for path in directory.iterdir()) == ["session.key", "signing.key", "vault.key"]


def test_only_the_missing_key_is_made(tmp_path: Path) -> None:
    with override_settings(HOOSH_KEYS_DIR=tmp_path / "keys"):
        keyfiles.create_missing()
        kept = (tmp_path / "keys" / "vault.key").read_bytes()
        (tmp_path / "keys" / "session.key").unlink()
        assert [path.name for path in keyfiles.create_missing()] == ["session.key"]
        assert (tmp_path / "keys" / "vault.key").read_bytes() == kept


def test_two_at_once_agree_on_one_key(tmp_path: Path) -> None:
    made: list[Path] = []
    with override_settings(HOOSH_KEYS_DIR=tmp_path / "keys"):
        (tmp_path / "keys").mkdir(mode=0o700)
        path = tmp_path / "keys" / "vault.key"
        keyfiles._create(path, lambda: (path.write_bytes(b"first"), b"second")[1])
        made = keyfiles.create_missing()
    assert path.read_bytes() == b"first"
    assert path not in made


def test_keys_that_others_can_use_are_told(tmp_path: Path) -> None:
    with override_settings(HOOSH_KEYS_DIR=tmp_path / "keys"):
        keyfiles.create_missing()
        (tmp_path / "keys" / "vault.key").chmod(0o640)
        (tmp_path / "keys").chmod(0o755)
        found = keyfiles.unsafe_files()
    assert len(found) == 2
    assert "chmod 700" in found[0]
    assert "chmod 600" in found[1]


def test_a_wrong_signing_key_is_refused(tmp_path: Path) -> None:
    with override_settings(HOOSH_KEYS_DIR=tmp_path):
        with pytest.raises(keyfiles.KeyFileError, match=r"manage\.py init"):
            keyfiles.load_signing_key()
        (tmp_path / "signing.key").write_text("garbage")
        with pytest.raises(keyfiles.KeyFileError):
            keyfiles.load_signing_key()


def test_a_link_in_place_of_a_private_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "keys").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(keyfiles.KeyFileError):
        keyfiles.make_private_directory(tmp_path / "keys")


@pytest.mark.database
class InitialiseTests(TestCase):
    databases = "__all__"

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.data = Path(directory.name) / "data"
        changed = override_settings(
            HOOSH_DATA_DIR=self.data,
            HOOSH_KEYS_DIR=self.data / "keys",
            HOOSH_JOURNAL_DIR=self.data / "journal",
            HOOSH_LOG_DIR=self.data / "log",
            HOOSH_RUN_DIR=self.data / "run",
            HOOSH_FIRST_RUN_FILE=self.data / "first-run.txt",
            HOOSH_CONFIG="set.toml",  # so that nothing is looked for on this host
        )
        changed.enable()
        self.addCleanup(changed.disable)

    def test_the_first_run_makes_everything_and_the_second_nothing(self) -> None:
        first = initialise()
        self.assertEqual(len(first.keys_made), 3)
        self.assertEqual((first.pool, first.config_version), ("default", ConfigVersion.objects.get().number))
        self.assertEqual(Pool.objects.get().capacity_tokens, 10_000_000)
        self.assertEqual(mode(self.data / "first-run.txt"), 0o600)
        for name in ("keys", "journal", "log", "run"):
            self.assertEqual(mode(self.data / name), 0o700, name)
        again = initialise()
        self.assertEqual((again.keys_made, again.first_run, again.found), ([], [], []))
        self.assertEqual(again.config_version, first.config_version)
        self.assertEqual(ApiKey.objects.count(), 1)

    def test_the_report_holds_no_secret_without_a_terminal(self) -> None:
        report = initialise()
        key = ApiKey.objects.get()
        self.assertNotIn(key.prefix, json.dumps(report.as_dict()))
        self.assertIn(key.prefix, (self.data / "first-run.txt").read_text())

    def test_what_an_operator_changed_stays(self) -> None:
        initialise()
        pool = Pool.objects.get()
        pool.capacity_tokens = 5
        access.save_pool(pool, actor="op")
        initialise()
        self.assertEqual(Pool.objects.get().capacity_tokens, 5)

    def test_the_command_reports_as_json(self) -> None:
        out = StringIO()
        call_command("init", "--json", stdout=out)
        report = json.loads(out.getvalue())
        self.assertEqual(report["config_version"], publish.latest()[0])
        self.assertEqual(report["data_dir"], str(self.data))

    def test_rows_that_cannot_be_published_do_not_stop_it(self) -> None:
        first = initialise()
        services.save_provider(Provider(name="local", kind="vllm", base_url="http://127.0.0.1:8000"), actor="t")
        Provider.objects.update(kind="gone")
        again = initialise()
        self.assertEqual(again.config_version, first.config_version)
        self.assertIn("“gone” is not a kind", " ".join(again.warnings))
        self.assertTrue(again.addresses)

    def test_a_key_that_cannot_be_used_is_told_in_a_sentence(self) -> None:
        keys_dir = self.data / "keys"
        keys_dir.mkdir(parents=True, mode=0o700)
        (keys_dir / "vault.key").write_text("garbage")
        (keys_dir / "vault.key").chmod(0o600)
        with (
            override_settings(HOOSH_CONFIG=""),
            mock.patch.dict(os.environ, {"OPENAI_API_KEY": "sk-0123456789"}),
            self.assertRaisesMessage(CommandError, "not a Fernet key"),
        ):
            call_command("init")

    def test_an_output_that_lacks_letters_loses_no_line(self) -> None:
        written = BytesIO()
        with (
            mock.patch.object(sys, "stdout", TextIOWrapper(written, encoding="ascii")),
            override_settings(HOOSH_PUBLIC_URL="https://gateway.müller.example"),
        ):
            call_command("init")
            sys.stdout.flush()
            shown = written.getvalue()
        self.assertIn(b"API:    https://gateway.m\\xfcller.example/v1", shown)


@pytest.mark.database
class CreateKeyTests(TestCase):
    databases = "__all__"

    def create(self, *options: str) -> dict[str, object]:
        out = StringIO()
        call_command("create_key", "app", "--json", *options, stdout=out)
        return json.loads(out.getvalue())

    def test_a_key_is_made_and_its_text_works(self) -> None:
        access.default_pool("t")
        made = self.create("--team", "blue", "--agent", "bot", "--scope", "operator", "--models", "a*,b")
        row = ApiKey.objects.get(pk=made["id"])
        self.assertEqual(row.digest, keys.digest_of(str(made["key"])))
        self.assertEqual((row.agent.team.name, row.agent.name, row.pool.name), ("blue", "bot", "default"))
        self.assertEqual((row.scopes, row.models_allowed, row.expires_at), ("operator", "a*,b", None))
        self.assertIsNotNone(ApiKey.objects.get(pk=self.create("--expires-days", "1")["id"]).expires_at)

    def test_a_key_may_be_given_a_budget_and_further_pools(self) -> None:
        access.default_pool("t")
        own = access.save_pool(Pool(name="own"), actor="t")
        row = ApiKey.objects.get(pk=self.create("--budget", "own", "--pools", "lab-*, x")["id"])
        self.assertEqual((row.pool.name, row.own_pool, row.pools_allowed), ("default", own, "lab-*,x"))

    def test_a_key_may_be_given_limits(self) -> None:
        access.default_pool("t")
        made = self.create("--requests-per-minute", "60", "--concurrent-requests", "2")
        self.assertEqual(ApiKey.objects.get(pk=made["id"]).limits, (60, None, 2))
        with self.assertRaises(CommandError):
            self.create("--tokens-per-minute", "0")

    def test_the_text_alone_goes_to_standard_output(self) -> None:
        access.default_pool("t")
        out, err = StringIO(), StringIO()
        call_command("create_key", "app", stdout=out, stderr=err)
        self.assertRegex(out.getvalue(), r"^hk-[\w-]{43}\n$")
        self.assertNotIn("hk-", err.getvalue())

    def test_mistakes_are_refused_and_make_nothing(self) -> None:
        with self.assertRaisesMessage(CommandError, "manage.py init"):
            self.create()
        access.default_pool("t")
        for options in (
            ["--pool", "nope"],
            ["--budget", "nope"],
            ["--pools", "a\nb"],
            ["--scope", "root"],
            ["--expires-days", "-1"],
            ["--models", "a\nb"],
        ):
            with self.assertRaises(CommandError):
                self.create("--team", "new", *options)
        self.assertEqual(ApiKey.objects.count(), 0)


@pytest.mark.processes
def test_a_database_that_is_away_is_told_in_a_sentence(short_dir: Path) -> None:
    url = "postgres://hoosh:hunter2@127.0.0.1:1/hoosh"
    done = subprocess.run(
        [sys.executable, "manage.py", "init"],
        cwd=PROJECT,
        env={**environment.clean_environment(), "HOOSH_DATA_DIR": str(short_dir / "data"), "DATABASE_URL": url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("CommandError: Set-up stopped, the database reports: ")
    assert "hunter2" not in done.stderr


@pytest.mark.processes
def test_init_on_an_empty_directory_makes_a_gateway_that_answers_demo(short_dir: Path) -> None:
    values = {**environment.clean_environment(), "HOOSH_DATA_DIR": str(short_dir / "data")}
    done = subprocess.run(
        [sys.executable, "manage.py", "init", "--json"],
        cwd=PROJECT,
        env=values,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["config_version"] == 1
    assert all(count > 0 for count in report["migrations"].values())
    assert any("demo" in line for line in report["found"])
    found = {name for name in os.listdir(short_dir / "data") if not name.endswith(("-wal", "-shm"))}
    assert {"site.sqlite3", "ledger.sqlite3", "keys", "journal", "first-run.txt"} <= found
    assert mode(short_dir / "data") == 0o700
