"""What a request can cost at most, before it is sent: in tokens and in pico-USD. Pure.

The prompt is bounded by its bytes: a byte-level tokenizer makes at most one token of a byte, so with
`min_bytes_per_token` = 1 the bound is provable; a higher value is the operator's declared assumption about the model.
Media are no text: what they may cost is a table. The output is bounded by the limit that is enforced upstream.
"""

from __future__ import annotations

import math

TOKENS_PER_MESSAGE = 16  # role, separators and template around each message
LEAST_LIMIT = 1024  # output tokens granted at least where the request names no limit
SHORTEST_LIMIT = 256  # no answer is shortened to less
AMOUNT_MAX = 2**63 - 1  # what the journal and the ledger can hold; in pico-USD 9 million USD

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
    return text + TOKENS_PER_MESSAGE * max(1, messages) + media_tokens(images=images, audios=audios, files=files)


def media_tokens(*, images: int, audios: int, files: int) -> int:
    """What the table says that so many images, sounds and files may cost."""
    return images * TOKENS_PER_IMAGE + audios * TOKENS_PER_AUDIO + files * TOKENS_PER_FILE


def money_bound(*, input_tokens: int, output_tokens: int, input_pico: int, output_pico: int, request_pico: int) -> int:
    """The most pico-USD a request of this size can cost, where no token is dearer than these."""
    return min(AMOUNT_MAX, request_pico + input_tokens * input_pico + output_tokens * output_pico)


def output_limit(
    *,
    asked: int | None,
    card_max: int | None = None,
    default_cap: int = 8192,
    route_cap: int | None = None,
    available: int | None = None,
    choices: int = 1,
) -> int:
    """The output limit to enforce upstream, per choice.

    An explicit limit is kept. Without one: the model's own maximum (`default_cap` where that is unknown), no more than
    `default_cap`, and for all choices together no more than a quarter of the tokens `available` (None = unknown or no
    limit), but at least `LEAST_LIMIT` of what the model can do. A route's cap clamps either.
    """
    if asked is not None:
        limit = asked
    else:
        cap = default_cap if card_max is None else min(card_max, default_cap)
        limit = cap if available is None else min(cap, max(available // (4 * max(1, choices)), LEAST_LIMIT))
    return limit if route_cap is None else min(limit, route_cap)


def affordable(tokens: int | None, pico: int | None, output_pico: int) -> int | None:
    """How many output tokens are available: `tokens`, or fewer where the money left buys fewer. None = no limit."""
    if pico is None or not output_pico:
        return tokens
    bought = max(0, pico) // output_pico
    return bought if tokens is None else min(tokens, bought)


def fitting_limit(
    *,
    tokens: int | None,
    pico: int | None,
    input_bound: int,
    choices: int,
    input_pico: int = 0,
    output_pico: int = 0,
    request_pico: int = 0,
) -> int:
    """The greatest output limit per choice with which a request fits into what is left (None = no limit there).

    Below `SHORTEST_LIMIT` it is of no use to anybody, and may be negative where even the input does not fit.
    """
    fits = [AMOUNT_MAX]
    if tokens is not None:
        fits.append((tokens - input_bound) // max(1, choices))
    if pico is not None:
        left = pico - request_pico - input_bound * input_pico
        if left < 0:
            return -1
        if output_pico:
            fits.append(left // (output_pico * max(1, choices)))
    return min(fits)
