"""What routing and policies cost: the worker's CPU time per request beside what it was without any of them.

One gateway, measured with one route and one key, and then with 10,000 of each; every other case is a key or a model
there that uses one thing more. `edited` is the latency at a fixed rate, and apart from that the longest stall of the
worker's loop, while an operator's program changes one route and one key a second, beside the same without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from bench import scenarios
from bench.scenarios import Sample
from bench.targets import UNARY_MODEL, Setup, Target
from tests.servers import ProviderEntry

CONNECTIONS = 32
RATE = 200
ROUTES = KEYS = 10_000
STALL_S = 10.0  # as many edits
CANDIDATES = 20
PLAIN = "plain"
_WORDS = "Please summarise the following paragraph for the weekly note, and name who has to act on it by when. "
BODIES = {"1 KB": 10, "4 KB": 40, "76 KB": 760}  # sentences of about 100 bytes

_ROWS = """
import json
from budgets import access, keys
from budgets.models import Agent, ApiKey, Pool, Team
from django.db import transaction
from providers import publish, services
from providers.models import GatewaySettings, PrivacyPolicy, Provider, Route, RoutingPolicy
provider = Provider.objects.first()
made = [Provider(name=f"m{n}", kind=provider.kind, base_url=provider.base_url, address_class=provider.address_class)
        for n in range(@CANDIDATES@)]
Provider.objects.bulk_create(made)
made = list(Provider.objects.filter(name__startswith="m"))
Route.objects.bulk_create([Route(name=f"many-{n}", pattern="bench-many", provider=p, upstream_model="@MODEL@")
                           for n, p in enumerate(made)])
for name, strategy in (("latency", "lowest_latency"), ("cost", "least_cost"), ("weighted", "weighted")):
    Route.objects.bulk_create([Route(name=f"{name}-{n}", pattern=f"bench-{name}", provider=p, upstream_model="@MODEL@")
                               for n, p in enumerate(made)])
    RoutingPolicy.objects.create(name=name, pattern=f"bench-{name}", strategy=strategy)
Route.objects.create(name="kept", pattern="bench-kept", provider=provider, upstream_model="@MODEL@", cache_s=3600)
Route.objects.bulk_create([Route(name=f"r{n}", pattern=f"other-{n}", provider=provider) for n in range(@ROUTES@)])
policy = PrivacyPolicy.objects.create(name="looks")
pool = Pool.objects.first()
plain = access.save_team(Team(name="plain"), actor="bench")
limits = dict(requests_per_minute=10**8, tokens_per_minute=10**9, concurrent_requests=10**6)
limited = access.save_team(Team(name="limited", **limits), actor="bench")
looked = access.save_team(Team(name="looked at", privacy_policy=policy), actor="bench")
found = {}
for name, team, more in (("plain", plain, {}), ("limited", limited, limits), ("looked", looked, {})):
    agent = access.save_agent(Agent(team=team, name=name, **more), actor="bench")
    row, found[name] = keys.create_key(agent, pool, name, actor="bench")
    if more:
        for field, value in more.items():
            setattr(row, field, value)
        keys.update_key(row, actor="bench")
agent = Agent.objects.get(name="plain")
ApiKey.objects.bulk_create([
    ApiKey(agent=agent, pool=pool, name=f"k{n}", prefix=f"hk-{n}", digest=f"{n:064x}") for n in range(@KEYS@)])
publish.publish(author="bench")
print(json.dumps(found))
"""
_EDIT = """
import time
from budgets import keys
from budgets.models import ApiKey
from providers import services
from providers.models import Route
route, key = Route.objects.get(name="r1"), ApiKey.objects.get(name="k1")
end = time.monotonic() + @SECONDS@
number = 0
while time.monotonic() < end:
    number += 1
    route.priority = number
    services.save_route(route, actor="bench")
    key.models_allowed = f"bench-{number}"
    keys.update_key(key, actor="bench")
    time.sleep(1)
