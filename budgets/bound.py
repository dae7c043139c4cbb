"""How many tokens a request can cost at most, before it is sent. Pure.

The prompt is bounded by its bytes: a byte-level tokenizer makes at most one token of a byte, so with
`min_bytes_per_token` = 1 the bound is provable; a higher value is the operator's declared assumption about the model.
Media are no text: what they may cost is a table. The output is bounded by the limit that is enforced upstream.
"""

from __future__ import annotations

import math

TOKENS_PER_MESSAGE = 16  # role, separators and template around each message
LEAST_LIMIT = 1024  # output tokens granted at least where the request names no limit

# Tokens one part may cost, rounded up from what providers document. An image at full detail: OpenAI 1,445 (a
# mini model multiplies that to 48,169 but bills it at the small price), Anthropic about 1,600, Gemini 258 per tile.
# Audio: Gemini 32 and OpenAI 10 to 25 per second, so 20 minutes. A file: a 100-page PDF at about 1,500 + text a page.
TOKENS_PER_IMAGE = 4_096
TOKENS_PER_AUDIO = 32_768
TOKENS_PER_FILE = 262_144


def input_bound(
    *,
    body_bytes: int,
    media_bytes: int = 0,
    messages: int = 0,
    prompt_tokens: int = 0,
    images: int = 0,
    audios: int = 0,
    files: int = 0,
    min_bytes_per_token: float = 1.0,
) -> int:
    """The most tokens a request's input can be.

    `body_bytes` is the raw body, `media_bytes` the part of it that is encoded images, audio or files; `prompt_tokens`
    is the count of an integer-token prompt, which then replaces the bytes.
    """
    if prompt_tokens:
        text = prompt_tokens
    else:
        text = math.ceil(max(0, body_bytes - media_bytes) / max(0.01, min_bytes_per_token))
    media = images * TOKENS_PER_IMAGE + audios * TOKENS_PER_AUDIO + files * TOKENS_PER_FILE
    return text + TOKENS_PER_MESSAGE * max(1, messages) + media


def output_limit(
    *,
    asked: int | None,
    card_max: int | None = None,
    default_cap: int = 8192,
    route_cap: int | None = None,
    available: int | None = None,
) -> int:
    """The output limit to enforce upstream, per choice.

    An explicit limit is kept. Without one: the model's own maximum (`default_cap` where that is unknown), no more than
    `default_cap`, no more than a quarter of what is `available` (None = unknown), but at least `LEAST_LIMIT` of what
    the model can do. A route's cap clamps either.
    """
    if asked is not None:
        limit = asked
    else:
        cap = default_cap if card_max is None else min(card_max, default_cap)
        limit = cap if available is None else min(cap, max(available // 4, LEAST_LIMIT))
    return limit if route_cap is None else min(limit, route_cap)
