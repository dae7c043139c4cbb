"""What a candidate's route makes of a prompt, on the request path and before it.

`fit` puts what this candidate shall get in place of the request: shortened and compressed as its route says, or the
request as it is. What the client said stays known (`Job.asked`), since answers are written for that. A changed request
goes out in its canonical form, as a redacted one does, also where the provider speaks the client's own API; one that
cannot be told in that form is left as it is. Large ones are worked on in slices, so that others get their turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from budgets.bound import output_limit
from gateway.context import compaction, compression
from gateway.dialects import openai
from gateway.screening import canonical_only
from providers import estimates
from providers.canonical import Call

if TYPE_CHECKING:
    from gateway.estimate import Ratios
    from gateway.pipeline import Job
    from gateway.snapshot import Candidate, Snapshot
    from providers.routing import Step

CHAT = "chat"
COMPACTED, COMPRESSED = "compacted", "compressed"
SPOKEN = frozenset({"system", "developer", "user", "assistant"})  # whose words are compressed
SLICE = 128  # messages weighed between two yields: well under a millisecond
SLICE_BYTES = 16 * 1024  # of texts compressed between two yields: about the same
WORTH = 100  # a request passes as the client sent it unless one byte in so many can go
ASIDE = 4  # where a request names no output limit, at most this part of the room is kept for the answer
LOUD_BYTES = 64 * 1024  # what is worked on without a pause

_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_messages = msgspec.json.Decoder(list[dict[str, Any]]).decode
Work = Generator[None, None, "Shaped"]


class Shaped(NamedTuple):
    """What becomes of a request: the call that is sent, and what was done to it.

    `dropped` counts messages; `tokens` are estimates of the whole prompt, before and after those were dropped; `sizes`
    are the bytes of its texts, before and after white space was taken out. 0 where nothing was done.
    """

    call: Call
    dropped: int = 0
    tokens: tuple[int, int] = (0, 0)
    sizes: tuple[int, int] = (0, 0)

    @property
    def changes(self) -> tuple[str, ...]:
        """What was done."""
        return (COMPACTED,) * bool(self.dropped) + (COMPRESSED,) * bool(self.sizes[0])

    def header(self) -> bytes:
        """The value of `x-hoosh-context`; b"" where nothing was done."""
        told = []
        if self.dropped:
            told.append(b"compacted; dropped=%d; tokens=%d->%d" % (self.dropped, *self.tokens))
        if self.sizes[0]:
            told.append(b"compressed; bytes=%d->%d" % self.sizes)
        return b", ".join(told)

    def words(self) -> str:
        """The same for people, of what would be done."""
        told = []
        if self.dropped:
            before, after = self.tokens
            messages = "1 message" if self.dropped == 1 else f"{self.dropped} messages"
            told.append(f"would be compacted: drops {messages}, about {before} tokens become {after}")
        if self.sizes[0]:
            told.append(f"would be compressed: {self.sizes[0]} bytes of text become {self.sizes[1]}")
        return "; ".join(told)


class Shapings:
    """The request of a job as it came here, and what was made of it for each candidate."""

    __slots__ = ("_call", "_made", "_spoken")

    def __init__(self, call: Call, spoken: Call | None) -> None:
        self._call, self._spoken = call, spoken
        self._made: dict[tuple[int, str], Shaped] = {}

    def of(self, candidate: Candidate, model: str) -> Shaped | None:
        """What was made for a candidate, if anything was asked for it."""
        return self._made.get((candidate.route.id, model))

    async def make(self, job: Job, snapshot: Snapshot, candidate: Candidate, step: Step) -> None:
        """Make it, unless it was made before (a candidate can be called with several credentials)."""
        if (candidate.route.id, step.model) in self._made:
            return
        work = _work(self._call, wishes_of(snapshot, candidate, step, self._call, job.runtime.ratios))
        shaped = await _run(work, self._call)
        self._made[candidate.route.id, step.model] = shaped
        for change in shaped.changes:
            job.runtime.metrics.prompt_changed(change)

    def put(self, job: Job, shaped: Shaped | None) -> None:
        """Let this be what the job's next call sends; None = the request as it came."""
        if shaped is None or shaped.call is self._call:
            job.call, job.spoken = self._call, self._spoken
        else:
            job.call, job.spoken = shaped.call, self._spoken or self._call


async def fit(job: Job, snapshot: Snapshot, candidate: Candidate, step: Step) -> None:
    """Set `Job.call` to what this candidate shall get. To be asked where its route, or that of one before, has a
    wish."""
    assert job.call is not None
    if job.shapings is None:
        job.shapings = Shapings(job.call, job.spoken)
    if candidate.route.compact_percent or candidate.route.compress:
        await job.shapings.make(job, snapshot, candidate, step)
    job.shapings.put(job, job.shapings.of(candidate, step.model))


def announced(job: Job) -> bytes:
    """What `x-hoosh-context` says of the last call that was made; b"" = nothing was done."""
    if job.shapings is None or job.last is None:
        return b""
    shaped = job.shapings.of(job.last.candidate, job.last.step.model)
    return b"" if shaped is None else shaped.header()


