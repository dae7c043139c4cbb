"""What the tests of the request path share."""

from __future__ import annotations

import pytest

from tests.gateway.harness import GatewayServer


@pytest.fixture(params=["asgi", "worker"])
def binding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test under any ASGI server's binding and under the workers' own."""
    monkeypatch.setattr(GatewayServer, "binding", request.param)
    return str(request.param)


@pytest.fixture
def worker_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the test under the workers' own binding."""
    monkeypatch.setattr(GatewayServer, "binding", "worker")
