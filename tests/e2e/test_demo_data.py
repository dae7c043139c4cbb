"""`manage.py demo_data` against a real gateway: rows once, requests each time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.test import TestCase

from budgets.models import ApiKey, Pool, Team
from hoosh_site.management.commands import demo_data
from providers.models import Provider, Route
from tests.servers import Gateway


class RowsTest(TestCase):
    databases = "__all__"

    def test_rows_are_made_once_and_keys_anew(self) -> None:
        first = demo_data.make_rows()
        counts = [model.objects.count() for model in (Provider, Route, Team, Pool)]
        second = demo_data.make_rows()
        assert [model.objects.count() for model in (Provider, Route, Team, Pool)] == counts
        assert (len(first), len(set(first + second))) == (4, 8)
        assert ApiKey.objects.filter(revoked_at__isnull=True).count() == 4

    def test_a_gateway_that_is_not_there_is_told(self) -> None:
        with pytest.raises(CommandError, match="cannot be asked"):
            call_command("demo_data", "--requests", "1", "--url", "http://127.0.0.1:9")
        with pytest.raises(CommandError, match="from 0 to"):
            call_command("demo_data", "--requests", "-1")


def test_a_running_gateway_answers_the_demo(tmp_path: Path) -> None:
    with Gateway(tmp_path / "gateway") as gateway:
        told = gateway.manage("demo_data", "--url", gateway.base_url, "--requests", "30", timeout_s=120)
        counts = {int(status): int(count) for count, status in re.findall(r"(\d+) x (\d+)", told)}
        assert sum(counts.values()) == 30
        assert counts.keys() == {200, 404}, told
        assert counts[200] > counts[404]