"""


class PoliciesSetup(Setup):
    """A gateway with one provider and one route; `grow` adds the rest."""

    port_names = ("MOCK",)

    def providers(self) -> list[ProviderEntry]:
        """The one mock."""
        return [ProviderEntry(self.url("MOCK"), models=["bench-unary", "bench-kept-plain"])]

    def start_mocks(self, stack: contextlib.ExitStack) -> None:
        """nginx that answers with a file."""
        self.spawn(stack, ["nginx", "-c", self.config("mock")], "mock")
        self.wait_for("MOCK")

    def grow(self) -> dict[str, str]:
        """Add routes, keys and policies; the texts of the keys by team."""
        text = _ROWS
        for name, value in (("CANDIDATES", CANDIDATES), ("ROUTES", ROUTES), ("KEYS", KEYS), ("MODEL", UNARY_MODEL)):
            text = text.replace(f"@{name}@", str(value))
        found: dict[str, str] = json.loads(self.gateway.manage("shell", "-c", text, timeout_s=300).splitlines()[-1])
        self.wait_until_known(found["plain"])
        return found

    def wait_until_known(self, key: str) -> None:
        """Wait until the worker runs with what was added."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            body = {"model": "bench-kept", "messages": [{"role": "user", "content": "x"}]}
            with contextlib.suppress(httpx.HTTPError):
                reply = httpx.post(
                    f"{self.gateway.base_url}/v1/chat/completions",
                    json=body,
                    headers={"authorization": f"Bearer {key}"},
                    trust_env=False,
                )
                if reply.status_code == 200:
                    return
            time.sleep(0.2)
        raise scenarios.LoadError("the worker does not run with the added rows")

    @contextlib.contextmanager
    def edited(self, seconds: float) -> Iterator[None]:
        """An operator's program that changes a route and a key each second."""
        command = _EDIT.replace("@SECONDS@", str(seconds))
        thread = threading.Thread(target=self.gateway.manage, args=("shell", "-c", command))
        thread.start()
        time.sleep(2)  # the command has loaded by then
        yield
        thread.join()


def measure(directory: Path, *, runs: int, seconds: float) -> dict[str, Any]:
    """The samples by case; `added_us` where there is one to compare with."""
    with PoliciesSetup(directory / "policies") as setup:
        target = setup.gateway_target()
        plain = dataclasses.replace(target, name=PLAIN)
        figures: dict[str, Any] = dict(
            scenarios.in_turn([plain], runs, lambda one: _load(one, {"MODEL": UNARY_MODEL}, seconds))
        )
        keys = setup.grow()
        time.sleep(2)
        cases = _cases(directory, keys)
        chosen = [dataclasses.replace(target, name=name, key=key) for name, (key, _, _) in cases.items()]
        figures |= scenarios.in_turn(chosen, runs, lambda one: _load(one, cases[one.name][1], seconds))
        for name, (_, _, beside) in cases.items():
            if beside:
                figures[name]["added_us"] = round(figures[name]["cpu_us"] - figures[beside]["cpu_us"], 2)
        quiet = scenarios.at_rate(dataclasses.replace(target, key=keys["plain"]), RATE, seconds)
        with setup.edited(seconds + 4):
            busy = scenarios.at_rate(dataclasses.replace(target, key=keys["plain"]), RATE, seconds)
        figures["edited"] = {"quiet_p99_us": quiet["p99_us"], "edited_p99_us": busy["p99_us"]}
        figures["edited"]["quiet_stall_us"] = scenarios.loop_stall(target, STALL_S)["stall_us"]
        with setup.edited(STALL_S + 4):
            figures["edited"]["edited_stall_us"] = scenarios.loop_stall(target, STALL_S)["stall_us"]
    return figures


def _load(target: Target, environment: dict[str, str], seconds: float) -> Sample:
    return scenarios.closed_loop(target, target.unary_port, environment, connections=CONNECTIONS, seconds=seconds)


def _cases(directory: Path, keys: dict[str, str]) -> dict[str, tuple[str, dict[str, str], str]]:
    """Key, what wrk sends and the case it is compared with, by name."""
    models = {
        "10,000 routes and keys": (UNARY_MODEL, PLAIN),
        "20 candidates, priority": ("bench-many", PLAIN),
        "20 candidates, weighted": ("bench-weighted", PLAIN),
        "20 candidates, lowest latency": ("bench-latency", PLAIN),
        "20 candidates, least cost": ("bench-cost", PLAIN),
        "kept answer told": ("bench-kept", ""),
    }
    cases = {name: (keys["plain"], {"MODEL": model}, beside) for name, (model, beside) in models.items()}
    cases["limits of key, agent and team"] = (keys["limited"], {"MODEL": UNARY_MODEL}, "10,000 routes and keys")
    for size, sentences in BODIES.items():
        path = directory / f"{size.replace(' ', '-')}.json"
        body = {"model": UNARY_MODEL, "messages": [{"role": "user", "content": _WORDS * sentences}], "max_tokens": 256}
        path.write_text(json.dumps(body), encoding="utf-8")
        environment = {"BODY_FILE": str(path)}
        cases[f"{size}, not looked at"] = (keys["plain"], environment, "")
        cases[f"{size}, looked at"] = (keys["looked"], environment, f"{size}, not looked at")
    return cases
