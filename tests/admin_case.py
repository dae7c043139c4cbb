"""What the tests of admin pages share: a signed-in operator, forms filled as a browser would, commits that happen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.db import DEFAULT_DB_ALIAS, connections
from django.http import HttpResponse
from django.test import TestCase
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from hoosh_site import home
from providers.models import ConfigVersion

_INLINE = re.compile(r"(?is)<script(?![^>]*\ssrc=)[^>]*>|<style\b|\sstyle=[\"']|\son[a-z]+=[\"']")


class AdminCase:
    """Signed in as the superuser "ada"; `bob` is staff without any permission, `carl` is no staff."""

    databases = "__all__"

    @classmethod
    def make_people(cls) -> None:
        cls.ada = User.objects.create_superuser("ada", "", "pw")
        cls.bob = User.objects.create_user("bob", "", "pw", is_staff=True)
        cls.carl = User.objects.create_user("carl", "", "pw")

    def setUp(self) -> None:
        home.forget()  # what the first page keeps for some seconds is another test's
        self.client.force_login(self.ada)

    def url(self, name: str, *args: object) -> str:
        return reverse(f"admin:{name}", args=args)

    def page(self, name: str, *args: object, query: str = "") -> str:
        """The HTML of a page that works and has nothing inline."""
        response = self.client.get(self.url(name, *args) + query)
        assert response.status_code == 200, (name, response.status_code, response.headers.get("location"))
        return self.clean_html(response)

    def clean_html(self, response: HttpResponse) -> str:
        html = response.content.decode()
        found = _INLINE.search(html)
        assert found is None, html[max(0, found.start() - 80) : found.end() + 80]
        policy = response.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        return html

    def post(self, name: str, data: dict[str, Any], *args: object) -> HttpResponse:
        """Send a form."""
        return self.client.post(self.url(name, *args), data)

    def errors(self, response: HttpResponse) -> str:
        """The errors of a form that was shown again."""
        assert response.status_code == 200, (response.status_code, response.headers.get("location"))
        html = response.content.decode()
        return " ".join(re.findall(r'(?s)<ul class="errorlist[^>]*>(.*?)</ul>', html))

    def messages(self, response: HttpResponse) -> str:
        """The messages that wait for the next page."""
        return " ".join(
            re.findall(r'(?s)<ul class="messagelist">(.*?)</ul>', self.client.get(self.url("index")).content.decode())
        )

    def act(self, name: str, action: str, rows: list[Any], **more: Any) -> HttpResponse:
        """Run an action on chosen rows."""
        data = {"action": action, "_selected_action": [row.pk for row in rows], **more}
        return self.post(name, data)

    def allow(self, user: User, *names: str) -> None:
        """Sign in as `user` with these permissions only (codenames)."""
        user.user_permissions.set(Permission.objects.filter(codename__in=names))
        self.client.force_login(User.objects.get(pk=user.pk))

    @contextmanager
    def queries(self, expected: int) -> Iterator[None]:
        """Exactly so many statements, over the one or two databases there are."""
        names = {DEFAULT_DB_ALIAS, settings.HOOSH_LEDGER_DB}
        with ExitStack() as stack:
            seen = [stack.enter_context(CaptureQueriesContext(connections[name])) for name in names]
            yield
            statements = [query["sql"] for each in seen for query in each.captured_queries]
        assert len(statements) == expected, "\n".join(statements)

    def versions(self) -> int:
        """How many configurations were published."""
        return ConfigVersion.objects.count()


class AdminTestCase(AdminCase, TestCase):
    """Everything inside one transaction that is rolled back; what waits for a commit runs behind each form."""

    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_people()

    def post(self, name: str, data: dict[str, Any], *args: object) -> HttpResponse:
        with self.captureOnCommitCallbacks(execute=True):
            return super().post(name, data, *args)
