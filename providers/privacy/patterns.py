r"""What is looked for: the built-in patterns, and what an operator may add.

A pattern is a regular expression in the syntax of RE2 (no look-around, linear time) with a name, a level and perhaps a
second look (`checks`). Where it has groups, the match is the last group that took part: what stands before it is
context. The built-in ones work on bytes, contain no NUL and so never match across two texts joined by one.

Most begin with `_LEAD`: the start, a byte that is no letter, digit or underscore, or an escape as it is written in JSON
and in addresses, so that `"a\nAKIA…"` is found in a text that is JSON itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Literal

import msgspec
import re2

from providers.privacy import checks

Level = Literal["public", "internal", "confidential", "restricted"]
LEVELS: tuple[Level, ...] = ("public", "internal", "confidential", "restricted")
RANK: Mapping[str, int] = MappingProxyType({level: rank for rank, level in enumerate(LEVELS)})

SOURCE_MAX = 1000  # characters of an operator's expression
PROGRAM_MAX = 20_000  # instructions it may compile to
# A match of nothing shows in one of these: between words, at edges, at line ends, inside a word, between others.
_PROBES = (b"", b"a", b" ", b"ab", b"a b", b"--", b"\n", b"a\nb", b"1", b"a1", b"\xc3\xa9", b"\x00")


class Pattern(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """One thing that is looked for.

    `check` may refuse a match or shorten it. `retry`: after a refused match the search goes on one byte behind its
    start, not behind its end. `weak`: where a match overlaps one of another pattern, only that one counts. `custom`:
    an operator's pattern, which works on UTF-8 and on each text by itself. `hint` matches wherever the pattern does and
    is cheaper to look for among all the others: repetitions that are counted from every place on multiply the states
    of an automaton.
    """

    name: str
    level: Level
    source: bytes
    check: checks.Check | None = None
    retry: bool = False
    weak: bool = False
    custom: bool = False
    hint: bytes = b""

    @property
    def in_set(self) -> bytes:
        """What stands for it in the set that tells which patterns occur."""
        return self.hint or self.source


def options(*, custom: bool, max_mem: int = 8 << 20) -> re2.Options:
    """How patterns are compiled. Errors are raised, never written to standard error."""
    made = re2.Options()
    made.log_errors = False
    made.max_mem = max_mem
    made.encoding = re2.Options.Encoding.UTF8 if custom else re2.Options.Encoding.LATIN1
    return made


def compile_error(source: str) -> str:
    """Why an operator's expression cannot be used, as a sentence; "" when it can.

    Refused are expressions over `SOURCE_MAX` characters, those RE2 does not understand, those that compile to more than
    `PROGRAM_MAX` instructions and those that can match nothing at all (`x*`, `\\b`).
    """
    if not source:
        return "The pattern is empty."
    if len(source) > SOURCE_MAX:
        return f"The pattern is longer than {SOURCE_MAX} characters."
    try:
        compiled = re2.compile(source.encode(), options(custom=True))
    except UnicodeEncodeError:
        return "The pattern is not valid Unicode."
    except re2.error as error:
        told = error.args[0] if error.args else b""
        text = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)
        return f"RE2 does not accept the pattern: {text}"
    if compiled.programsize > PROGRAM_MAX:
        return "The pattern is too large. Repeat less in it."
    for probe in _PROBES:
        if any(found.start() == found.end() for found in compiled.finditer(probe)):
            return "The pattern matches the empty text."
    return ""


def custom(name: str, source: str, level: str = "confidential", *, ignore_case: bool = False) -> Pattern:
    """An operator's pattern. Raises `ValueError` with the sentence of `compile_error`, and for an unknown level."""
    if reason := compile_error(source):
        raise ValueError(reason)
    return Pattern(name, LEVELS[LEVELS.index(level)], (b"(?i)" if ignore_case else b"") + source.encode(), custom=True)


def chosen(
    patterns: Iterable[Pattern],
    *,
    enabled: Collection[str] | None = None,
    disabled: Collection[str] = (),
    levels: Mapping[str, Level] = MappingProxyType({}),
) -> tuple[Pattern, ...]:
    """The patterns that are switched on (`enabled` None = all), with the levels an operator gave them."""
    return tuple(
        msgspec.structs.replace(pattern, level=levels[pattern.name]) if pattern.name in levels else pattern
        for pattern in patterns
        if (enabled is None or pattern.name in enabled) and pattern.name not in disabled
    )


