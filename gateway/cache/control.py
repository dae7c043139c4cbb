"""The `Cache-Control` header of a request: what its caller wants of the answer cache. Pure.

Read are `no-cache` (do not answer from the cache, but keep the new answer), `no-store` (neither), `max-age=SECONDS`
(answer only with what is at most that old) and `only-if-cached` (answer from the cache or not at all), as RFC 9111
section 5.2.1 has them. Directives that are not known are passed over, as that document asks; a known one that is not
well formed is refused, because guessing could answer with what the caller wanted to avoid.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.errors import BadRequestError, GatewayError

AGE_DIGITS_MAX = 10  # some 300 years of seconds
_NO_CACHE, _NO_STORE, _MAX_AGE, _ONLY_CACHED = b"no-cache", b"no-store", b"max-age", b"only-if-cached"


class Control(NamedTuple):
    """`read`: an answer from the cache is welcome, if it is at most `max_age_s` old (None = of any age). `write`: the
    answer may be kept. `only_cached`: nothing but an answer from the cache is wanted."""

    read: bool = True
    write: bool = True
    max_age_s: float | None = None
    only_cached: bool = False


PLAIN = Control()


def control_of(header: bytes | None) -> Control:
    """What a request's header says; several lines of it are to be joined by commas, None = it has none.

    Raises `BadRequestError` for a directive that is known and malformed.
    """
    if not header:
        return PLAIN
    read, write, max_age_s, only_cached = True, True, None, False
    for directive in header.lower().split(b","):
        name, has_value, value = directive.strip().partition(b"=")
        if name == _MAX_AGE:
            age = _seconds(value.strip())
            max_age_s = age if max_age_s is None else min(age, max_age_s)
        elif name not in (_NO_CACHE, _NO_STORE, _ONLY_CACHED):
            continue
        elif has_value:
            raise _malformed(name.decode())
        elif name == _ONLY_CACHED:
            only_cached = True
        else:
            read = False
            write = write and name == _NO_CACHE
    return Control(read, write, max_age_s, only_cached)


def not_cached() -> GatewayError:
    """The 504 of a request that wanted nothing but a cached answer, where there is none (RFC 9111, 5.2.1.7)."""
    return GatewayError(
        "There is no cached answer to this request, and it asked for nothing else ('only-if-cached').",
        status=504,
        type="invalid_request_error",
        code="not_cached",
        should_retry=False,
    )


def _seconds(value: bytes) -> int:
    if value[:1] == b'"' == value[-1:] and len(value) > 2:  # the other spelling that recipients are to take
        value = value[1:-1]
    if not value.isdigit():
        raise _malformed("max-age")
    return int(value) if len(value) <= AGE_DIGITS_MAX else 10**AGE_DIGITS_MAX


def _malformed(name: str) -> BadRequestError:
    wanted = "'max-age=SECONDS'" if name == "max-age" else f"'{name}' without a value"
    return BadRequestError(f"The Cache-Control header is malformed: write {wanted}.", param="cache-control")
