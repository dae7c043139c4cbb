"""Which candidates of a long request are too small for it, by the context that their model's card names. Pure.

A request that surely does not fit would be refused by the model, and what a model refuses is asked nowhere else. So
such candidates are left out while another one has room. One whose route shortens conversations counts as having room.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from providers.canonical import Call
from providers.routing import DIRECT, Plan

if TYPE_CHECKING:
    from gateway.snapshot import Snapshot

SMALL_BYTES = 2048  # what is not longer fits everywhere
# More bytes than a token has, so that what is too large by this is so by any tokenizer: English prose has up to 4.7,
# Hindi in the newest vocabularies 9.6, and where it is escaped (six bytes for a character) 22.
PLAIN_BYTES, OTHER_BYTES, ESCAPED_BYTES = 5, 10, 24
TOO_SMALL = "context too small"
_KEPT = "contexts"
_ANY = 1 << 62


def left_out(snapshot: Snapshot, plan: Plan, call: Call, unavailable: dict[int, str] | None) -> dict[int, str] | None:
    """`unavailable` (route id: reason), and the candidates that are too small for this request.

    None of those is added where no other has room. Where the only ones that have are unavailable, they are asked all
    the same: that they fail is a suspicion, that the others do is none.
    """
    known = plan.kept.get(_KEPT)
    if known is None:
        known = plan.kept[_KEPT] = _contexts(snapshot, plan)
    least, contexts = known
    if len(call.body) <= least or (call.endpoint != "chat" and call.messages > 1):
        return unavailable
    tokens = call.prompt_tokens or (len(call.body) - call.media_bytes) // _bytes_per_token(call.body)
    chat = call.endpoint == "chat"
    small = {
        step.route.id: TOO_SMALL
        for step, context in zip(plan.steps, contexts, strict=True)
        if tokens > context and not (chat and step.route.compact_percent)
    }
    if not small or len(small) == len(plan.steps) or plan.strategy == DIRECT:
        return unavailable
    if not unavailable:
        return small
    both = {**unavailable, **small}
    return small if _is_all(plan, both) else both


def _bytes_per_token(body: bytes) -> int:
    if b"\\u" in body:
        return ESCAPED_BYTES
    return PLAIN_BYTES if body.isascii() else OTHER_BYTES


def _is_all(plan: Plan, reasons: Mapping[int, str]) -> bool:
    return all(step.route.id in reasons for step in plan.steps)


def _contexts(snapshot: Snapshot, plan: Plan) -> tuple[int, tuple[int, ...]]:
    """The bytes of a body that fits all candidates, and the tokens that each can read; unknown = any number.

    A single token number has at least two bytes in a body: its digits and a comma.
    """
    contexts = tuple([snapshot.cards.find(step.model).context_tokens or _ANY for step in plan.steps])
    return 2 * min(contexts, default=_ANY), contexts
