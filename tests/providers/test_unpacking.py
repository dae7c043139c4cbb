"""The published document, decoded in slices, with what a worker has already taken over where nothing changed."""

from __future__ import annotations

import zlib

import msgspec
import pytest

from providers import config
from providers.config import ConfigDocument, PolicyDoc, ProviderDoc, RouteDoc, SettingsDoc

PROVIDERS = tuple(ProviderDoc(n, f"p{n}", "custom", "http://127.0.0.1:1", "loopback") for n in (1, 2))
ROUTES = tuple(RouteDoc(n, f"r{n}", f"m-{n}", 1 + n % 2, tags=("a",)) for n in range(1, 5001))
DOCUMENT = ConfigDocument(SettingsDoc(max_attempts=4), PROVIDERS, ROUTES, (PolicyDoc(1, "p", "*", "direct"),))


def unpacked(document: ConfigDocument, known: ConfigDocument | None) -> tuple[int, ConfigDocument]:
    """How many pauses there were, and the document."""
    *pauses, made = config.unpacking(config.pack(document), known)
    assert made is not None
    assert set(pauses) == {None}
    return len(pauses), made


def test_a_document_comes_back_whole_in_slices() -> None:
    pauses, made = unpacked(DOCUMENT, None)
    assert made == DOCUMENT
    assert config.digest(made) == config.digest(DOCUMENT)
    assert pauses >= len(ROUTES) // config.SLICE
    assert config.unpack(config.pack(DOCUMENT)) == DOCUMENT


def test_what_is_equal_is_taken_from_the_known_document() -> None:
    changed = msgspec.structs.replace(ROUTES[7], priority=3)
    provider = msgspec.structs.replace(PROVIDERS[1], name="other")
    routes = (*ROUTES[:7], changed, *ROUTES[9:])
    _, made = unpacked(msgspec.structs.replace(DOCUMENT, providers=(PROVIDERS[0], provider), routes=routes), DOCUMENT)
    assert made.routes == routes
    assert [route.id for route in made.routes if route is not ROUTES[route.id - 1]] == [changed.id]
    assert made.providers[0] is PROVIDERS[0]
    assert made.providers[1] == provider
    assert made.settings is DOCUMENT.settings


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_blob_that_was_cut_is_no_document(cut: int) -> None:
    with pytest.raises(ValueError, match="not a configuration document"):
        config.unpack(config.pack(DOCUMENT)[:cut])


@pytest.mark.parametrize(
    "text", [b"[]", b'{"routes":[{"id":1}]}', b'{"routes":[1]}', b'{"providers":[{"id":"x"}]}', b'{"settings":{}', b""]
)
def test_what_is_not_one_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="not a configuration document"):
        config.unpack(zlib.compress(text))


def test_a_later_format_is_refused_before_its_routes_are_read() -> None:
    with pytest.raises(ValueError, match="format 2 is not known"):
        config.unpack(zlib.compress(b'{"format":2,"routes":[{"is":"other"}]}'))
