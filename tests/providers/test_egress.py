"""Address classes and the checks before a connection."""

from __future__ import annotations

import asyncio
import socket

import pytest

from providers.egress import classify, observe_class, resolve, split_url
from providers.failures import ConnectFailedError, EgressRefusedError

CLASSES = {
    "loopback": ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1"],
    "private": [
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "fd12:3456::1",
        "fc00::1",
        "::ffff:10.1.2.3",
    ],
    "public": [
        "1.1.1.1",
        "8.8.8.8",
        "172.32.0.1",
        "172.15.255.255",
        "100.128.0.1",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "64:ff9b::808:808",
        "2002:808:808::1",
        "::ffff:8.8.8.8",
    ],
    "refused": [
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "169.254.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "192.0.2.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.7",
        "203.0.113.7",
        "192.88.99.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::127.0.0.1",
        "::8.8.8.8",
        "fe80::1",
        "fe80::1%1",
        "fec0::1",
        "ff02::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "2001:db8::1",
        "3fff::1",
        "2001::1",
        "100::1",
        "5f00::1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2002:c0a8:101::1",
        "::ffff:169.254.169.254",
        "::ffff:0.0.0.0",
    ],
}


@pytest.mark.parametrize(("ip", "expected"), [(ip, name) for name, ips in CLASSES.items() for ip in ips])
def test_every_address_has_one_class(ip: str, expected: str) -> None:
    assert classify(ip) == expected


@pytest.mark.parametrize(
    ("host", "address_class"),
    [
        ("127.0.0.1", "public"),
        ("127.0.0.1", "private"),
        ("10.0.0.1", "loopback"),
        ("8.8.8.8", "private"),
        ("localhost", "public"),
        ("2130706433", "public"),
        ("0177.0.0.1", "public"),
        ("0x7f.1", "private"),
        ("127.1", "public"),
        ("::1", "public"),
        ("::ffff:127.0.0.1", "public"),
        ("169.254.169.254", "private"),
        ("169.254.169.254", "public"),
        ("0xa9fea9fe", "public"),
        ("64:ff9b::7f00:1", "loopback"),
        ("0.0.0.0", "loopback"),
        ("0", "loopback"),
    ],
)
def test_an_address_outside_the_class_is_refused_however_it_is_written(host: str, address_class: str) -> None:
    with pytest.raises(EgressRefusedError) as caught:
        asyncio.run(resolve(host, 80, address_class))
    assert caught.value.kind == "egress"
    assert caught.value.sent is False


def test_the_address_that_was_checked_is_the_one_that_is_returned() -> None:
    async def both() -> list[object]:
        return [await resolve("127.1", 81, "loopback"), await resolve("::1", 82, "loopback")]

    assert asyncio.run(both()) == [
        [(socket.AF_INET, ("127.0.0.1", 81))],
        [(socket.AF_INET6, ("::1", 82, 0, 0))],
    ]


def test_one_bad_address_among_good_ones_refuses_the_name() -> None:
    class Rebinding(asyncio.SelectorEventLoop):
        async def getaddrinfo(self, host, port, **_options):  # type: ignore[no-untyped-def, override]
            found = ["8.8.8.8", "169.254.169.254" if host == "rebind.test" else "1.1.1.1"]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in found]

    with asyncio.Runner(loop_factory=Rebinding) as runner:
        assert len(runner.run(resolve("good.test", 443, "public"))) == 2
        with pytest.raises(EgressRefusedError, match=r"rebind\.test is at 169\.254\.169\.254"):
            runner.run(resolve("rebind.test", 443, "public"))


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".test", "x..y"])
def test_an_unknown_name_is_a_connect_failure(host: str) -> None:
    with pytest.raises(ConnectFailedError):
        asyncio.run(resolve(host, 80, "public"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8080", "loopback"),
        ("http://localhost:8080/x", "loopback"),
        ("http://[::1]:8080", "loopback"),
        ("http://2130706433", "loopback"),
        ("http://10.1.2.3", "private"),
        ("https://1.1.1.1", "public"),
        ("unix:///run/model.sock", "unix"),
        ("demo://local", "loopback"),
    ],
)
def test_the_class_of_a_url_is_observed(url: str, expected: str) -> None:
    assert observe_class(url) == expected


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://169.254.169.254", "may never be sent"),
        ("http://0.0.0.0:80", "may never be sent"),
        ("http://[fe80::1]", "may never be sent"),
        ("http://no-such-host.invalid", "was not found"),
        ("ftp://x.test", "Not a base URL"),
        ("http://user:pw@x.test", "user name"),
        ("http://x.test#@127.0.0.1", "Not a base URL|user name"),
        ("http://x.test?y", "Not a base URL"),
        ("http://x.test:80:80", "Not a base URL"),
        ("http://x.test:0", "not valid"),
        ("http://x.test:70000", "not valid"),
        ("http://x\t.test", "control"),
        ("http://x.test ", "spaces"),
        ("http://x.test\\@y.test", "backslashes"),
        ("http://\u2460\u2461\u2466.1", "non-ASCII"),
        ("http://[::1%25lo]", "not valid"),
        ("http://[1:2]", "not valid"),
        ("http://x.test/a/../b", "segments"),
        ("http://x.test/%2e%2e/b", "segments"),
        ("http:///x", "Not a base URL"),
        ("unix://relative", "unix:///"),
        ("", "Not a base URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_words(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        observe_class(url)


def test_a_url_is_split_once_and_normalised() -> None:
    assert split_url("https://API.Example.com/openai/") == ("https", "api.example.com", 443, "/openai")
    assert split_url("http://[2001:DB8::1]:8000") == ("http", "2001:db8::1", 8000, "")
    assert split_url("unix:///run/a.sock") == ("unix", "/run/a.sock", 0, "")
