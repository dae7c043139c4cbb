"""Requests and tokens per minute and requests at once: exact, all or none, settled up and down, told as headers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.limits import gcra
from gateway.limits.limiter import LIMIT_MAX, Limiter, Limits, Refusal, Subject, Subjects, Ticket, duration, group
from gateway.limits.slots import HELD, REQUESTS, TOKENS, USED, Slots
from gateway.limits.status import SlotStatus, read_status

SECOND = 10**9
MINUTE = 60 * SECOND
BOOT = b"1" * 16


class Clock:
    """Nanoseconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 10**15

    def __call__(self) -> int:
        return self.now


class Host:
    """One worker's limits on a clock of their own."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.path = path
        self.slots = Slots(path, capacity=4096, clock=self.clock, boot=BOOT)
        self.limiter = Limiter(self.slots)

    def wait(self, seconds: float) -> None:
        self.clock.now += round(seconds * SECOND)

    def take(self, subjects: Subjects, tokens: int = 0) -> Ticket:
        ticket = self.limiter.admit(subjects, tokens)
        assert isinstance(ticket, Ticket)
        return ticket

    def refused(self, subjects: Subjects, tokens: int = 0) -> Refusal:
        refusal = self.limiter.admit(subjects, tokens)
        assert isinstance(refusal, Refusal)
        return refusal

    def shown(self, name: str = "key:1") -> SlotStatus:
        status = read_status(self.path, clock=self.clock, boot=BOOT)
        assert status is not None
        return next(slot for slot in status.slots if slot.name == name)

    def states(self, ticket: Ticket) -> list[tuple[int, ...]]:
        words = (REQUESTS, TOKENS, USED, HELD)
        return [tuple(self.slots.words[taken[1] + word] for word in words) for taken in ticket.taken]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("shared") / "limits")
    yield host
    host.slots.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "limits")
    yield host
    host.slots.close()


# ------------------------------------------------------------------ requests


def test_a_minute_of_requests_goes_at_once_and_then_one_per_interval(host):
    subjects = group(("key", 1, Limits(requests_per_minute=7)))
    for _ in range(7):
        host.take(subjects)
    refusal = host.refused(subjects)
    assert refusal[:5] == ("key", 1, "requests", 7, 0)
    assert refusal.retry_after_s == pytest.approx(60 / 7)
    assert refusal.reset_after_s == pytest.approx(60)
    host.wait(60 / 7 - 0.001)
    host.refused(subjects)
    host.wait(0.002)
    host.take(subjects)
    host.refused(subjects)


def test_after_a_quiet_minute_everything_is_there_again_and_no_more(host):
    subjects = group(("key", 1, Limits(requests_per_minute=3)))
    for _ in range(3):
        host.take(subjects)
    host.wait(1_000)
    for _ in range(3):
        host.take(subjects)
    host.refused(subjects)


@given(
    rate=st.one_of(st.integers(1, 50), st.integers(1, LIMIT_MAX)),
    gaps=st.lists(st.one_of(st.just(0), st.integers(0, 2 * 10**9), st.integers(0, 2 * MINUTE)), max_size=60),
)
@settings(max_examples=150, deadline=None)
def test_requests_are_let_through_exactly_as_from_a_bucket(shared, rate, gaps):
    subjects = group(("model", next(IDS), Limits(requests_per_minute=rate)))
    interval = -(-MINUTE // rate)
    level = Fraction(rate)
    for gap in gaps:
        shared.clock.now += gap
        level = min(Fraction(rate), level + Fraction(gap, interval))
        allowed = level >= 1
        level -= allowed
        assert isinstance(shared.limiter.admit(subjects), Ticket) is allowed


IDS = itertools.count(1)


# ------------------------------------------------------------------ tokens


def test_tokens_are_reserved_and_what_was_not_used_is_there_again(host):
    subjects = group(("key", 1, Limits(tokens_per_minute=6_000)))
    ticket = host.take(subjects, 5_000)
    assert host.refused(subjects, 2_000)[:5] == ("key", 1, "tokens", 6_000, 1_000)
    ticket.settle(500)
    assert host.shown().tokens_remaining == 1_000, "settling only notes the amount"
    ticket.leave()
    assert host.shown().tokens_remaining == 5_500
    assert host.shown().tokens_reserved == 0
    host.take(subjects, 5_500)


def test_more_than_was_reserved_is_charged_and_must_refill(host):
    subjects = group(("key", 1, Limits(tokens_per_minute=6_000)))
    ticket = host.take(subjects, 1_000)
    ticket.settle(9_000)
    ticket.leave()
    assert host.shown().tokens_remaining == 0
    refusal = host.refused(subjects, 1_000)
    assert refusal.remaining == 0
    assert refusal.retry_after_s == pytest.approx(40)
    host.wait(40)
    host.take(subjects, 1_000)


def test_a_debt_is_forgiven_after_an_hour_and_no_sooner(host):
    subjects = group(("key", 1, Limits(tokens_per_minute=10)))
    ticket, *others = (host.take(subjects, 1) for _ in range(3))
    ticket.settle(10**9)
    ticket.leave()
    for other in others:
        other.settle(0)
        other.leave()
        host.wait(1)
    host.refused(subjects, 1)
    host.wait(3_500)
    host.refused(subjects, 10)
    host.wait(101)
    host.take(subjects, 10)


def test_without_a_settlement_the_estimate_is_what_was_used(host):
    subjects = group(("key", 1, Limits(tokens_per_minute=6_000)))
    ticket = host.take(subjects, 5_000)
    ticket.leave()
    assert host.shown().tokens_remaining == 1_000
    host.wait(10)
    assert host.shown().tokens_remaining == 2_000


def test_leaving_twice_gives_back_once(host):
    subjects = group(("key", 1, Limits(None, 6_000, 5)))
    first, second = host.take(subjects, 1_000), host.take(subjects, 1_000)
    first.settle(0)
    first.leave()
    first.leave()
    assert (host.shown().in_flight, host.shown().tokens_reserved, host.shown().tokens_remaining) == (1, 1_000, 5_000)
    second.leave()


def test_a_long_call_does_not_keep_what_has_refilled_since(host):
    subjects = group(("key", 1, Limits(tokens_per_minute=6_000)))
    host.take(subjects, 6_000)
    host.wait(60)
    assert host.shown().tokens_remaining == 6_000
    host.take(subjects, 6_000)


def test_what_refilled_while_a_call_ran_is_not_given_back_once_more(host):
    subjects = group(("key", 1, Limits(tokens_per_minute=6_000)))
    long = host.take(subjects, 6_000)
    host.wait(60)
    other = host.take(subjects, 6_000)
    long.settle(0)
    long.leave()
    assert host.shown().tokens_remaining == 0
    other.leave()
    assert host.shown().tokens_remaining == 0


def test_calls_of_a_few_seconds_with_high_estimates_are_charged_by_what_they_used(host):
    subjects = group(("key", 1, Limits(tokens_per_minute=60_000)))
    used = 0
    for _ in range(200):
        ticket = host.limiter.admit(subjects, 8_192)
        host.wait(2)
        if isinstance(ticket, Ticket):
            ticket.settle(3_000)
            ticket.leave()
            used += 3_000
    allowed = 60_000 + 400 * 1_000
    assert allowed - 8_192 - 3_000 < used <= allowed


def test_one_long_call_does_not_keep_short_ones_from_getting_back_what_they_did_not_use(host):
    subjects = group(("key", 1, Limits(tokens_per_minute=60_000)))
    host.take(subjects, 30_000)
    host.wait(60)
    short = host.take(subjects, 20_000)
    host.wait(1)
    short.settle(1_000)
    short.leave()
    assert host.shown().tokens_remaining == 59_000


def test_an_estimate_above_the_whole_limit_is_refused_for_good(host):
    subjects = group(("key", 1, Limits(60, 1_000)), ("team", 2, Limits(requests_per_minute=1)))
    host.take(subjects, 0)
    refusal = host.refused(subjects, 1_001)
    assert refusal == Refusal("key", 1, "larger_than_limit", 1_000, 1_000, 0.0, None)
    host.wait(60)
    host.take(subjects, 1_000)


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[int, int, int | None, int]]:
    """Calls as (start, reserved, used or None for never settled, end), times in ms."""
    calls = []
    for _ in range(draw(st.integers(1, 12))):
        start, length = draw(st.integers(0, 90_000)), draw(st.sampled_from([0, 1, 700, 9_000, 70_000]))
        reserved = draw(st.integers(0, 6_000))
        used = draw(st.one_of(st.none(), st.integers(0, reserved), st.integers(0, 12_000)))
        calls.append((start, reserved, used, start + length))
    return calls


@given(calls=stories())
@settings(max_examples=250, deadline=None)
def test_however_calls_overlap_never_less_is_counted_than_had_each_reserved_what_it_used(shared, calls):
    rate = 6_000
    subjects = group(("story", next(IDS), Limits(tokens_per_minute=rate)))
    begin = shared.clock.now + 3 * MINUTE
    events = sorted([(call[0], 0, n) for n, call in enumerate(calls)] + [(c[3], 1, n) for n, c in enumerate(calls)])
    admitted: dict[int, Ticket] = {}
    costs: list[list[int]] = []  # of those admitted: when, and what by now; in the order they came
    place: dict[int, int] = {}
    for at, ends, number in events:
        now = shared.clock.now = begin + at * 10**6
        _, reserved, used, _ = calls[number]
        if not ends:
            full_at = hindsight(costs, now)
            answer = shared.limiter.admit(subjects, reserved)
            if isinstance(answer, Ticket):
                assert full_at + gcra.cost_ns(reserved, rate) - now <= MINUTE
                admitted[number] = answer
                place[number] = len(costs)
                costs.append([now, gcra.cost_ns(reserved, rate)])
            continue
        ticket = admitted.get(number)
        if ticket is None:
            continue
        if used is not None:
            ticket.settle(used)
            costs[place[number]][1] = gcra.cost_ns(used, rate)
        row = ticket.taken[0][1]
        before = max(now, shared.slots.words[row + TOKENS])
        ticket.leave()
        after = max(now, shared.slots.words[row + TOKENS])
        assert after >= hindsight(costs, now)
        assert after <= before + gcra.cost_ns(max(0, (used or 0) - reserved), rate)
    assert not any(shared.slots.words[ticket.taken[0][1] + HELD] for ticket in admitted.values())


def hindsight(costs: list[list[int]], now: int) -> int:
    """When the bucket would be full, had every call taken at its start what is known of it now."""
    full_at = 0
    for at, cost in costs:
        full_at = max(full_at, at) + cost
    return max(full_at, now)


# ------------------------------------------------------------------ at once


def test_as_many_at_once_as_the_limit(host):
    subjects = group(("key", 1, Limits(concurrent=2)))
    first, _ = host.take(subjects), host.take(subjects)
    assert host.refused(subjects) == Refusal("key", 1, "concurrent", 2, 0, 0.0, 1.0)
    first.leave()
    host.take(subjects)
    host.refused(subjects)


def test_what_is_counted_without_a_limit_is_never_refused(host):
    subjects = group(("provider", 4, Limits(), True))
    tickets = [host.take(subjects) for _ in range(50)]
    assert host.slots.in_flight(b"provider:4") == 50
    for ticket in tickets:
        ticket.leave()
    assert host.slots.in_flight(b"provider:4") == 0


# ------------------------------------------------------------------ several subjects


@pytest.mark.parametrize("limits", [Limits(1), Limits(None, 1_000), Limits(None, None, 1)], ids=str)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_refusal_by_one_subject_takes_nothing_of_any(host, limits, place):
    wide = Limits(1_000, 10**6, 1_000)
    named = [("key", 1, wide), ("team", 2, wide)]
    named.insert(place, ("provider", 3, limits))
    subjects = group(*named)
    ticket = host.take(subjects, 1_000)
    before = host.states(ticket)
    refusal = host.refused(subjects, 1_000)
    assert (refusal.kind, refusal.id) == ("provider", 3)
    assert host.states(ticket) == before
    ticket.leave()
    assert all(state[3] == 0 for state in host.states(ticket))


def test_a_refusal_names_the_limit_that_takes_longest(host):
    subjects = group(("key", 1, Limits(60)), ("agent", 2, Limits(2)), ("team", 3, Limits(None, 600)))
    for _ in range(2):
        host.take(subjects, 300)
    refusal = host.refused(subjects, 100)
    assert refusal[:3] == ("agent", 2, "requests")
    assert refusal.retry_after_s == pytest.approx(30)
    refusal = host.refused(subjects, 400)
    assert refusal[:3] == ("team", 3, "tokens")
    assert refusal.retry_after_s == pytest.approx(40)


def test_requests_of_different_subjects_do_not_touch_each_other(host):
    one, other = (group(("key", id, Limits(1, 100, 1))) for id in (1, 2))
    host.take(one, 100)
    host.take(other, 100)
    host.refused(one, 1)


def test_a_changed_limit_keeps_the_used_share(host):
    host.take(group(("key", 1, Limits(requests_per_minute=2))))
    host.take(group(("key", 1, Limits(requests_per_minute=100))))
    assert host.shown().requests_remaining == 49
    assert host.shown().requests_per_minute == 100


def test_a_limit_that_is_taken_away_while_a_request_is_under_way_leaves_nothing_behind(host):
    ticket = host.take(group(("key", 1, Limits(10, 1_000, 5))), 500)
    other = host.take(group(("key", 1, Limits(10))))
    again = host.take(group(("key", 1, Limits(10, None, 5))))
    for each in (ticket, other, again):
        each.leave()
    assert (host.shown().in_flight, host.shown().tokens_reserved) == (0, 0)


def test_without_limits_nothing_is_touched(tmp_path):
    host = Host(tmp_path / "limits")
    host.slots.close()
    subjects = group(("key", 1, Limits()), ("team", 2, Limits()))
    assert len(subjects) == 0
    ticket = host.take(subjects, 10**9)
    ticket.settle(1)
    ticket.leave()
    assert ticket.headers() == []


@pytest.mark.parametrize("limits", [Limits(0), Limits(None, -1), Limits(None, None, LIMIT_MAX + 1)])
def test_a_limit_out_of_range_is_refused_when_it_is_made(limits):
    with pytest.raises(ValueError, match="A limit of key 1 is not between"):
        Subject("key", 1, limits)


def test_a_subject_named_twice_is_refused_when_the_group_is_made():
    with pytest.raises(ValueError, match="named twice"):
        group(("key", 1, Limits(1)), ("key", 1, Limits(None, 5)))


@pytest.mark.parametrize("limit", [1, 7, 60, 999_999_937, LIMIT_MAX])
def test_the_whole_limit_fits_at_one_moment_and_nothing_above(host, limit):
    subjects = group(("key", 1, Limits(tokens_per_minute=limit)))
    assert host.refused(subjects, limit + 1).reason == "larger_than_limit"
    ticket = host.take(subjects, limit)
    assert host.refused(subjects, 1).remaining == 0
    ticket.settle(limit)
    ticket.leave()
    host.wait(60)
    host.take(subjects, limit)


# ------------------------------------------------------------------ headers


def test_the_headers_are_those_of_the_subject_that_has_least_left(host):
    subjects = group(
        ("key", 1, Limits(60, 60_000)), ("team", 2, Limits(6_000, 6_000)), ("agent", 3, Limits(None, 10**6))
    )
    for _ in range(2):
        ticket = host.take(subjects, 1_000)
    assert ticket.headers() == [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"58"),
        (b"x-ratelimit-reset-requests", b"2s"),
        (b"x-ratelimit-limit-tokens", b"6000"),
        (b"x-ratelimit-remaining-tokens", b"4000"),
        (b"x-ratelimit-reset-tokens", b"20s"),
    ]


def test_only_what_is_limited_is_told(host):
    assert host.take(group(("key", 1, Limits(concurrent=5)))).headers() == []
    names = [name for name, _ in host.take(group(("key", 2, Limits(5)))).headers()]
    assert names == [b"x-ratelimit-%s-requests" % part for part in (b"limit", b"remaining", b"reset")]


def test_a_refusal_has_headers_too(host):
    subjects = group(("key", 1, Limits(1, 1_000, 1)))
    ticket = host.take(subjects, 900)
    assert host.refused(subjects).headers() == [
        (b"x-ratelimit-limit-requests", b"1"),
        (b"x-ratelimit-remaining-requests", b"0"),
        (b"x-ratelimit-reset-requests", b"1m0s"),
    ]
    ticket.leave()
    host.wait(60)
    assert host.refused(subjects, 1_001).headers()[:2] == [
        (b"x-ratelimit-limit-tokens", b"1000"),
        (b"x-ratelimit-remaining-tokens", b"1000"),
    ]
    host.take(group(("key", 2, Limits(concurrent=1))))
    assert host.refused(group(("key", 2, Limits(concurrent=1)))).headers() == []


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (-5, b"0s"),
        (0, b"0s"),
        (1, b"1ms"),
        (4_000_000, b"4ms"),
        (999_000_001, b"1s"),
        (SECOND, b"1s"),
        (8_640_000_000, b"8.64s"),
        (59_999_999_999, b"1m0s"),
        (MINUTE, b"1m0s"),
        (6 * MINUTE, b"6m0s"),
        (90_951_000_000, b"1m30.951s"),
        (60 * MINUTE, b"1h0m0s"),
        (3_723 * SECOND, b"1h2m3s"),
    ],
)
def test_times_are_written_as_clients_of_openai_read_them(ns, text):
    assert duration(ns) == text