_LEAD = rb"(?:^|[^0-9A-Za-z_]|\\[bfnrt]|\\u00[0-9A-Fa-f]{2}|%[0-9A-Fa-f]{2})"
# Before numbers: a piece of a longer one is none, and texts full of fractions cost nothing.
_NUMBER_LEAD = rb"(?:^|[^0-9A-Za-z_.+-]|\\[bfnrt]|\\u00[0-9A-Fa-f]{2}|%[0-9A-Fa-f]{2})"
_ASSIGN = rb"""["'\\ \t]{0,4}(?:=>|:=|[:=])["'\\ \t]{0,4}"""
_LATIN = rb"[\xc3-\xc9][\x80-\xbf]"  # the letters of European languages beyond ASCII, U+00C0 to U+024F
_DASH = rb"(?:-|\xe2\x80[\x90-\x95])"  # a hyphen, or what editors make of one
_GAP = rb"(?:[ .-]|\xc2\xa0|\xe2\x80[\x80-\x95\xaf])"  # a space, a dot, a dash, and spaces that do not break


_LAST_COUNT = re.compile(rb"\{(\d+),\d*\}(?=\)|\||$)")  # of repetitions behind which nothing follows


def _token(
    name: str, source: bytes, check: checks.Check | None = None, *, level: Level = "restricted", end: bytes = rb"\b"
) -> Pattern:
    """A secret that is known by how it begins. `end`: what ends it, b"" where its characters take in all there are."""
    return Pattern(name, level, _LEAD + rb"(" + source + rb")" + end, check, hint=_LAST_COUNT.sub(rb"{\1}", source))


_PEOPLE = (
    Pattern(
        "email",
        "internal",
        rb"(?:\\[bfnrt])?((?:[0-9A-Za-z._%%+-]|%(l)s){1,64}@(?:(?:[0-9A-Za-z]|%(l)s)(?:[0-9A-Za-z-]|%(l)s){0,62}\.){1,8}"
        rb"(?:[A-Za-z]{2,24}|xn--[0-9A-Za-z-]{2,59}))" % {b"l": _LATIN},
        checks.email,
        hint=rb"[0-9A-Za-z_%+\x80-\xbf-]@[0-9A-Za-z\xc3-\xc9]",
    ),
    Pattern("ipv4", "internal", _NUMBER_LEAD + rb"(\d{1,3}(?:\.\d{1,3}){3})\b", checks.ipv4),
    Pattern(
        "ipv6",
        "internal",
        _LEAD + rb"((?i:[23][0-9a-f]{3}|f[cd][0-9a-f]{2}|fe[89ab][0-9a-f])(?::[0-9A-Fa-f]{0,4}){2,7})",
        checks.ipv6,
    ),
    Pattern(
        "phone_us",
        "confidential",
        _NUMBER_LEAD + rb"((?:\+1[-. ]?|1[-. ])?(?:\([2-9]\d{2}\)[-. ]?|[2-9]\d{2}[-. ])\d{3}[-. ]\d{4})\b",
        checks.phone_us,
    ),
    Pattern(
        "phone_international",
        "confidential",
        _NUMBER_LEAD + rb"(\+[1-9](?:\d{7,14}|\d{0,2}(?:[-. ]?\(\d{1,4}\))?(?:[-. /]\d{1,9}){1,6}))\b",
        checks.phone_international,
        weak=True,
    ),
    Pattern(
        "ssn",
        "restricted",
        _LEAD
        + rb"(?:(\d{3}%(d)s\d{2}%(d)s\d{4})\b|(?i:ssn|social security)[^0-9\x00\n]{0,24}(\d{3}[ -]?\d{2}[ -]?\d{4})\b)"
        % {b"d": _DASH},
        checks.ssn,
    ),
    Pattern(
        "credit_card",
        "restricted",
        _NUMBER_LEAD
        + rb"([2-6](?:\d{12,18}|\d{3}(?:%(g)s\d{4}){2}%(g)s\d{1,4}(?:%(g)s\d{1,3})?|\d{3}%(g)s\d{6}%(g)s\d{4,5}))\b"
        % {b"g": _GAP},
        checks.card,
        retry=True,
    ),
    Pattern(
        "iban",
        "confidential",
        _LEAD + rb"([A-Z]{2}\d{2}(?: ?[0-9A-Z]{4}){2,7}(?: ?[0-9A-Z]{1,3})?)\b",
        checks.iban,
        retry=True,
    ),
)

