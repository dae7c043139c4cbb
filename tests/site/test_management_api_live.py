"""The management API of a running gateway, through the worker's port."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests import environment
from tests.servers import Gateway

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway(environment.session_dir() / "management") as made:
        yield made


def test_a_gateway_is_set_up_by_the_api_alone_and_answers(gateway: Gateway) -> None:
    key = gateway.create_key("terraform", "--scopes", "admin")
    auth = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=f"{gateway.base_url}/api/v1/", headers=auth, timeout=60, trust_env=False) as api:
        provider = api.post("providers", json={"name": "here", "kind": "demo"})
        assert provider.status_code == 201, provider.text
        assert provider.headers["x-hoosh-publication"] == "published"
        looked = api.post(f"providers/{provider.json()['id']}/test").json()
        assert looked["ok"], looked
        route = api.post(
            "routes", json={"name": "mine", "pattern": "my-model", "provider": "here", "upstream_model": "demo"}
        )
        assert route.status_code == 201, route.text
        place, seen = f"routes/{route.json()['id']}", route.headers["etag"]
        assert api.patch(place, json={"priority": 3}, headers={"If-Match": seen}).json()["priority"] == 3
        assert api.patch(place, json={"priority": 4}, headers={"If-Match": seen}).status_code == 412
        assert api.put(place, json={}).headers["allow"] == "GET, PATCH, DELETE, HEAD"
        agent = api.get("agents").json()["data"][0]
        made = api.post("keys", json={"name": "app", "agent": agent["id"], "pool": "default"}).json()
        answer = _ask(gateway, made["key"])
        assert answer.status_code == 200, answer.text
        told = api.post("routes/explain", json={"model": "my-model"}).json()
        assert "mine" in str(told)

        checked = api.post(
            "import-config?check=1",
            content=api.get("export-config").content,
            headers={"content-type": "application/toml"},
        )
        assert checked.status_code == 200, checked.text
        imported = api.post("prices/import?check=1", json={"providers": ["openai"]})
        assert (imported.status_code, imported.json()["written"]) == (200, 0), imported.text
        assert len(imported.json()["changes"]) > 10
        refused = api.post("prices/import?check=1", json={"providers": ["nobody"]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "providers")

        pool = api.get("pools?name=default").json()["data"][0]
        order = {"kind": "correction", "pool": "default", "unit": "tokens", "amount": 7, "note": "test"}
        number = api.post("ledger-orders", json=order).json()["id"]
        _until(lambda: api.get(f"ledger-orders/{number}").json()["state"] == "done")
        _until(lambda: int(api.get(f"pools/{pool['id']}/balance").json()["purses"][0]["committed"]) > 7)
        _until(lambda: len(api.get("usage").json()["data"]) == 1)
        assert api.get("usage").json()["data"][0]["model"] == "my-model"

        api.delete(f"routes/{route.json()['id']}").raise_for_status()
        _until(lambda: _ask(gateway, made["key"]).status_code == 404)
        api.post(f"keys/{made['id']}/revoke").raise_for_status()
        _until(lambda: _ask(gateway, made["key"]).status_code == 401)


def test_the_worker_tells_our_paths_from_ollamas(gateway: Gateway) -> None:
    with httpx.Client(base_url=gateway.base_url, headers=gateway.auth, timeout=30, trust_env=False) as client:
        assert client.get("/api/tags").json()["models"]
        assert client.get("/api/version").status_code == 200
        for path in ("/api/v1/providers", "/api/v1/providers/"):
            told = client.get(path)
            assert (told.status_code, "scope" in told.json()["error"]["message"]) == (403, True)
        for path in ("/api/v1", "/api/v1/", "/api/v1/nothing"):
            assert (client.get(path).status_code, client.get(path).json()["error"]["code"]) == (404, "not_found")
        assert client.post("/api/pull", json={}).json()["error"].startswith("There is nothing")
        big = client.post(
            "/api/v1/teams", content=os.urandom(10) * 200_000, headers={"content-type": "application/json"}
        )
        assert big.status_code == 403
        assert client.get("/api/v1/docs/").status_code == 302
        assert client.get("/api/v1/schema/").json()["openapi"].startswith("3.")


def _ask(gateway: Gateway, key: str) -> httpx.Response:
    body = {"model": "my-model", "messages": [{"role": "user", "content": "Hello"}]}
    return httpx.post(
        f"{gateway.base_url}/v1/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {key}"},
        timeout=30,
        trust_env=False,
    )


def _until(done: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)
