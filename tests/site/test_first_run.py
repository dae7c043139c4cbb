"""The first operator and the first key: made once, shown once, never in a log."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import TestCase, TransactionTestCase, override_settings

from audit.models import OutboxEntry
from budgets import keys
from budgets.models import ApiKey
from hoosh_site import first_run
from providers import services
from providers.models import Provider, Route

pytestmark = pytest.mark.database


def secrets_in(lines: list[str]) -> tuple[str, str]:
    text = "\n".join(lines)
    password = re.search(r"password: (\S+)", text)
    key = re.search(r"(hk-\S+)", text)
    return (password[1] if password else "", key[1] if key else "")


class FirstRunTest(TestCase):
    databases = "__all__"

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = Path(folder.name) / "deep" / "first-run.txt"

    def test_on_a_terminal_both_secrets_are_printed_and_work(self):
        password, key = secrets_in(first_run.ensure(terminal=True, file=self.file))
        admin = get_user_model().objects.get(username="admin")
        assert admin.is_superuser
        assert admin.check_password(password)
        assert len(password) >= 20
        row = ApiKey.objects.get(digest=keys.digest_of(key))
        assert set(row.scopes.split(",")) == {"inference", "operator"}
        assert (row.agent.team.name, row.agent.name, row.pool.name) == ("default", "default", "default")
        assert not self.file.exists()

    def test_without_a_terminal_they_go_to_a_file_only_its_owner_may_read(self):
        lines = first_run.ensure(terminal=False, file=self.file)
        assert secrets_in(lines) == ("", "")
        assert str(self.file) in lines[0]
        password, key = secrets_in(self.file.read_text().splitlines())
        assert get_user_model().objects.get(username="admin").check_password(password)
        assert ApiKey.objects.filter(digest=keys.digest_of(key)).exists()
        assert self.file.stat().st_mode & 0o777 == 0o600
        assert [path.name for path in self.file.parent.iterdir()] == ["first-run.txt"]

    def test_a_second_start_makes_and_shows_nothing(self):
        first_run.ensure(terminal=False, file=self.file)
        before = self.file.read_bytes()
        assert first_run.ensure(terminal=True, file=self.file) == []
        assert first_run.ensure(terminal=False, file=self.file) == []
        assert self.file.read_bytes() == before
        assert get_user_model().objects.count() == ApiKey.objects.count() == 1

    def test_what_exists_already_is_left_alone(self):
        get_user_model().objects.create_superuser("somebody", "", "x")
        password, key = secrets_in(first_run.ensure(terminal=True, file=self.file))
        assert (password, bool(key)) == ("", True)
        assert not get_user_model().objects.filter(username="admin").exists()

    def test_when_the_file_cannot_be_written_nothing_is_made(self):
        blocked = Path("/proc/nowhere/first-run.txt")
        with pytest.raises(OSError, match=r"nowhere|Operation|Permission|No such"):
            first_run.ensure(terminal=False, file=blocked)
        assert not ApiKey.objects.exists()
        assert not get_user_model().objects.exists()

    def test_a_link_left_in_the_way_is_not_followed(self):
        self.file.parent.mkdir()
        victim = self.file.parent / "victim"
        victim.write_text("precious")
        os.symlink(victim, self.file)
        first_run.ensure(terminal=False, file=self.file)
        assert victim.read_text() == "precious"
        assert not self.file.is_symlink()

    def test_neither_secret_is_in_the_audit_entries(self):
        password, key = secrets_in(first_run.ensure(terminal=True, file=self.file))
        told = "".join(str(entry.data) + entry.target for entry in OutboxEntry.objects.all())
        assert OutboxEntry.objects.filter(action="operator.created").exists()
        assert password not in told
        assert key not in told

    def test_the_example_names_an_address_and_a_model_that_is_served(self):
        provider = services.save_provider(Provider(name="demo", kind="demo"), actor="test")
        services.save_route(Route(name="glob", pattern="gpt-*", provider=provider, priority=1), actor="test")
        services.save_route(Route(name="demo", pattern="demo", provider=provider), actor="test")
        text = "\n".join(first_run.describe(8088))
        assert "http://127.0.0.1:8088/admin/" in text
        assert '"model": "demo"' in text
        with override_settings(HOOSH_PUBLIC_URL="https://gw.example"):
            assert "https://gw.example/v1/chat/completions" in "\n".join(first_run.describe(8088))
        with override_settings(HOOSH_BIND="::1"):
            assert "http://[::1]:9000/v1" in "\n".join(first_run.describe(9000))
        with override_settings(HOOSH_BIND="0.0.0.0"):
            assert "http://127.0.0.1:9000/v1" in "\n".join(first_run.describe(9000))


class TwoStartsTest(TransactionTestCase):
    databases = "__all__"

    def test_two_starts_at_once_make_one_operator_and_one_key(self):
        results: list[list[str]] = []

        def start() -> None:
            try:
                results.append(first_run.ensure(terminal=True))
            finally:
                connection.close()

        threads = [threading.Thread(target=start) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(bool(lines) for lines in results) == [False, True]
        assert get_user_model().objects.count() == ApiKey.objects.count() == 1
