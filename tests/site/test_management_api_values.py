"""Whatever is written into a field of the management API is stored or refused, never a failure of ours."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import TestCase

from providers import services
from providers.models import Provider
from providers.validation import DEMO_URL
from tests.site.management_case import ManagementCase
from tests.site.test_management_api import ROUND_TRIPS

pytestmark = pytest.mark.database

TEXTS = ("x" * 5000, "\x07")
NUMBERS = (-1, 10**18, 1e308)
LISTS = (["x" * 3000], ["\x07"])
STRANGE = (None, True, 10**40, -(2**63), "1e999", "NaN", [None], {}, {"a": {"b": []}}, "0001-01-01T00:00:00+23:59")


class ValuesTest(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()
        services.save_provider(Provider(name="base", kind="demo", base_url=DEMO_URL), actor="test")

    def test_each_field_takes_or_refuses_values_of_its_kind(self) -> None:
        for path, fields, _ in ROUND_TRIPS:
            unique = "pattern" if path == "model-cards" else "name"
            for field, value in {**self.make(path, **fields), **fields}.items():
                for tried in self.values_for(value):
                    response = self.call("POST", path, {**fields, unique: "another", field: tried})
                    assert response.status_code in (201, 400), (path, field, tried, response.content)
                    if response.status_code == 201:
                        assert self.call("DELETE", f"{path}/{response.json()['id']}").status_code == 204

    def values_for(self, value: Any) -> tuple[Any, ...]:
        match value:
            case bool():
                return ()
            case str():
                return TEXTS
            case list():
                return LISTS
            case int() | float():
                return NUMBERS
        return ("\x07", 1e308)

    def test_values_of_no_kind_are_refused_in_every_field_at_once(self) -> None:
        for path, fields, _ in ROUND_TRIPS:
            made = self.make(path, **fields)
            names = set(fields) | (set(made) - {"id"})
            for value in STRANGE:
                response = self.call("PATCH", f"{path}/{made['id']}", dict.fromkeys(names, value))
                assert response.status_code == 400, (path, value, response.content)
