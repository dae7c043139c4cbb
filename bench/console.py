"""How long every page of control takes on the server with a million usage rows, a million audit entries, 1,000 routes
and 10,000 keys, on SQLite.

Usage rows are written by raw SQL and brought into the sums by the gateway's own code; each page is asked for through
Django's test client (all middleware, templates, no network). Which pages: `console_pages.py`; the bound: `report.py`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import random
import sqlite3
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.servers import Gateway

ROWS, ROUTES, KEYS, AGENTS = 1_000_000, 1_000, 10_000, 200
DAYS = 7  # over which the rows are spread
_MODELS = [f"model-{number}" for number in range(40)]
_BUSY_KEYS = 100  # that make seven of ten requests
_CHUNK = 50_000
_PASS = 4_000  # rows counted at once
_OTHERS = 300  # rows of each model that nothing else fills
_COLUMNS = """
rid attempt at key_id agent_id team_id pool_id window_start pools route_id provider_id endpoint model upstream_model
status error stream input_tokens cached_tokens cache_write_tokens output_tokens reasoning_tokens input_audio_tokens
output_audio_tokens input_image_tokens tokens held cost_pico price_id basis latency_us ttft_us config_version shape
attempts client_request_id
"""


def measure(directory: Path, *, runs: int, rows: int = ROWS) -> dict[str, Any]:
    """Milliseconds by page: median and slowest of `runs`; and how long the filling took."""
    gateway = Gateway(directory / "console")
    gateway.directory.mkdir(parents=True)
    gateway.manage("init")
    code = f"from bench import console; console.child({rows}, {max(3, runs)})"
    told = gateway.manage("shell", "-v", "0", "-c", code, timeout_s=1800)
    figures: dict[str, Any] = json.loads(told.splitlines()[-1])
    return figures


def child(rows: int, runs: int) -> None:
    """Inside the gateway's settings: fill the databases, time the pages, print JSON."""
    began = time.monotonic()
    people = _people()
    _usage(rows, people)
    summed_us = _sums() * 1e6 / rows
    _audit(rows, people)
    _some_of_each()
    filled_s = time.monotonic() - began
    told = {"rows": rows, "filled_s": round(filled_s, 1), "summed_us": round(summed_us, 2)}
    print(json.dumps(told | _timed_pages(people, runs)))


def _timed_pages(people: dict[str, Any], runs: int) -> dict[str, Any]:
    """Figures of each page that answers with 200, and the status of each other."""
    from django.contrib.auth.models import User
    from django.test import Client

    from bench import console_pages

    user = User.objects.filter(is_superuser=True).first()
    assert user is not None
    client = Client(headers={"host": "127.0.0.1"}, raise_request_exception=False)
    client.force_login(user)
    pages, others = {}, {}
    for name, url in [*console_pages.pages(client), *_searches()]:
        status = client.get(url).status_code  # templates are compiled once in the life of the process
        if status == 200:
            pages[name] = _timed(client, url, runs)
        else:
            others[name] = status
    return {"pages": pages, "others": others}


def _people() -> dict[str, Any]:
    from budgets import access
    from budgets.models import Agent, ApiKey, Pool, Team
    from providers import services
    from providers.models import Provider, Route

    provider = services.save_provider(
        Provider(name="bench", kind="custom", base_url="http://127.0.0.1:9"), actor="bench"
    )
    Route.objects.bulk_create(
        Route(name=f"route-{number}", pattern=f"model-{number}", provider=provider) for number in range(ROUTES)
    )
    pool = access.save_pool(Pool(name="bench", capacity_tokens=None), actor="bench")
    teams = Team.objects.bulk_create(Team(name=f"team-{number}") for number in range(20))
    agents = Agent.objects.bulk_create(
        Agent(team=teams[number % len(teams)], name=f"agent-{number}") for number in range(AGENTS)
    )
    made = [
        ApiKey(
            agent=agents[number % AGENTS],
            pool=pool,
            name=f"key-{number}",
            prefix=f"hk-{number:08x}",
            digest=f"{number:064x}",
        )
        for number in range(KEYS)
    ]
    keys = ApiKey.objects.bulk_create(made, batch_size=500)
    return {
        "provider": provider.pk,
        "pool": pool.pk,
        "routes": list(Route.objects.values_list("pk", flat=True)),
        "keys": [(key.pk, key.agent_id, key.agent.team_id) for key in keys],
    }


