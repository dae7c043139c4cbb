"""Where requests may go: address classes, and name resolution that checks every address before it is used.

A provider's class (`loopback`, `private`, `public`) is observed once, when an operator saves its URL. At every connect
the name is resolved once and all its addresses must still be of that class; the connection is then made to the checked
address itself, so a name that changes its answer gains nothing. Metadata services, link-local, multicast and reserved
addresses are refused in every class. The table is our own: `ipaddress.is_global` differs between Python releases and
takes several translated forms of loopback for public ones.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from typing import Any, NamedTuple

from providers.failures import ConnectFailedError, EgressRefusedError

LOOPBACK, PRIVATE, PUBLIC, REFUSED, UNIX = "loopback", "private", "public", "refused", "unix"
CLASSES = (LOOPBACK, PRIVATE, PUBLIC)

type_of_address = ipaddress.IPv4Address | ipaddress.IPv6Address

# The first matching row decides. Metadata services stand before the ranges that contain them.
_V4: tuple[tuple[ipaddress.IPv4Network, str], ...] = tuple(
    (ipaddress.IPv4Network(text), name)
    for text, name in (
        ("100.100.100.200/32", REFUSED),  # metadata, Alibaba Cloud
        ("168.63.129.16/32", REFUSED),  # host agent, Azure
        ("127.0.0.0/8", LOOPBACK),
        ("10.0.0.0/8", PRIVATE),
        ("172.16.0.0/12", PRIVATE),
        ("192.168.0.0/16", PRIVATE),
        ("100.64.0.0/10", PRIVATE),  # carrier-grade NAT, also overlay networks
        ("0.0.0.0/8", REFUSED),
        ("169.254.0.0/16", REFUSED),  # link-local, most metadata services
        ("192.0.0.0/24", REFUSED),  # protocol assignments, metadata at Oracle
        ("192.0.2.0/24", REFUSED),
        ("192.88.99.0/24", REFUSED),  # 6to4 relays
        ("198.18.0.0/15", REFUSED),
        ("198.51.100.0/24", REFUSED),
        ("203.0.113.0/24", REFUSED),
        ("224.0.0.0/4", REFUSED),
        ("240.0.0.0/4", REFUSED),
        ("0.0.0.0/0", PUBLIC),
    )
)
_V6: tuple[tuple[ipaddress.IPv6Network, str], ...] = tuple(
    (ipaddress.IPv6Network(text), name)
    for text, name in (
        ("::1/128", LOOPBACK),
        ("fd00:ec2::/32", REFUSED),  # metadata, AWS
        ("fd20:ce::/32", REFUSED),  # metadata, Google Cloud
        ("fc00::/7", PRIVATE),
        ("2001::/23", REFUSED),  # protocol assignments, Teredo
        ("2001:db8::/32", REFUSED),
        ("3fff::/20", REFUSED),
        ("2000::/3", PUBLIC),
        ("::/0", REFUSED),
    )
)
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_6TO4 = ipaddress.IPv6Network("2002::/16")

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})))\Z")
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[^\]/?#@]*\]|[^:/?#@\[\]]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?\Z"
)
_UNIX_URL = re.compile(r"unix://(/[^\x00-\x1f\x7f?#]{1,107})\Z")


class Address(NamedTuple):
    """The parts of a base URL. For a Unix socket `host` is the socket's path and `port` is 0."""

    scheme: str  # "http" | "https" | "unix"
    host: str  # lower case, IPv6 without brackets
    port: int
    prefix: str  # path in front of every request path; "" or "/x/y"


