"""`manage.py import_cards` with the real lists."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import TestCase

from hoosh_site import env
from providers import services
from providers.card_package import PROVIDERS
from providers.catalog import CATALOG
from providers.models import ModelCard

pytestmark = pytest.mark.database


def run(*arguments: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("import_cards", *arguments, stdout=out, **options)
    return out.getvalue()


class ImportCardsTests(TestCase):
    databases = "__all__"

    def test_every_kind_it_names_is_in_the_catalogue(self) -> None:
        assert set(PROVIDERS) <= set(CATALOG)

    def test_a_dry_run_shows_and_writes_nothing(self) -> None:
        text = run("--dry-run", "--yes")
        assert " new cards, 0 changed, 0 removed, 0 unchanged" in text
        assert "more (-v 2 shows all)" in text
        assert "Nothing was written." in text
        line = (
            "  + gpt-4o: name GPT-4o, context 128,000, output 16,384, labels standard chat tools vision json_schema\n"
        )
        assert line in run("--dry-run", verbosity=2)
        assert not ModelCard.every.exists()

    def test_without_a_terminal_and_without_yes_nothing_is_written(self) -> None:
        with pytest.raises(CommandError, match="no terminal to ask on: use --yes to write"):
            run()
        assert not ModelCard.every.exists()
        run("--yes")
        assert "All imported cards are up to date." in run(), "nothing has to be asked"

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
            assert ("cards were written" in text) is is_written, answer
            assert ModelCard.every.exists() is is_written

    def test_yes_writes_and_the_second_time_there_is_nothing_to_do(self) -> None:
        text = run("--yes")
        count = ModelCard.every.count()
        assert f"{count} cards were written" in text
        assert count > 1000
        assert not ModelCard.objects.exists(), "all of them are imported"
        assert "All imported cards are up to date." in run("--yes")
        assert ModelCard.every.count() == count

    def test_what_changed_and_what_is_gone_is_shown(self) -> None:
        run("--yes")
        ModelCard.every.filter(pattern="gpt-4o").update(context_tokens=77)
        ModelCard.every.create(pattern="old", source="catalogue")
        services.save_card(ModelCard(pattern="gpt-4o", context_tokens=5), actor="ada")
        text = run("--yes")
        assert "0 new cards, 1 changed, 1 removed" in text
        assert "  ~ gpt-4o: context 77 → 128,000\n" in text
        assert "  - old\n" in text
        assert "  ! gpt-4o: your own card stands first" in text
        assert ModelCard.objects.get().context_tokens == 5

    def test_a_selection_adds_and_changes_and_removes_nothing(self) -> None:
        run("--yes", "--provider", "openai")
        some = ModelCard.every.count()
        run("--yes", "--provider", "mistral")
        more = ModelCard.every.count()
        run("--yes")
        assert 150 < some < more < ModelCard.every.count()
        for kind in PROVIDERS:
            assert "All imported cards are up to date." in run("--provider", kind), kind
        ModelCard.every.create(pattern="old", source="catalogue")
        assert "All imported cards are up to date." in run("--provider", "openai")
        ModelCard.every.filter(source="catalogue", pattern="gpt-4o").delete()
        assert "1 new cards, 0 changed, 0 removed" in run("--yes", "--provider", "groq")
        assert ModelCard.every.filter(pattern="old").exists()

    def test_a_kind_cannot_be_removed_alone(self) -> None:
        run("--yes", "--provider", "grok")
        count = ModelCard.every.count()
        with pytest.raises(CommandError, match="--remove is for all imported cards"):
            run("--yes", "--remove", "--provider", "grok")
        assert ModelCard.every.count() == count > 0

    def test_everything_is_removed_but_ones_own(self) -> None:
        run("--yes", "--provider", "openai")
        services.save_card(ModelCard(pattern="mine"), actor="ada")
        assert " removed, 0 unchanged" in run("--yes", "--remove")
        assert [row.pattern for row in ModelCard.every.all()] == ["mine"]

    def test_json(self) -> None:
        told = json.loads(run("--json", "--provider", "grok"))
        assert told["written"] == 0
        first = next(change for change in told["changes"] if change["pattern"] == "gpt-4o")
        assert (first["before"], first["source"]) == (None, "catalogue")
        assert first["after"]["context_tokens"] == 128_000
        assert not ModelCard.every.exists()
        assert json.loads(run("--json", "--yes", "--provider", "grok"))["written"] == ModelCard.every.count() > 0

    def test_an_unknown_kind_is_refused(self) -> None:
        with pytest.raises(CommandError, match="no kind 'nobody'"):
            run("--provider", "nobody")


def test_no_server_process_loads_the_package() -> None:
    """It takes tens of megabytes."""
    code = (
        "import django, sys; django.setup(); import hoosh_site.asgi, hoosh_site.control, hoosh_site.worker, "
        "hoosh_site.urls, providers.card_import, providers.card_list; "
        "sys.exit(sum(name.split('.')[0] in ('genai_prices', 'pydantic') for name in sys.modules))"
    )
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "hoosh_site.settings"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=env.PROJECT_DIR, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
