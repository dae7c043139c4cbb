"""Rows for a run over HTTP, made through the services: `python -m tests.chaos.http_setup JSON`.

Runs in the surroundings of a gateway. A team with agents and keys of their own budgets, projects that requests name, a
price for every model. Prints the texts of the keys and the ids of the pools by name as JSON.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from decimal import Decimal
from typing import Any

INPUT_PICO, OUTPUT_PICO, REQUEST_PICO = 1_000_007, 4_000_013, 1_000
ACTOR = "chaos"


def make(options: dict[str, Any]) -> dict[str, Any]:
    """Everything; `options` has `edge_tokens`, the limit of the project that is nearly spent."""
    from budgets import access, keys
    from budgets.models import Agent, Pool, Price, Team

    def pool(name: str, **fields: Any) -> Pool:
        made = Pool(**{"name": name, "capacity_tokens": 10**12, **fields})
        return access.save_pool(made, actor=ACTOR)

    per_million = Decimal(10**6)
    price = Price(
        provider="*",
        pattern="*",
        input_usd_per_mtok=INPUT_PICO / per_million,
        output_usd_per_mtok=OUTPUT_PICO / per_million,
        request_usd=REQUEST_PICO / Decimal(10**12),
        valid_from=dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
    )
    access.add_price(price, actor=ACTOR)
    team = access.save_team(Team(name="red", pool=pool("team red", capacity_usd=Decimal(100_000))), actor=ACTOR)
    agents = [
        access.save_agent(Agent(team=team, name="counting", pool=pool("agent counting")), actor=ACTOR),
        access.save_agent(
            Agent(team=team, name="watched", pool=pool("agent watched", mode="observe", capacity_tokens=1000)),
            actor=ACTOR,
        ),
    ]
    pool("edge", team=team, capacity_tokens=options["edge_tokens"])
    pool("rolling", team=team, window="hour", capacity_usd=Decimal(1000))
    base = pool("base", capacity_tokens=None)
    texts = []
    for number, agent in enumerate(agents):
        own = pool(f"key {number}", capacity_usd=Decimal(50_000), mode=("hard", "soft")[number])
        _key, text = keys.create_key(agent, base, f"key {number}", actor=ACTOR, own_pool=own)
        texts.append(text)
    return {"keys": texts, "pools": dict(Pool.objects.values_list("name", "id"))}


def cost(input_tokens: int, output_tokens: int) -> int:
    """pico-USD of one request at that price."""
    return REQUEST_PICO + input_tokens * INPUT_PICO + output_tokens * OUTPUT_PICO


def main() -> None:
    """Make the rows of one gateway."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hoosh_site.settings")
    django.setup()
    print(json.dumps(make(json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