def split_url(base_url: str) -> Address:
    """The only reading of a base URL there is. Raises `ValueError` naming what is wrong with it."""
    if base_url.startswith("unix:"):
        match = _UNIX_URL.match(base_url)
        if match is None:
            raise ValueError("A Unix socket is written unix:///absolute/path.")
        return Address("unix", match[1], 0, "")
    if not base_url.isascii() or any(char <= " " or char in "\\\x7f" for char in base_url):
        raise ValueError("The URL may not contain spaces, backslashes, control or non-ASCII characters.")
    if "@" in base_url.split("://")[-1].split("/")[0]:
        raise ValueError("The URL may not contain a user name or password; store a credential instead.")
    match = _URL.match(base_url)
    if match is None:
        raise ValueError("Not a base URL: expected http(s)://host[:port][/path] without query or fragment.")
    host = _HOST.match(match["host"])
    port = int(match["port"] or (443 if match["scheme"] == "https" else 80))
    if host is None or not 1 <= port <= 65535:
        raise ValueError("The URL's host or port is not valid.")
    if host[1]:
        try:
            ipaddress.IPv6Address(host[1])
        except ValueError as exc:
            raise ValueError("The URL's IPv6 address is not valid.") from exc
    prefix = (match["path"] or "").rstrip("/")
    if any(segment in (".", "..") for segment in prefix.replace("%2e", ".").replace("%2E", ".").split("/")):
        raise ValueError("The URL's path may not contain . or .. segments.")
    return Address(match["scheme"], (host[1] or host[2]).lower(), port, prefix)


def classify(ip: str | type_of_address) -> str:
    """The class of one address: "loopback", "private", "public", or "refused" (never to be connected to).

    An IPv4-mapped address is judged by the IPv4 address in it; NAT64 and 6to4 only pass when that one is public.
    """
    address = ipaddress.ip_address(ip.partition("%")[0]) if isinstance(ip, str) else ip
    if isinstance(address, ipaddress.IPv4Address):
        return next(name for network, name in _V4 if address in network)
    if address in _MAPPED:
        return classify(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address in _NAT64 or address in _6TO4:
        shift = 0 if address in _NAT64 else 80
        inner = classify(ipaddress.IPv4Address(int(address) >> shift & 0xFFFFFFFF))
        return PUBLIC if inner == PUBLIC else REFUSED
    return next(name for network, name in _V6 if address in network)


async def resolve(host: str, port: int, address_class: str) -> list[tuple[int, Any]]:
    """Resolve once and check every address; the (family, sockaddr) pairs to connect to, in the resolver's order.

    Raises `EgressRefusedError` when any address is outside `address_class`, `ConnectFailedError` when the name is not
    known. Literal addresses need no resolver.
    """
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        _check(host, literal, address_class)
        if isinstance(literal, ipaddress.IPv4Address):
            return [(socket.AF_INET, (host, port))]
        return [(socket.AF_INET6, (host, port, 0, 0))]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as exc:
        raise ConnectFailedError(f"{host} was not found: {exc}") from exc
    addresses: list[tuple[int, Any]] = []
    for family, _, _, _, sockaddr in found:
        _check(host, ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]), address_class)
        addresses.append((family, sockaddr))
    if not addresses:
        raise ConnectFailedError(f"{host} has no address")
    return addresses


def _check(host: str, address: type_of_address, address_class: str) -> None:
    found = classify(address)
    if found == REFUSED:
        raise EgressRefusedError(f"{host} is at {address}, which requests may never be sent to")
    if found != address_class:
        raise EgressRefusedError(f"{host} is at {address} ({found}), but it was approved as {address_class}")


def observe_class(base_url: str) -> str:
    """The class a base URL's host is in now: "loopback", "private", "public" or "unix". Blocks while resolving.

    Raises `ValueError`, in words for an operator, when the URL is not valid, the name is not known, its addresses are
    of several classes, or one of them may never be used. The built-in demo provider (`demo:`) counts as loopback.
    """
    if base_url.startswith("demo:"):
        return LOOPBACK
    address = split_url(base_url)
    if address.scheme == "unix":
        return UNIX
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as exc:
        raise ValueError(f"The host {address.host} was not found ({exc}).") from exc
    classes: dict[str, str] = {}
    for _, _, _, _, sockaddr in found:
        ip = str(sockaddr[0])
        classes[classify(ip)] = ip
    if REFUSED in classes:
        raise ValueError(f"The host {address.host} is at {classes[REFUSED]}, which requests may never be sent to.")
    if len(classes) != 1:
        listed = ", ".join(f"{ip} ({name})" for name, ip in sorted(classes.items()))
        raise ValueError(f"The host {address.host} has addresses of several classes: {listed}.")
    return next(iter(classes))
