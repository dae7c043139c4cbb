"""What the tests of real clients share: one gateway per module in front of real llama.cpp servers, and its books."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx
import pytest

from tests import children, environment
from tests.servers import Gateway, LlamaServer, request_id

_numbers = itertools.count(1)

# A pool without a token, and a key that draws on it.
_SPENT = """
from budgets import access, keys
from budgets.models import Pool
pool = access.save_pool(Pool(name="spent", capacity_tokens=0), actor="test")
agent = access.agent_named("default", "default", actor="test")
print(keys.create_key(agent, pool, "spent", ["inference"], actor="test")[1])
"""


@dataclass(frozen=True)
class Site:
    """A gateway for the clients of one module. The pool of `spent_key` is empty.

    The model "tiny" answers with random words up to the output limit; "tools" calls the tools it is given, and ends.
    """

    gateway: Gateway
    spent_key: str

    @property
    def base_url(self) -> str:
        """Where it answers, without /v1."""
        return self.gateway.base_url

    @property
    def v1(self) -> str:
        """The base URL of OpenAI's clients."""
        return f"{self.base_url}/v1"

    @property
    def key(self) -> str:
        """A key that may do everything."""
        return self.gateway.key

    def booked(self, reply: Mapping[str, str] | str) -> tuple[int, int]:
        """Input and output tokens in the ledger of the request whose headers, or `x-hoosh-request`, these are."""
        headers = {"x-hoosh-request": reply} if isinstance(reply, str) else reply
        row = self.gateway.wait_settled(request_id(headers))
        return row["input_tokens"], row["output_tokens"]


@pytest.fixture(scope="module")
def tool_llama() -> Iterator[LlamaServer]:
    """A real llama.cpp server whose model calls the tools it is given."""
    directory = environment.session_dir() / f"tools{next(_numbers)}"
    server = LlamaServer(directory, alias="tools", tool_happy=True, end_bias=7.0).start()
    yield server
    server.stop()


def make_spent_key(gateway: Gateway) -> str:
    """A key whose pool is empty. The gateway knows it on return."""
    key = gateway.manage("shell", "-c", _SPENT).split()[-1]
    headers = {"authorization": f"Bearer {key}"}
    children.wait_for(
        lambda: httpx.get(f"{gateway.base_url}/v1/models", headers=headers, timeout=5, trust_env=False).is_success,
        "the gateway to know the new key",
        log=gateway.log,
    )
    return key


@pytest.fixture(scope="module")
def site(llama: LlamaServer, tool_llama: LlamaServer) -> Iterator[Site]:
    """The module's gateway."""
    directory = environment.session_dir() / f"site{next(_numbers)}"
    with Gateway(directory, providers=[llama.provider(), tool_llama.provider()]) as gateway:
        yield Site(gateway, make_spent_key(gateway))
