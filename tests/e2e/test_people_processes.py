"""Signing in through the gateway's own processes, behind a proxy that says who the client is."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.servers import Gateway

pytestmark = [pytest.mark.processes, pytest.mark.database]


def tries(gateway: Gateway, client_address: str, count: int, name: str = "admin") -> list[int]:
    """What a client at that address is answered, by the proxy's word."""
    headers = {"x-forwarded-for": client_address}
    found = []
    with httpx.Client(base_url=gateway.base_url, headers=headers) as client:
        client.get("/admin/login/")
        for _ in range(count):
            form = {"username": name, "password": "wrong", "csrfmiddlewaretoken": client.cookies["hoosh_csrf"]}
            found.append(client.post("/admin/login/", data=form, headers={"referer": gateway.base_url}).status_code)
    return found


def test_a_lockout_is_of_the_client_behind_the_trusted_proxy(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway(env={"HOOSH_TRUSTED_PROXIES": "127.0.0.1", "HOOSH_SIGN_IN_ATTEMPTS": "3"})
    assert tries(gateway, "198.51.100.7", 4) == [200, 200, 200, 429]
    assert tries(gateway, "203.0.113.9, 198.51.100.7", 1) == [429], "what the client itself claims counts for nothing"
    assert tries(gateway, "198.51.100.8", 1) == [200]


def test_without_a_trusted_proxy_nobody_chooses_their_address(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway(env={"HOOSH_SIGN_IN_ATTEMPTS": "3"})
    assert [tries(gateway, f"198.51.100.{number}", 1) for number in range(4)] == [[200], [200], [200], [429]]


def test_the_team_page_and_the_account_pages_are_reached_through_the_worker(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway()
    for path in ("/team/", "/account/second-factor/"):
        response = httpx.get(gateway.base_url + path)
        assert response.status_code == 302
        assert response.headers["location"] == f"/admin/login/?next={path}"
    assert httpx.get(gateway.base_url + "/account/oidc/").status_code == 404
