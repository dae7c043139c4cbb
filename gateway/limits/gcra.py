"""The generic cell rate algorithm (ITU-T I.371, the virtual scheduling form), in whole nanoseconds. Pure.

A limit of N per minute is a bucket that holds one minute's worth and refills evenly. Its whole state is one time,
`full_at`: when the bucket would be full again if nothing more came. Taking moves it ahead by what the amount takes to
refill, and is allowed while it stays within a minute of now. So over any T seconds at most N + N * T / 60 are let
through, and a state in the past says nothing at all. Because the burst is always one minute, a changed limit keeps the
used share of the bucket.

Divisions round against the caller, by less than a nanosecond each: never more than the limit, and not noticeably less.
"""

from __future__ import annotations

MINUTE_NS = 60 * 10**9
# Only amounts that were larger than reserved move a state further ahead than a minute. What is ahead by more than this
# is a clock that was set back; such a state is taken for empty, and debts are cut here so that they never look like it.
AHEAD_NS = 60 * MINUTE_NS


def cost_ns(amount: int, per_minute: int) -> int:
    """How long `amount` takes to refill, in ns, rounded up."""
    return -(-amount * MINUTE_NS // per_minute)


def burst_ns(per_minute: int) -> int:
    """How far ahead single takes may go, so that exactly `per_minute` of them fit at one moment."""
    return per_minute * cost_ns(1, per_minute)


def started(full_at: int, now: int) -> int:
    """The state as it counts now: never in the past, and empty where it cannot be true."""
    return full_at if now < full_at <= now + AHEAD_NS else now


def room(full_at: int, now: int, per_minute: int) -> int:
    """The largest amount that fits now; 0 where the limit was passed."""
    free = MINUTE_NS - (started(full_at, now) - now)
    return max(0, free) * per_minute // MINUTE_NS


def room_for_single(full_at: int, now: int, per_minute: int) -> int:
    """How many takes of one fit now, as `burst_ns` allows them."""
    free = burst_ns(per_minute) - (started(full_at, now) - now)
    return max(0, free) // cost_ns(1, per_minute)


def settled(
    counted: int, used: int, held_ns: int, since: int, now: int, reserved_ns: int, used_ns: int
) -> tuple[int, int]:
    """The states `(counted, used)` after a reservation of `reserved_ns`, made at `since`, came to `used_ns` at `now`.

    `counted` has every amount at the moment of its reservation, so that it refills while a long call runs. What can be
    given back to it depends on the order in which everything came and went, which nobody keeps. Three values are all
    certainly no smaller than the state would be had only `used_ns` been reserved in the first place:

    - `counted` less the difference, but for what may have refilled since: an empty bucket does not refill, and without
      the rest of the reservation it would have been empty for at most `now - since`;
    - `used`, which has every amount only when it is known, plus `held_ns`, all of what is still reserved elsewhere;
    - `counted` itself.

    The smallest of them is the new state. An amount above the reservation is added in full.
    """
    used = min(started(used, now) + used_ns, now + AHEAD_NS)
    counted = started(counted, now)
    surplus = reserved_ns - used_ns
    if surplus < 0:
        counted = min(counted - surplus, now + AHEAD_NS)
    elif surplus > now - since:
        counted -= surplus - max(0, now - since)
    return min(counted, used + held_ns), used