def would_be(snapshot: Snapshot, candidate: Candidate, step: Step, call: Call, ratios: Ratios) -> Shaped:
    """What would become of a request, found without a pause: for questions only."""
    route = candidate.route
    if not route.compact_percent and not route.compress:
        return Shaped(call)
    work = _work(call, wishes_of(snapshot, candidate, step, call, ratios))
    while True:
        try:
            next(work)
        except StopIteration as done:
            shaped: Shaped = done.value
            return shaped


class Wishes(NamedTuple):
    """What a route wants of a prompt. `room`: the most tokens it may have; None = it is not shortened. `passes`: left
    alone, it would pass in the client's own API."""

    compress: bool
    room: int | None
    weights: estimates.Weights
    passes: bool


def wishes_of(snapshot: Snapshot, candidate: Candidate, step: Step, call: Call, ratios: Ratios) -> Wishes:
    """What the route of a candidate wants of this request."""
    route, card = candidate.route, snapshot.cards.find(step.model)
    weights = estimates.weights_of(candidate.kind, ratios.learned(step.model, output=False))
    room: int | None = None
    if route.compact_percent and card.context_tokens:
        allowed = card.context_tokens * route.compact_percent // 100
        wanted = output_limit(
            asked=call.limit,
            card_max=card.max_output_tokens,
            default_cap=snapshot.settings.default_output_cap,
            route_cap=route.output_cap,
        )
        room = allowed - (min(wanted, allowed // ASIDE) if call.limit is None else wanted)
    passes = bool(call.native) and candidate.speaks(call.dialect)
    # What only the client's own API says, and its provider would get, is worth more than some blanks.
    return Wishes(route.compress and not (passes and call.dropped), room, weights, passes)


async def _run(work: Work, call: Call) -> Shaped:
    pauses = len(call.body) > LOUD_BYTES
    while True:
        try:
            next(work)
        except StopIteration as done:
            shaped: Shaped = done.value
            return shaped
        if pauses:
            await asyncio.sleep(0)


def _work(call: Call, wishes: Wishes) -> Work:
    """Do what is wished, in slices. The value of the generator is what came of it."""
    compacts = wishes.room is not None and estimates.most_of(call, wishes.weights) > wishes.room
    if call.endpoint != CHAT or call.native_only or not (compacts or wishes.compress):
        return Shaped(call)
    fields: dict[str, Any] = _decode_fields(call.body)
    messages = _decode_messages(fields["messages"])
    yield
    sizes = (yield from _compress(messages)) if wishes.compress else (0, 0)
    dropped: list[dict[str, Any]] = []
    tokens = (0, 0)
    if compacts and wishes.room is not None:
        costs: list[int] = []
        for message in messages:
            costs.append(estimates.message_tokens(message, wishes.weights))
            if len(costs) % SLICE == 0:
                yield
        besides = estimates.besides_messages(fields, wishes.weights)
        places = compaction.kept(messages, costs, wishes.room - besides)
        yield
        if places is not None:
            tokens = besides + sum(costs), besides + sum(costs[place] for place in places)
            stays = frozenset(places)
            dropped = [message for place, message in enumerate(messages) if place not in stays]
            messages = [messages[place] for place in places]
    saved = sizes[0] - sizes[1]
    if not dropped and (not saved or (wishes.passes and saved * WORTH < sizes[0])):
        return Shaped(call)
    fields["messages"] = messages
    changed = without(canonical_only(call, _encode(fields)), dropped)
    return Shaped(changed, len(dropped), tokens, sizes if saved else (0, 0))


def _compress(messages: list[dict[str, Any]]) -> Generator[None, None, tuple[int, int]]:
    """Compress the words of everybody but tools, in place; the bytes of all such texts before and after."""
    before = saved = 0
    pause = SLICE_BYTES
    for message in messages:
        if before > pause:
            pause = before + SLICE_BYTES
            yield
        if message.get("role") not in SPOKEN:
            continue
        content = message.get("content")
        parts: list[Any] = content if isinstance(content, list) else []
        holders = [(message, "content", True)] if isinstance(content, str) else []
        holders += [(part, "text", False) for part in parts if isinstance(part, dict) and part.get("type") == "text"]
        for holder, key, whole in holders:
            text = holder[key]
            made = yield from compression.steps(text, whole=whole)
            before += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            saved += len(text) - len(made)  # blanks and line ends: a byte each
            holder[key] = made
    return before, before - saved


def without(call: Call, dropped: list[dict[str, Any]]) -> Call:
    """The call, whose body does not hold these messages any more, with counts that do not either."""
    if not dropped:
        return call
    gone = openai.chat_call({"model": call.model, "messages": dropped}, b"")
    return msgspec.structs.replace(
        call,
        messages=max(1, call.messages - gone.messages),
        media_bytes=max(0, call.media_bytes - gone.media_bytes),
        images=max(0, call.images - gone.images),
        audios=max(0, call.audios - gone.audios),
        files=max(0, call.files - gone.files),
        others=max(0, call.others - gone.others),
    )
