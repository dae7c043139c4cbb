"""Second looks at what a pattern matched: checksums, ranges and neighbours that a regular expression cannot tell.

Each check is given the scanned bytes and the span of a match. It returns the end of what is really meant, at most the
end it was given, or 0 where the match is none. The bytes around the span may be looked at, a bounded number of them.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Callable

Check = Callable[[bytes, int, int], int]

_DIGITS = frozenset(b"0123456789")
_WORD = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
_NO_DIGITS = bytes(byte for byte in range(256) if byte not in _DIGITS)
_LOOK_BACK = 100
_WORD_MAX = 24  # letters that no ordinary word has
_FOUR_GROUPS = re.compile(rb"[0-9]{4}(?:(?:[ .-]|\xc2\xa0|\xe2\x80[\x80-\x95\xaf])[0-9]{4}){3}(?= |\xc2\xa0)")

# Endings that look like a top-level domain and are names of files: icon@2x.png.
_FILE_ENDINGS = frozenset(
    b"png jpg jpeg gif svg webp avif ico bmp css scss js jsx ts tsx mjs json html htm xml yml yaml toml txt pdf".split()
)


def _digits(found: bytes) -> bytes:
    return found.translate(None, _NO_DIGITS)


def _stands_alone(buffer: bytes, start: int, end: int) -> bool:
    """Whether a number is not a piece of a longer dotted or dashed one."""
    if start and buffer[start - 1] in b".-+":
        return False
    after = buffer[end : end + 2]
    return not (after and (after[0] in _WORD or (after[0] in b".-" and len(after) == 2 and after[1] in _WORD)))


def luhn(digits: bytes) -> bool:
    """The checksum of card numbers (ISO/IEC 7812-1, annex B) over ASCII digits."""
    total = 0
    for place, byte in enumerate(reversed(digits)):
        digit = byte - 48
        if place % 2:
            digit = digit * 2 - 9 if digit > 4 else digit * 2
        total += digit
    return total % 10 == 0


def _issuer(digits: bytes) -> bool:
    """Whether a card network issues numbers with this beginning and length."""
    length = len(digits)
    two, three, four = int(digits[:2]), int(digits[:3]), int(digits[:4])
    if digits[:1] == b"4":
        return length in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720 or 2200 <= four <= 2204:
        return length == 16
    if two in (34, 37):
        return length == 15
    if four == 6011 or 644 <= three <= 649 or two in (62, 65) or 3528 <= four <= 3589:
        return 16 <= length <= 19
    if 300 <= three <= 305 or two in (36, 38, 39) or three == 309:
        return 14 <= length <= 19
    return four in (5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763)


def card(buffer: bytes, start: int, end: int) -> int:
    """A card number: 13 to 19 digits of a known network with a right checksum.

    Of five groups the last may be another number: its security code, the year it ends.
    """
    four = _FOUR_GROUPS.match(buffer, start, end)
    for stop in (end,) if four is None else (end, four.end()):
        digits = _digits(buffer[start:stop])
        if 13 <= len(digits) <= 19 and _stands_alone(buffer, start, stop) and _issuer(digits) and luhn(digits):
            return stop
    return 0


def ssn(buffer: bytes, start: int, end: int) -> int:
    """A US social security number: the areas 000, 666 and 9xx, group 00 and serial 0000 are never given out."""
    if not _stands_alone(buffer, start, end):
        return 0
    digits = _digits(buffer[start:end])
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    good = area not in (b"000", b"666") and area[:1] != b"9" and group != b"00" and serial != b"0000"
    return end if good else 0


def ipv4(buffer: bytes, start: int, end: int) -> int:
    """An address of four numbers up to 255 that is no version, no net mask, not unspecified and not the host's own."""
    if not _stands_alone(buffer, start, end):
        return 0
    parts = buffer[start:end].split(b".")
    numbers = [int(part) for part in parts]
    if max(numbers) > 255 or any(len(part) > 1 and part[:1] == b"0" for part in parts):
        return 0
    if numbers[0] in (0, 127) or numbers[:2] == [255, 255]:
        return 0
    before = buffer[max(0, start - 12) : start]
    if before[-1:] == b"/" and len(before) > 1 and before[-2] in _WORD:
        return 0  # a product and its version: Chrome/120.0.0.0
    said = before.lower().rstrip(b" :=\"'")
    return 0 if said.endswith((b"version", b"ver", b"release")) else end


def ipv6(buffer: bytes, start: int, end: int) -> int:
    """An address of eight groups, or fewer with one '::'. What it may begin with is the pattern's."""
    found = buffer[start:end]
    if not found.endswith(b"::"):
        found = found.rstrip(b":")
    end = start + len(found)
    if buffer[start - 1 : start] == b":" or (end < len(buffer) and buffer[end] in _WORD):
        return 0
    groups = found.split(b":")
    if b":::" in found or found.count(b"::") > 1:
        return 0
    return end if (len(groups) == 8 and b"" not in groups) or (b"::" in found and len(groups) <= 8) else 0