def _usage(rows: int, people: dict[str, Any]) -> None:
    from django.conf import settings

    names = _COLUMNS.split()
    marks = ", ".join("?" * len(names))
    sql = f"INSERT INTO budgets_usage ({', '.join(names)}) VALUES ({marks})"
    with contextlib.closing(sqlite3.connect(settings.DATABASES["ledger"]["NAME"])) as ledger:
        ledger.execute("PRAGMA synchronous = OFF")
        found = _rows(rows, people)
        while chunk := [row for row, _ in zip(found, range(_CHUNK), strict=False)]:
            ledger.executemany(sql, chunk)
            ledger.commit()


def _rows(count: int, people: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    rng = random.Random(7)
    now = dt.datetime.now(dt.UTC)
    begin, step = now - dt.timedelta(days=DAYS), dt.timedelta(days=DAYS) / count
    keys, routes = people["keys"], people["routes"]
    for number in range(count):
        key, agent, team = keys[rng.randrange(_BUSY_KEYS) if rng.random() < 0.7 else rng.randrange(KEYS)]
        model = "rare" if number % (count // 5) == 7 else _MODELS[(key * 7 + rng.randrange(2)) % len(_MODELS)]
        status, error = (
            rng.choice(((429, "rate_limit_exceeded"), (502, "upstream_error"), (499, "client_left")))
            if (rng.random() < 0.02)
            else (200, "")
        )
        at = (begin + step * number).strftime("%Y-%m-%d %H:%M:%S.%f")
        figures = (1, 200, 0, 0, 100, 0, 0, 0, 0, 300, 400, 45_000_000, 1, 0, rng.randrange(100_000, 9_000_000), 90_000)
        yield (
            *(f"{number:032x}", 0, at, key, agent, team, people["pool"], 0, "", routes[int(model[6:] or 0) % 40]),
            *(people["provider"], "chat", model, model, status, error, *figures, 1, "", 1),
            f"client-{number}" if number % 50 == 0 else "",
        )


def _sums() -> float:
    """CPU seconds of this thread."""
    from django.conf import settings
    from django.db import connections

    from budgets import rollups

    connection, began = connections[settings.HOOSH_LEDGER_DB], time.thread_time()
    while not rollups.cover(connection):
        pass
    while rollups.roll_up(connection, _PASS).more:
        pass
    return time.thread_time() - began


def _audit(entries: int, people: dict[str, Any]) -> None:
    from django.db import transaction

    from tests.audit.small_log import SmallLog

    log, routes = SmallLog(), people["routes"]
    with transaction.atomic(using="ledger"):
        log.open()
        for number in range(entries):
            data = {"object": f"providers.route:{routes[number % len(routes)]}", "fields": {"priority": ["1", "2"]}}
            settled = number % 5
            log.add(
                "usage.settled" if settled else "route.changed",
                target="" if settled else f"route-{number % len(routes)}",
                data={"requests": 200} if settled else data,
                source="usage" if settled else "site",
            )
        log.checkpoint()


def _some_of_each() -> None:
    """The demo's rows, and so many of each other model with a page that its list has more than one."""
    from django.contrib import admin

    from hoosh_site.management.commands import demo_data
    from providers.models import Route

    demo_data.make_rows()
    Route.objects.filter(name="route-3").update(priority=77)  # saved and not published: a draft
    for model in admin.site._registry:
        if model._meta.managed and not model._default_manager.exists():
            _fill(model)


def _fill(model: Any) -> None:
    """Rows with whatever each field takes; those of models that take none of it are left out."""
    from django.db import Error, models, transaction
    from django.utils import timezone

    def value(field: models.Field[Any, Any], number: int) -> Any:
        if isinstance(field, models.ForeignKey):
            rows = field.related_model._default_manager.order_by("pk")
            found = rows[number : number + 1] if field.unique else rows[:1]
            return found[0].pk
        if field.choices:
            return field.flatchoices[0][0]
        if isinstance(field, models.DateTimeField):
            return timezone.now() - dt.timedelta(minutes=number)
        if isinstance(field, models.CharField | models.TextField):
            return f"{field.name}-{number}"[: field.max_length or 100]
        if isinstance(field, models.IntegerField):
            return number
        return field.get_default()

    made = []
    with contextlib.suppress(Error, IndexError), transaction.atomic(using=model._default_manager.db):
        for number in range(1, _OTHERS + 1):
            names = [field for field in model._meta.concrete_fields if not field.primary_key]
            wanted = [field for field in names if not (field.has_default() or field.null) or field.unique]
            made.append(model(**{field.attname: value(field, number) for field in wanted}))
        model._default_manager.bulk_create(made)


def _searches() -> list[tuple[str, str]]:
    """What operators look for among requests."""
    from django.urls import reverse

    from budgets.models import Usage

    usage, deep = reverse("admin:budgets_usage_changelist"), Usage.objects.order_by("at")[Usage.objects.count() // 20]
    cursor = f"{int(deep.at.timestamp() * 1_000_000)}-{deep.pk}"
    searches = {
        "the last day": "",
        "31 days": "?day=month",
        "31 days, 50,000 rows from the end": f"?day=month&before={cursor}",
        "a request id": f"?q={deep.rid}",
        "an id there is not": "?q=nobody",
        "a client's id": "?q=client-50000",
        "a busy key, 31 days": "?day=month&q=key:key-7",
        "a quiet key, 31 days": "?day=month&q=key:key-9876",
        "keys by prefix, 31 days": "?day=month&q=key:hk-0000*",
        "an agent, 31 days": "?day=month&agent=team-7/agent-7",
        "a team, 31 days": "?day=month&team=team-7",
        "a common model, 31 days": "?day=month&model=model-3",
        "a rare model, 31 days": "?day=month&model=rare",
        "a model there is not, 31 days": "?day=month&model=nothing",
        "models by prefix, 31 days": "?day=month&model=rar*",
        "a route, 31 days": "?day=month&route=route-3",
        "a route without traffic, 31 days": "?day=month&route=route-999",
        "5xx, 31 days": "?day=month&q=status:5xx",
        "a status there is not, 31 days": "?day=month&q=status:418",
        "an error, 31 days": "?day=month&error=upstream_error",
        "slow, 31 days": "?day=month&q=min:8.99s",
        "slower than any, 31 days": "?day=month&q=min:60s",
        "a busy key and a rare model": "?day=month&q=key:key-7+model:rare",
        "a quiet team's failures of a model": "?day=month&q=team:team-7+status:5xx+model:model-3",
    }
    return [(f"usage: {name}", usage + query) for name, query in searches.items()]


def _timed(client: Any, url: str, runs: int) -> dict[str, float]:
    spent: list[float] = []
    cpu: list[float] = []
    for _ in range(runs):
        began, cpu_began = time.perf_counter(), time.thread_time()
        response = client.get(url)
        cpu.append((time.thread_time() - cpu_began) * 1000)
        spent.append((time.perf_counter() - began) * 1000)
    size = 0 if response.streaming else len(response.content) / 1024
    return {
        "median_ms": round(statistics.median(spent), 1),
        "slowest_ms": round(max(spent), 1),
        "cpu_ms": round(statistics.median(cpu), 1),
        "kb": round(size),
    }
