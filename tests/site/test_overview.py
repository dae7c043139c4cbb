"""What the first admin page says about workers."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import TestCase

from gateway import plane

pytestmark = pytest.mark.database


class Plane:
    """A control plane with workers as they report themselves."""

    writer: Any = None

    def __init__(self, *statuses: dict[str, Any]) -> None:
        self.statuses = statuses

    def wake(self, *, reimport: bool = False) -> None:
        """Nothing to look for."""

    def workers(self) -> list[dict[str, Any]]:
        return [{"index": index, "status": status} for index, status in enumerate(self.statuses)]


class OverviewTest(TestCase):
    databases = "__all__"

    def setUp(self) -> None:
        self.client.force_login(User.objects.create_superuser("ada"))
        self.addCleanup(setattr, plane, "current", plane.current)

    def page(self, *statuses: dict[str, Any]) -> str:
        plane.current = Plane(*statuses)
        return self.client.get("/admin/").content.decode()

    def test_a_worker_that_could_not_load_a_version_is_named_with_the_reason(self) -> None:
        said = self.page({"build_error": "config: <bad> route", "config_version": 4, "journal_writable": True})
        self.assertIn("Worker 0 keeps version 4: config: &lt;bad&gt; route", said)

    def test_a_worker_without_a_journal_is_named(self) -> None:
        self.assertIn("Worker 1 cannot write its journal", self.page({}, {"journal_writable": False}))

    def test_well_workers_are_not_mentioned(self) -> None:
        self.assertNotIn("Workers in trouble", self.page({"build_error": "", "journal_writable": True}))