def phone_us(buffer: bytes, start: int, end: int) -> int:
    """Three, three and four digits, as long as they are no piece of something longer."""
    if start and buffer[start - 1] in b".-+/=#":
        return 0
    return end if end >= len(buffer) or not (buffer[end] in b"-./" and buffer[end + 1 : end + 2].isalnum()) else 0


def phone_international(buffer: bytes, start: int, end: int) -> int:
    """A plus sign and 8 to 15 digits (ITU-T E.164)."""
    if start and buffer[start - 1] in b"+-)]":
        return 0
    found = buffer[start:end]
    while len(_digits(found)) > 15:  # the last groups are of another number
        place = max(found.rfind(byte) for byte in (b" ", b"-", b".", b"/"))
        if place < 0:
            return 0
        found = found[:place]
    return start + len(found) if len(_digits(found)) >= 8 else 0


def email(buffer: bytes, start: int, end: int) -> int:
    """An address of a mailbox: no file name, no user of a repository, no part of an address of another kind."""
    local, _, domain = buffer[start:end].rpartition(b"@")
    if local[:1] == b"." or local[-1:] == b"." or b".." in local:
        return 0
    if domain.rpartition(b".")[2].lower() in _FILE_ENDINGS or (local == b"git" and buffer[end : end + 1] in b":/"):
        return 0
    before = buffer[max(0, start - _LOOK_BACK) : start]
    place = before.rfind(b"://")
    user_info = place >= 0 and not any(byte in b" \t\r\n/?&=\"'<>,;|" for byte in before[place + 3 :])
    return 0 if user_info else end


# Characters of an IBAN by country: the registry kept by SWIFT under ISO 13616-2.
_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "HN JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_IBAN_LENGTHS = {code: length for length, codes in _IBAN_COUNTRIES.items() for code in codes.split()}


def iban(buffer: bytes, start: int, end: int) -> int:
    """An account number of a country's length with a right checksum (ISO 7064, mod 97-10)."""
    wanted = _IBAN_LENGTHS.get(buffer[start : start + 2].decode("latin-1"), 0)
    place, seen = start, 0
    while place < end and seen < wanted:
        seen += buffer[place] != 32
        place += 1
    if not wanted or seen < wanted or (place < len(buffer) and buffer[place] in _WORD):
        return 0
    told = buffer[start:place].replace(b" ", b"").decode("latin-1")
    number = "".join(str(int(character, 36)) for character in told[4:] + told[:4])
    return place if int(number) % 97 == 1 else 0


def with_digit(buffer: bytes, start: int, end: int) -> int:
    """Random characters: of twenty and more, hardly ever none is a digit, and made-up names have none."""
    return end if any(byte in _DIGITS for byte in buffer[start:end]) else 0


def prefixed(buffer: bytes, start: int, end: int) -> int:
    """As `with_digit`; behind the prefix, letters alone are no made-up name either where no word is as long."""
    found = buffer[start:end]
    return end if found[3:].isalpha() and len(found) >= 3 + _WORD_MAX else with_digit(buffer, start, end)


def aws_secret(buffer: bytes, start: int, end: int) -> int:
    """Exactly forty characters of base64 that are no path and no hash."""
    if end < len(buffer) and (buffer[end] in _WORD or buffer[end] in b"+/="):
        return 0
    return end if entropy(buffer[start:end]) >= 4.0 else 0


def discord(buffer: bytes, start: int, end: int) -> int:
    """A token whose first part is the number of an account in base64."""
    first = buffer[start:end].split(b".")[0]
    try:
        return end if base64.urlsafe_b64decode(first + b"=" * (-len(first) % 4)).isdigit() else 0
    except (binascii.Error, ValueError):
        return 0


def password(buffer: bytes, start: int, end: int) -> int:
    """A password in an address, not the place where one is to be filled in."""
    found = buffer[start:end]
    if found[:1] in b"$<{[%" and (found[:1] != b"%" or found[1:2] in b"s(d{"):
        return 0
    return 0 if not found.strip(b"*") or not found.strip(b"xX") or not found.strip(b".") else end


def entropy(found: bytes) -> float:
    """Shannon's entropy of the bytes, in bits per byte."""
    size = len(found)
    return -sum(count / size * math.log2(count / size) for count in Counter(found).values())


_MADE_UP = (b"example", b"placeholder", b"changeme", b"your", b"xxxx", b"****", b"....", b"dummy")


def assigned(buffer: bytes, start: int, end: int) -> int:
    """The value in `api_key = value`: letters and digits mixed as only chance mixes them; no name, path or call."""
    found = buffer[start:end]
    stripped = found.rstrip(b".")
    end = start + len(stripped)
    if end < len(buffer) and buffer[end] in b"([{":
        return 0
    lowered = stripped.lower()
    if any(word in lowered for word in _MADE_UP) or b"://" in stripped or stripped.count(b"/") > 4:
        return 0
    digits = sum(byte in _DIGITS for byte in stripped)
    if not digits or digits == len(stripped) or len(stripped) < 16:
        return 0
    # Words joined by dots or underscores are names: settings.services.v2.secret_key
    if b"." in stripped and all(part.replace(b"_", b"").isalnum() and len(part) < 16 for part in stripped.split(b".")):
        return 0
    return end if entropy(stripped) >= 3.2 else 0
