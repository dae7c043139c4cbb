"""`manage.py demo_data`: something to look at. Providers without network, teams, keys and budgets, and real requests.

What it makes is ordinary rows, with names that begin with "demo"; what it asks goes through the running gateway like
anybody's requests, so every page shows what it would of them.
"""

from __future__ import annotations

import random
import time
from argparse import ArgumentParser
from decimal import Decimal
from typing import Any

import httpx
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from budgets import access, keys
from budgets.models import ApiKey, Pool, Price, Team
from providers import publish, services
from providers.models import PrivacyPolicy, Provider, Route, RoutingPolicy
from providers.validation import DEMO_URL

ACTOR = "demo_data"
MODELS = ("demo-small", "demo-large", "demo-code")
_PROVIDERS = ("demo-berlin", "demo-oslo", "demo-lisbon")
_TEAMS = {"demo-support": ("helpdesk", "mail-sorter"), "demo-engineering": ("reviewer", "nightly-tests")}
_QUESTIONS = (
    "Summarise the last release notes in three sentences.",
    "Which of these tickets is the most urgent?",
    "Write a test for a function that parses dates.",
    "Translate 'the meeting is moved to Tuesday' into Portuguese.",
    "My colleague's address is ana@example.org: draft a polite reminder to her.",
)
_PATIENCE_S = 20.0


class Command(BaseCommand):
    """Makes demo rows and asks the gateway some questions."""

    help = "Fill a gateway with demo providers, teams, budgets and requests."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """How many requests, and where to."""
        parser.add_argument("--requests", type=int, default=120, help="Requests to send; 0 = only rows (default: 120).")
        parser.add_argument("--url", default=f"http://127.0.0.1:{settings.HOOSH_PORT}", help="The running gateway.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Make what is missing, then ask."""
        if not 0 <= options["requests"] <= 100_000:
            raise CommandError("--requests is a number from 0 to 100000.")
        texts = make_rows()
        self.stdout.write(f"{len(_PROVIDERS)} providers, {len(MODELS)} models, {len(_TEAMS)} teams, {len(texts)} keys.")
        if options["requests"]:
            try:
                statuses = ask(options["url"].rstrip("/"), texts, options["requests"])
            except httpx.HTTPError as exc:
                raise CommandError(f"The gateway at {options['url']} cannot be asked: {exc}") from exc
            told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
            self.stdout.write(f"Asked {options['requests']} times: {told}.")


def make_rows() -> list[str]:
    """Everything the demo needs; what is there stays as it is. The texts of new keys, one for each agent."""
    with publish.held_back():
        providers = [_provider(name) for name in _PROVIDERS]
        for place, model in enumerate(MODELS):
            for priority, provider in enumerate(providers[place:] + providers[:place]):
                name = f"{model}-{provider.name.removeprefix('demo-')}"
                if not Route.objects.filter(name=name).exists():
                    route = Route(name=name, pattern=model, provider=provider, upstream_model="demo")
                    route.priority, route.weight = 10 * (priority + 1), 3 - priority
                    route.cache_s = 3600 if model == "demo-small" else 0
                    services.save_route(route, actor=ACTOR)
        if not RoutingPolicy.objects.filter(name="demo-share").exists():
            services.save_policy(
                RoutingPolicy(name="demo-share", pattern="demo-large", strategy="weighted"), actor=ACTOR
            )
        policy = PrivacyPolicy.objects.filter(name="demo-redact").first() or services.save_privacy_policy(
            PrivacyPolicy(name="demo-redact", confidential="redact"), actor=ACTOR
        )
    publish.publish(ACTOR, "demo data")
    if not Price.objects.filter(provider__startswith="demo-").exists():
        for name, usd in zip(_PROVIDERS, ("2", "5", "0.5"), strict=True):
            price = Price(provider=name, pattern="*", valid_from=timezone.now())
            price.input_usd_per_mtok, price.output_usd_per_mtok = Decimal(usd) * 10, Decimal(usd) * 40
            access.add_price(price, actor=ACTOR)
    return [text for team, agents in _TEAMS.items() for text in _team(team, agents, policy)]


def _provider(name: str) -> Provider:
    found = Provider.objects.filter(name=name).first()
    return found or services.save_provider(Provider(name=name, kind="demo", base_url=DEMO_URL), actor=ACTOR)


def _team(name: str, agents: tuple[str, ...], policy: PrivacyPolicy) -> list[str]:
    pool = Pool.objects.filter(name=name).first()
    if pool is None:
        pool = Pool(name=name, capacity_usd=Decimal("2"), capacity_tokens=400_000, window="day")
        access.save_pool(pool, actor=ACTOR)
    if not Team.objects.filter(name=name).exists():
        access.save_team(Team(name=name, privacy_policy=policy if name == "demo-support" else None), actor=ACTOR)
    texts = []
    for agent_name in agents:
        agent = access.agent_named(name, agent_name, actor=ACTOR)
        for old in ApiKey.objects.filter(agent=agent, revoked_at__isnull=True):  # nobody has their texts any more
            keys.revoke_key(old, actor=ACTOR)
        texts.append(keys.create_key(agent, pool, f"demo {agent_name}", actor=ACTOR)[1])
    return texts


def ask(url: str, texts: list[str], requests: int) -> dict[int, int]:
    """Send so many requests; how many got which status. Raises `httpx.HTTPError`."""
    statuses: dict[int, int] = {}
    chance = random.Random(7)  # noqa: S311 - the same demo each time
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        _wait_until_known(client, texts[-1])
        for _ in range(requests):
            body: dict[str, Any] = {
                "model": chance.choice((*MODELS, *MODELS, "demo-unknown")),
                "messages": [{"role": "user", "content": chance.choice(_QUESTIONS)}],
                "max_tokens": chance.choice((20, 60, 200)),
                "stream": chance.random() < 0.4,
            }
            headers = {"authorization": f"Bearer {chance.choice(texts)}"}
            reply = client.post("/v1/chat/completions", json=body, headers=headers)
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
    return statuses


def _wait_until_known(client: httpx.Client, text: str) -> None:
    """New keys and routes are known to every worker within a second or so."""
    end = time.monotonic() + _PATIENCE_S
    body = {"model": MODELS[0], "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    while (
        client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {text}"}).status_code != 200
    ):
        if time.monotonic() > end:
            raise httpx.HTTPError("it does not know the new keys or routes")
        time.sleep(0.25)
