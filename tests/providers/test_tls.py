"""Pins, client certificates and private authorities: the pool and a worker against real TLS servers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from budgets.records import Basis
from providers import certificates, tls
from providers.config import ConfigDocument, ProviderDoc, RouteDoc, pack
from providers.upstream import ConnectFailedError, Limits, Origin, Pool, UpstreamError
from providers.vault import Vault
from tests.gateway.harness import KEY, GatewayServer, held, usage_rows, wait_for
from tests.providers.pools import Runner, failure_of, head, until
from tests.providers.tls_server import Site, TlsServer, chain_of, in_days, key_of, pem_of, pin_of

LIMITS = Limits(connect_s=3, first_byte_s=3, total_s=6)
OTHER_PIN = pin_of(pem_of(trustme.CA()))


@pytest.fixture(scope="module")
def site() -> Site:
    return Site()


@pytest.fixture(scope="module")
def clients() -> trustme.CA:
    return trustme.CA()


def client_pem(authority: trustme.CA, name: str) -> str:
    leaf = authority.issue_cert(f"{name}@test", common_name=name)
    return certificates.client_pem(chain_of(leaf), key_of(leaf))


def pool_for(server: TlsServer, site: Site, **more: Any) -> Pool:
    return Pool(Origin.parse(server.url, "loopback", site.ca_pem, **more))


async def call(pool: Pool) -> int:
    return (await pool.request(head(pool), b"{}", LIMITS)).status


# Pins


@pytest.mark.parametrize("key_type", [trustme.KeyType.RSA, trustme.KeyType.ECDSA])
def test_a_pin_is_the_digest_of_the_public_key_as_it_stands_in_the_certificate(key_type: trustme.KeyType) -> None:
    authority = trustme.CA(key_type=key_type)
    for pem in (authority.cert_pem, authority.issue_cert("a.test", key_type=key_type).cert_chain_pems[0]):
        certificate = x509.load_pem_x509_certificate(pem.bytes())
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        wanted = "sha256/" + base64.b64encode(hashlib.sha256(key).digest()).decode()
        assert tls.pin_of(certificate.public_bytes(Encoding.DER)) == wanted
        assert tls.PIN.fullmatch(wanted)


def test_what_is_no_certificate_has_no_pin() -> None:
    whole = ssl.PEM_cert_to_DER_cert(pem_of(trustme.CA()))
    for bad in (b"", b"\x30", b"\x30\x80", b"\x02\x01\x01", whole[:40], whole[:200], b"\x30\x84\xff\xff\xff\xff"):
        with pytest.raises(ValueError, match="not a certificate"):
            tls.pin_of(bad)
    assert tls.pins_of([b"", whole, whole[:40]]) == (tls.pin_of(whole),)


@pytest.mark.parametrize("which", ["leaf", "middle", "root"])
def test_a_pin_of_any_certificate_of_the_chain_lets_requests_through(run: Runner, site: Site, which: str) -> None:
    async def main() -> None:
        pool = pool_for(server, site, pins=(OTHER_PIN, site.pins[which]))
        assert await call(pool) == 200
        pool.close()
        await until(lambda: pool.open_count == 0)

    with site.server() as server:
        run(main)


def test_without_the_right_pin_nothing_is_sent(run: Runner, site: Site) -> None:
    async def main() -> None:
        pool = pool_for(server, site, pins=(OTHER_PIN,))
        failure = await failure_of(call(pool))
        assert type(failure) is ConnectFailedError
        assert (failure.kind, failure.sent) == ("tls", False)
        assert f"presented {site.pins['leaf']}" in str(failure)
        assert (await failure_of(pool.stream(head(pool), b"{}", LIMITS))).kind == "tls"
        assert pool.idle_count == 0
        await until(lambda: pool.open_count == 0)

    with site.server() as server:
        run(main)
    assert server.connections == 2
    assert server.received == b""


def test_a_pin_does_not_make_an_unknown_authority_trusted(run: Runner, site: Site) -> None:
    async def main() -> None:
        pool = Pool(Origin.parse(server.url, "loopback", pem_of(trustme.CA()), pins=tuple(site.pins.values())))
        assert (await failure_of(call(pool))).kind == "tls"

    with site.server() as server:
        run(main)
    assert server.received == b""


def test_a_certificate_the_server_sends_beside_its_chain_does_not_count(run: Runner, site: Site) -> None:
    stranger = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with site.leaf.private_key_and_cert_chain_pem.tempfile() as path:
        more = Path(path).read_text() + pem_of(stranger)
        Path(path).write_text(more)
        context.load_cert_chain(path)

    async def main() -> None:
        pool = pool_for(server, site, pins=(pin_of(pem_of(stranger)),))
        assert (await failure_of(call(pool))).kind == "tls"

    with TlsServer(context) as server:
        run(main)
    assert server.received == b""


def test_a_server_that_speaks_first_and_leaves_is_an_ordinary_failure(run: Runner, site: Site) -> None:
    async def main() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        site.leaf.configure_cert(context)

        async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        for _ in range(20):
            pool = Pool(Origin.parse(url, "loopback", site.ca_pem, pins=tuple(site.pins.values())))
            with contextlib.suppress(UpstreamError):  # its bytes may also come behind the request
                await call(pool)
            await until(lambda pool=pool: pool.open_count == 0)
        server.close()

    run(main)


@pytest.mark.parametrize("more", [{"pins": (OTHER_PIN,)}, {"client_pem": "x"}, {"client_pem": None}])
@pytest.mark.parametrize(("url", "kind"), [("http://127.0.0.1:9", "loopback"), ("unix:///run/x.sock", "unix")])
def test_what_only_tls_can_keep_is_refused_without_it(url: str, kind: str, more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has no TLS"):
        Origin.parse(url, kind, **more)


def test_the_chain_is_told_before_pins_are_looked_at(run: Runner, site: Site) -> None:
    told: list[tuple[bytes, ...]] = []

    async def main() -> None:
        origin = Origin.parse(server.url, "loopback", site.ca_pem, pins=(OTHER_PIN,))
        await failure_of(call(Pool(origin, on_chain=told.append)))

    with site.server() as server:
        run(main)
    assert [tls.pins_of(chain) for chain in told] == [tuple(site.pins.values())]


# Client certificates

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("newest", VERSIONS, ids=["1.2", "1.3"])
def test_the_client_certificate_is_shown_where_it_is_demanded(
    run: Runner, site: Site, clients: trustme.CA, newest: ssl.TLSVersion
) -> None:
    async def main() -> None:
        pool = pool_for(server, site, client_pem=client_pem(clients, "gateway-1"), pins=(site.pins["middle"],))
        assert [await call(pool), await call(pool)] == [200, 200]
        pool.close()

    with site.server(clients=clients, newest=newest) as server:
        run(main)
    assert server.shown == ["gateway-1"]


@pytest.mark.parametrize("newest", VERSIONS, ids=["1.2", "1.3"])
@pytest.mark.parametrize("shown", ["none", "of another authority"])
def test_a_missing_or_wrong_client_certificate_is_a_failure_and_the_server_reads_nothing(
    run: Runner, site: Site, clients: trustme.CA, newest: ssl.TLSVersion, shown: str
) -> None:
    pem = "" if shown == "none" else client_pem(trustme.CA(), "stranger")

    async def main() -> UpstreamError:
        pool = pool_for(server, site, client_pem=pem)
        failure = await failure_of(call(pool))
        await until(lambda: pool.open_count == 0)
        return failure

    with site.server(clients=clients, newest=newest) as server:
        failure = run(main)
    assert server.received == b""
    assert type(failure) is ConnectFailedError
    assert (failure.kind, failure.sent) == ("tls", False)  # with 1.3 the server judges when the request is on its way


@pytest.mark.parametrize("days", [-1, 300])
def test_a_client_certificate_that_is_over_is_refused_behind_the_handshake(
    run: Runner, site: Site, clients: trustme.CA, days: float
) -> None:
    leaf = clients.issue_cert("late@test", common_name="late", not_before=in_days(-9), not_after=in_days(days))
    pem = certificates.client_pem(chain_of(leaf), key_of(leaf)) if days > 0 else chain_of(leaf) + key_of(leaf)

    async def main() -> None:
        pool = pool_for(server, site, client_pem=pem)
        if days > 0:
            assert await call(pool) == 200
            pool.close()
        else:
            failure = await failure_of(pool.stream(head(pool), b"{}", LIMITS))
            assert (failure.kind, failure.sent) == ("tls", False)
            assert "EXPIRED" in str(failure).upper()

    with site.server(clients=clients) as server:
        run(main)
    assert (server.received == b"") is (days < 0)


def test_an_alert_on_a_connection_that_has_answered_is_no_refusal_of_the_handshake(run: Runner, site: Site) -> None:
    """The server may have read the request then."""

    async def main() -> None:
        pool = pool_for(server, site)
        assert await call(pool) == 200
        (conn,) = pool._idle
        pool._idle.clear()
        future = pool.loop.create_future()
        conn.begin(head(pool), LIMITS, pool.loop.time(), future, streaming=False)
        alert = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required")
        alert.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        assert tls.refuses_ours(alert)
        conn.connection_lost(alert)
        failure = await failure_of(future)
        assert (failure.kind, failure.sent) == ("reset", True)

    with site.server() as server:
        run(main)


def test_a_client_certificate_that_cannot_be_opened_stops_every_connection(run: Runner, site: Site) -> None:
    async def main() -> None:
        failure = await failure_of(call(pool_for(server, site, client_pem=None)))
        assert (failure.kind, failure.sent) == ("tls", False)
        assert "cannot be opened" in str(failure)

    with site.server() as server:
        run(main)
    assert server.connections == 0


def test_no_key_is_in_what_an_origin_shows_of_itself(clients: trustme.CA) -> None:
    pem = client_pem(clients, "gateway-1")
    origin = Origin.parse("https://a.test", "public", client_pem=pem)
    assert "PRIVATE" not in repr(origin)
    assert pem.splitlines()[-2] not in repr(origin)


def test_no_file_with_the_key_is_left_anywhere(clients: trustme.CA, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        tls.context("", client_pem(clients, "gateway-1"))
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# What a worker does with a published configuration


def document(url: str, site: Site, **more: Any) -> ConfigDocument:
    provider = ProviderDoc(1, "tls", "custom", url, "loopback", ca_pem=site.ca_pem, **more)
    return ConfigDocument(providers=(provider,), routes=(RouteDoc(1, "all", "*", 1),))


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[..., httpx.Response]]:
    """Pushes a document and its sealed secrets to a worker, then asks it."""
    key = Vault.new_key()
    (tmp_path / "vault.key").write_bytes(key + b"\n")
    (tmp_path / "vault.key").chmod(0o600)

    with GatewayServer(tmp_path, providers=[], routes=[]) as server:

        def ask(pushed: ConfigDocument, pem: str = "", bound_to: str = "") -> httpx.Response:
            server.version += 1
            where = bound_to or pushed.providers[0].base_url
            server.call(server.runtime.on_secrets, {-1: Vault([key]).seal(pem, where)} if pem else {})
            server.call(server.runtime.on_config, server.version, pack(pushed))
            end = time.monotonic() + 30
            while server.runtime.config_version != server.version:
                assert time.monotonic() < end, server.runtime.status()["build_error"]
                time.sleep(0.01)
            content = {"model": "small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
            url = f"{server.url}/v1/chat/completions"
            return httpx.post(url, json=content, headers={"x-api-key": KEY}, timeout=20)

        yield ask


def test_a_worker_shows_what_was_sealed_for_the_address_and_changes_with_it(
    worker: Callable[..., httpx.Response], site: Site, clients: trustme.CA
) -> None:
    with site.server(clients=clients) as server:
        pems = {name: client_pem(clients, name) for name in ("one", "two")}
        for name in ("one", "one", "two", "two"):  # a connection that is kept was made with the old one
            pushed = document(server.url, site, client_certificate=name, pins=(site.pins["leaf"],))
            assert worker(pushed, pems[name]).status_code == 200
        assert server.shown == ["one", "two"]
        seen = server.received
        for options in ({}, {"pem": client_pem(clients, "three"), "bound_to": "https://elsewhere.test"}):
            reply = worker(document(server.url, site, client_certificate="three"), **options)
            assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_tls")
        assert (server.shown, server.received) == (["one", "two"], seen)


def test_a_worker_sends_nothing_where_no_pin_matches(worker: Callable[..., httpx.Response], site: Site) -> None:
    with site.server() as server:
        reply = worker(document(server.url, site, pins=(OTHER_PIN,)))
        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_tls")
        assert server.connections == 1
        assert server.received == b""
        worker(document(server.url, site, pins=(OTHER_PIN, site.pins["root"])))
        assert b"POST /v1/chat/completions" in server.received


@pytest.mark.parametrize("binding", ["asgi", "worker"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_who_refuses_the_certificate_costs_nothing_and_another_is_asked(
    tmp_path: Path, site: Site, clients: trustme.CA, monkeypatch: Any, binding: str, stream: bool
) -> None:
    monkeypatch.setattr(GatewayServer, "binding", binding)
    body = {"model": "small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "stream": stream}
    with site.server(clients=clients) as strict, site.server() as open_to_all:
        made = [
            ProviderDoc(number, name, "custom", server.url, "loopback", ca_pem=site.ca_pem)
            for number, (name, server) in enumerate((("strict", strict), ("open", open_to_all)), 1)
        ]
        routes = [
            RouteDoc(1, "alone", "alone", 1),
            RouteDoc(2, "first", "small", 1, priority=1),
            RouteDoc(3, "second", "small", 2, priority=2),
        ]
        with GatewayServer(tmp_path, providers=made, routes=routes) as server:

            def ask(model: str) -> httpx.Response:
                url = f"{server.url}/v1/chat/completions"
                return httpx.post(url, json={**body, "model": model}, headers={"x-api-key": KEY}, timeout=20)

            reply = ask("alone")
            assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_tls")
            booked = wait_for(lambda: usage_rows(tmp_path))
            assert [(row.basis, row.tokens, row.cost_pico) for row in booked] == [(Basis.NONE, 0, 0)]
            ask("small")
            assert open_to_all.received.startswith(b"POST /v1/chat/completions")
            booked = wait_for(lambda: len(rows := usage_rows(tmp_path)) == 3 and rows)
            assert [(row.provider_id, row.basis, row.tokens) for row in booked][1] == (1, Basis.NONE, 0)
            assert held(server) == 0
        assert strict.received == b""
