"""What a worker tells control: bounded, counted, each circuit's changes once."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import (
    BudgetExceededError,
    ForbiddenError,
    GatewayError,
    ModelNotFoundError,
    PriceUnknownError,
    RateLimitedError,
    UnauthorizedError,
    UpstreamRefusedError,
)
from gateway.happenings import OTHERS, Happenings, kind_of
from providers.health import Circuit

T = 1_800_000_000.0  # the beginning of a minute


class Line:
    """What was sent, while it is up."""

    def __init__(self, happenings: Happenings) -> None:
        self.up, self.items, self.sends = True, [], 0
        happenings.send = self.send

    def send(self, items: list[tuple[Any, ...]]) -> bool:
        self.sends += 1
        if self.up:
            self.items += items
        return self.up


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UnauthorizedError(), "auth"),
        (ForbiddenError(), "auth"),
        (ForbiddenError(code="privacy_refused"), "privacy"),
        (PriceUnknownError("p", "m"), "budget"),
        (BudgetExceededError(), "budget"),
        (RateLimitedError(), "limit"),
        (ModelNotFoundError("m"), ""),
        (UpstreamRefusedError("no", status=403), ""),
        (GatewayError(), ""),
    ],
)
def test_only_refusals_of_our_own_are_refusals(error: GatewayError, kind: str) -> None:
    assert kind_of(error) == kind


def test_the_first_refusal_of_a_minute_is_told_in_full_and_the_others_as_a_number() -> None:
    happenings = Happenings()
    line = Line(happenings)
    for number in range(5):
        happenings.refused(RateLimitedError(), T + number, key_id=3, key="hk-abc", model="m", request_id=f"r{number}")
    happenings.refused(RateLimitedError(), T + 6, key_id=4, key="hk-def")
    happenings.refused(UnauthorizedError(), T + 7)
    happenings.flush(T + 8)
    assert line.items == [
        ("refused", T, "limit", "rate_limit_exceeded", 429, 3, "hk-abc", "m", "r0", 0),
        ("refused", T + 6, "limit", "rate_limit_exceeded", 429, 4, "hk-def", "", "", 0),
        ("refused", T + 7, "auth", "invalid_api_key", 401, 0, "", "", "", 0),
    ]
    line.items.clear()
    happenings.flush(T + 59)
    assert line.items == []
    happenings.flush(T + 60)
    assert line.items == [("refused", int(T), "limit", "rate_limit_exceeded", 429, 3, "hk-abc", "", "", 4)]
    line.items.clear()
    happenings.refused(RateLimitedError(), T + 61, key_id=3, request_id="r9")
    happenings.flush(T + 62)
    assert [item[8:] for item in line.items] == [("r9", 0)]
    happenings.flush(T + 300)
    assert len(line.items) == 1  # nothing came after the first, so there is nothing to count


def test_a_provider_that_wants_less_is_told_once_a_minute_with_a_number() -> None:
    happenings = Happenings()
    line = Line(happenings)
    for second in (1, 2, 3, 70):
        happenings.rate_limited(9, T + second)
    happenings.flush(T + 71)
    assert line.items == [
        ("rate_limited", T + 1, 9, 0),
        ("rate_limited", int(T), 9, 2),
        ("rate_limited", T + 70, 9, 0),
    ]


def test_many_keys_are_counted_together_once_too_many_are_counted() -> None:
    happenings = Happenings(counted=3)
    line = Line(happenings)
    for key_id in range(1, 11):
        happenings.refused(UnauthorizedError(), T, key_id=key_id)
    happenings.flush(T + 60)
    assert [(item[5], item[9]) for item in line.items] == [(1, 0), (2, 0), (3, 0), (OTHERS, 0), (OTHERS, 6)]


def test_what_cannot_be_sent_is_kept_up_to_a_bound() -> None:
    happenings = Happenings(buffer=4)
    happenings.refused(UnauthorizedError(), T)
    happenings.flush(T)  # nobody has connected yet
    line = Line(happenings)
    line.up = False
    for key_id in range(1, 7):
        happenings.refused(UnauthorizedError(), T, key_id=key_id)
    happenings.flush(T)
    assert (line.items, happenings.dropped) == ([], 3)
    line.up = True
    happenings.flush(T)
    assert [item[5] for item in line.items] == [3, 4, 5, 6]
    sends = line.sends
    happenings.flush(T)
    assert line.sends == sends  # nothing is nothing to send


def test_each_change_of_a_real_circuit_is_told_once() -> None:
    happenings = Happenings()
    line = Line(happenings)
    circuit, other = Circuit(rand=lambda: 0.5), Circuit()
    circuits = [(7, circuit), (7, other)]

    def look(clock: float) -> None:
        happenings.watch(circuits, clock, T + clock)
        happenings.flush(T + clock)

    look(1)
    for _ in range(5):
        circuit.failed(2.0, threshold=5, open_s=10, error="connect")
    look(3)
    look(4)
    look(13)
    circuit.started(13.0)
    circuit.succeeded()
    look(14)
    look(15)
    assert line.items == [
        ("circuit", T + 3, 7, "open", "connect"),
        ("circuit", T + 13, 7, "half-open", "connect"),
        ("circuit", T + 14, 7, "closed", ""),
    ]


def test_a_circuit_that_is_gone_is_forgotten() -> None:
    happenings = Happenings()
    line = Line(happenings)
    circuit = Circuit()
    circuit.failed(1.0, threshold=1, open_s=10, error="tls")
    for circuits in ([(7, circuit)], [], [(7, circuit)]):
        happenings.watch(circuits, 2.0, T)
    happenings.flush(T)
    assert [item[3] for item in line.items] == ["open", "open"]