_SECRETS = (
    _token(
        "openai_key",
        rb"(?:[sp]k-[0-9A-Za-z]{20,200}|sk-(?:proj|svcacct|admin|None)-[0-9A-Za-z_-]{20,250})",
        checks.prefixed,
        end=b"",
    ),
    _token("anthropic_key", rb"sk-ant-[0-9A-Za-z_-]{20,250}", checks.with_digit, end=b""),
    _token("openrouter_key", rb"sk-or-v1-[0-9a-f]{40,64}"),
    _token("hoosh_key", rb"hk-[0-9A-Za-z_-]{43}", checks.with_digit, end=rb"(?:[^0-9A-Za-z_-]|$)"),
    _token("aws_access_key", rb"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}"),
    Pattern(
        "aws_secret_key",
        "restricted",
        rb"(?i:aws_?-?secret(?:_?-?access)?(?:_?-?key)?|secret_?-?access_?-?key)" + _ASSIGN + rb"([0-9A-Za-z/+]{40})",
        checks.aws_secret,
    ),
    _token("github_token", rb"(?:gh[pousr]_[0-9A-Za-z]{36,255}|github_pat_[0-9A-Za-z_]{22,255})"),
    _token(
        "gitlab_token",
        rb"gl(?:pat|dt|rt|cbt|ptt|ft)-[0-9A-Za-z_-]{20,200}(?:\.[0-9a-z]{2}\.[0-9a-z]{9})?",
        checks.with_digit,
        end=b"",
    ),
    _token("slack_token", rb"(?:xox[abeoprs]-|xapp-)[0-9A-Za-z-]{10,250}", checks.with_digit, end=b""),
    _token(
        "slack_webhook", rb"https://hooks\.slack\.com/(?:services|workflows|triggers)/[0-9A-Za-z/]{20,120}", end=b""
    ),
    _token("google_api_key", rb"AIza[0-9A-Za-z_-]{35}", checks.with_digit, end=rb"(?:[^0-9A-Za-z_-]|$)"),
    _token("google_oauth", rb"(?:ya29\.[0-9A-Za-z_-]{20,250}|GOCSPX-[0-9A-Za-z_-]{28})", checks.with_digit, end=b""),
    _token("stripe_key", rb"(?:(?:sk|rk)_(?:live|test)_[0-9A-Za-z]{16,250}|whsec_[0-9A-Za-z+/]{32,64})"),
    _token("twilio_key", rb"SK[0-9a-f]{32}"),
    _token("sendgrid_key", rb"SG\.[0-9A-Za-z_-]{16,32}\.[0-9A-Za-z_-]{16,64}", checks.with_digit, end=b""),
    _token("npm_token", rb"npm_[0-9A-Za-z]{36}"),
    _token("pypi_token", rb"pypi-Ag[0-9A-Za-z_-]{40,250}", end=b""),
    _token("huggingface_token", rb"hf_[0-9A-Za-z]{30,64}"),
    _token("groq_key", rb"gsk_[0-9A-Za-z]{40,64}"),
    _token("xai_key", rb"xai-[0-9A-Za-z]{40,100}"),
    _token("perplexity_key", rb"pplx-[0-9A-Za-z]{40,64}"),
    _token("replicate_token", rb"r8_[0-9A-Za-z]{37}"),
    _token("nvidia_key", rb"nvapi-[0-9A-Za-z_-]{50,100}", checks.with_digit, end=b""),
    Pattern(
        "mistral_key",
        "restricted",
        rb"(?i:mistral(?:ai)?[ _-]?(?:api)?[ _-]?(?:key|token))" + _ASSIGN + rb"([0-9A-Za-z]{32})\b",
        checks.with_digit,
    ),
    _token("digitalocean_token", rb"do[opr]_v1_[0-9a-f]{64}"),
    _token("telegram_token", rb"\d{8,10}:AA[0-9A-Za-z_-]{33}", end=rb"(?:[^0-9A-Za-z_-]|$)"),
    _token("discord_token", rb"[MNO][0-9A-Za-z_-]{23,27}\.[0-9A-Za-z_-]{6,7}\.[0-9A-Za-z_-]{27,40}", checks.discord),
    _token(
        "discord_webhook",
        rb"https://(?:ptb\.|canary\.)?discord(?:app)?\.com/api/webhooks/\d{17,20}/[0-9A-Za-z_-]{60,100}",
        end=b"",
    ),
    _token("databricks_token", rb"dapi[0-9a-f]{32}(?:-\d)?"),
    _token("shopify_token", rb"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    _token("vault_token", rb"hv[sbr]\.[0-9A-Za-z_-]{24,200}", checks.with_digit, end=b""),
    _token("age_secret_key", rb"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    _token("jwt", rb"eyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}(?:\.[0-9A-Za-z_-]*)?", end=b""),
    # The whole block where its end is there, else all that still looks like one.
    # Two hyphens in a row end it, so that no block is looked for in the next one again and again.
    Pattern(
        "private_key",
        "restricted",
        rb"-----BEGIN (?:[0-9A-Z]{2,10} ){0,2}PRIVATE KEY(?: BLOCK)?-----"
        rb"(?:(?:-?[0-9A-Za-z+/=\s\\:,.()])*?-----END (?:[0-9A-Z]{2,10} ){0,2}PRIVATE KEY(?: BLOCK)?-----"
        rb"|(?:\s|\\[nr])*(?:(?:Proc-Type|DEK-Info|Version|Comment|Hash|Charset): "
        rb"[0-9A-Za-z ,.:()/+-]{0,100}(?:\s|\\[nr])*){0,5}[0-9A-Za-z+/=\s\\]*)",
    ),
    Pattern("azure_storage_key", "restricted", rb"(?i:AccountKey)=([0-9A-Za-z+/]{60,100}={0,2})"),
    Pattern(
        "connection_string",
        "restricted",
        rb"[A-Za-z][0-9A-Za-z+.-]{1,20}://[0-9A-Za-z._~%!$&'()*+,;=-]{0,64}:"
        rb"([0-9A-Za-z._~%!$&()*+,;={}<>#?^|-]{1,128})@[0-9A-Za-z\[]",
        checks.password,
        hint=rb"://[0-9A-Za-z._~%!$&'()*+,;=-]{0,64}:[0-9A-Za-z._~%!$&()*+,;={}<>#?^|-]{1,128}@",
    ),
    Pattern(
        "authorization",
        "restricted",
        rb"(?i:\b(?:bearer|authorization[\"']?[:=][ ]?[\"']?basic)) {1,2}([0-9A-Za-z._~+/-]{20,}={0,2})",
        checks.with_digit,
        weak=True,
    ),
    Pattern(
        "api_key",
        "restricted",
        rb"(?i:api[ _-]?key)" + _ASSIGN + rb"([0-9A-Za-z_+/.~!@#$%^&*=-]{16,256})",
        checks.assigned,
        weak=True,
        hint=rb"(?i:api[ _-]?key)" + _ASSIGN + rb"[0-9A-Za-z_+/.~!@#$%^&*=-]{16}",
    ),
    Pattern(
        "generic_secret",
        "confidential",
        rb"(?i:secret[_-]?key|secret|access[_-]?key|token|passwo?r?d|passphrase|credential)"
        + _ASSIGN
        + rb"([0-9A-Za-z_+/.~!@#$%^&*=-]{16,256})",
        checks.assigned,
        weak=True,
        hint=rb"(?i:secret[_-]?key|access[_-]?key|secret|token|passwo?r?d|passphrase|credential)"
        + _ASSIGN
        + rb"[0-9A-Za-z_+/.~!@#$%^&*=-]{16}",
    ),
)

BUILT_IN: tuple[Pattern, ...] = _PEOPLE + _SECRETS
