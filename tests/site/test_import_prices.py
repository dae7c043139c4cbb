"""`manage.py import_prices` with the real price list."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import TestCase
from django.utils import timezone

from budgets import access
from budgets.models import Price
from budgets.prices import PriceBook
from hoosh_site import env
from hoosh_site.management.commands.import_prices import KINDS
from providers.catalog import CATALOG
from providers.models import Provider

pytestmark = pytest.mark.database


def run(*arguments: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("import_prices", *arguments, stdout=out, **options)
    return out.getvalue()


class ImportPricesTests(TestCase):
    databases = "__all__"

    def test_every_kind_it_names_is_in_the_catalogue(self) -> None:
        assert set(KINDS.values()) <= set(CATALOG)

    def test_a_dry_run_shows_and_writes_nothing(self) -> None:
        text = run("--dry-run", "--yes")
        assert "openai: " in text
        assert "  + gpt-4o: input 2.5, output 10, cached 1.25" in run("--dry-run", verbosity=2)
        assert "not expressed: billed by hours of audio: " in text
        assert "(100.0 %)" in text
        assert "Nothing was written." in text
        assert not Price.objects.exists()

    def test_without_a_terminal_and_without_yes_nothing_is_written(self) -> None:
        with pytest.raises(CommandError, match="no terminal to ask on: use --yes to write"):
            run()
        assert not Price.objects.exists()

    def test_on_a_terminal_it_asks(self) -> None:
        for answer, is_written in (("\n", False), ("no\n", False), ("Y\n", True)):
            ours, theirs = pty.openpty()
            self.addCleanup(os.close, ours)
            os.write(ours, answer.encode())
            before = sys.stdin
            with os.fdopen(theirs) as terminal:
                sys.stdin = terminal
                try:
                    text = run("--provider", "grok")
                finally:
                    sys.stdin = before
            assert ("rows were written" in text) is is_written, answer
            assert Price.objects.exists() is is_written

    def test_yes_writes_the_kinds_of_the_catalogue_and_the_second_time_nothing(self) -> None:
        text = run("--yes")
        count = Price.objects.count()
        assert f"{count} rows were written" in text
        assert count > 1000
        assert set(Price.objects.values_list("provider", flat=True)) == set(KINDS.values())
        assert {row.source for row in Price.objects.all()} == {Price.objects.all()[0].source}
        text = run("--yes")
        assert "All prices are those of genai-prices" in text
        assert Price.objects.count() == count
        found = PriceBook.build(access.prices()).find("mine", "openai", "gpt-4o", timezone.now().timestamp())
        assert found is not None
        assert found.imported
        assert found.input == 2_500_000

    def test_what_changed_is_shown_as_a_change(self) -> None:
        run("--yes", "--provider", "groq")
        row = Price.objects.filter(provider="groq").order_by("pattern")[0]
        right = row.input_usd_per_mtok
        Price.objects.filter(pk=row.pk).update(input_usd_per_mtok=Decimal(77))
        text = run("--yes", "--provider", "groq")
        assert f"  ~ {row.pattern} from {timezone.now():%Y-%m-%d}: input 77 → {right.normalize():f}" in text
        assert "1 rows were written" in text
        assert Price.objects.filter(pattern=row.pattern).count() == 2

    def test_json(self) -> None:
        told = json.loads(run("--json", "--provider", "grok"))
        assert told["written"] == 0
        assert {change["provider"] for change in told["changes"]} == {"grok"}
        assert told["changes"][0]["before"] is None
        assert Decimal(told["changes"][0]["after"]["input_usd_per_mtok"]) > 0
        assert told["checked"] > 20
        assert told["disagreements"] == []
        assert not Price.objects.exists()
        assert json.loads(run("--json", "--yes", "--provider", "grok"))["written"] == Price.objects.count() > 0

    def test_a_provider_for_rows_of_a_name_of_ones_own(self) -> None:
        Provider.objects.create(name="my-cloud", kind="openai", base_url="https://cloud.example")
        run("--yes", "--provider", "together=my-cloud", "--provider", "cerebras")
        assert set(Price.objects.values_list("provider", flat=True)) == {"my-cloud", "cerebras"}

    def test_what_cannot_be_asked(self) -> None:
        for chosen in (["nobody"], ["openai", "openai"], ["x-ai", "grok"], ["groq=a", "openai=a"], ["openai=typo"]):
            with self.subTest(chosen), pytest.raises(CommandError):
                run(*(part for each in chosen for part in ("--provider", each)))
        assert not Price.objects.exists()


def test_no_server_process_loads_the_price_list() -> None:
    """It takes tens of megabytes."""
    code = (
        "import django, sys; django.setup(); import hoosh_site.asgi, hoosh_site.control, hoosh_site.worker, "
        "hoosh_site.urls, gateway.api.costs, budgets.price_import; "
        "sys.exit(sum(name.split('.')[0] in ('genai_prices', 'pydantic') for name in sys.modules))"
    )
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "hoosh_site.settings"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=env.PROJECT_DIR, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
