"""Where a key may be used: which endpoints, and from which addresses. Pure.

Only keys that are limited so have one of these; for all others a request pays for one look at an attribute.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from budgets.records import KeyRecord
from gateway.errors import ForbiddenError

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Reach:
    """The endpoints and networks of one key."""

    __slots__ = ("_endpoints", "_networks")

    def __init__(self, endpoints: Sequence[str], addresses: Sequence[str]) -> None:
        """`addresses` are addresses or networks; anything else raises `ValueError`."""
        self._endpoints = frozenset(endpoints)
        self._networks: tuple[_Network, ...] = tuple(ipaddress.ip_network(text) for text in addresses)

    def check(self, endpoint: str, client: str) -> None:
        """Raises `ForbiddenError` where the key may not be used. "" as the endpoint is one that every key may use."""
        if endpoint and self._endpoints and endpoint not in self._endpoints:
            raise ForbiddenError(
                f"This API key may not be used for the endpoint '{endpoint}'.", code="endpoint_not_allowed"
            )
        if self._networks and not self._holds(client):
            raise ForbiddenError("This API key may not be used from this address.", code="address_not_allowed")

    def _holds(self, client: str) -> bool:
        try:
            address = ipaddress.ip_address(client)
        except ValueError:  # a Unix socket, a test client: nobody knows where it is
            return False
        plain = getattr(address, "ipv4_mapped", None) or address
        return any(plain in network for network in self._networks)


def reach_of(record: KeyRecord) -> Reach | None:
    """What limits a key so; None = nothing does."""
    return Reach(record.endpoints, record.addresses) if record.endpoints or record.addresses else None
