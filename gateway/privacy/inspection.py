"""One request before it is routed: what is in it, what shall be done, and its body without what must not leave."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.privacy.redaction import Redactor
from gateway.privacy.texts import Text, collect
from providers.canonical import Call
from providers.privacy.scanner import NOTHING, Scanner
from providers.privacy.verdict import Policy, Verdict, decide

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Inspection:
    """What was found in one request. Only `verdict` may be kept beyond it."""

    __slots__ = ("_call", "_doc", "_findings", "_own", "_scanner", "_texts", "verdict")

    def __init__(self, call: Call, scanner: Scanner, *, results: bool) -> None:
        """Of the client's own body only what the canonical one does not say is looked at."""
        self._call, self._scanner = call, scanner
        self._doc: Any = _decode(call.body)
        self._own: list[Text] = collect(self._doc, results=results)
        self._texts = self._own
        if call.native:
            known = {text.scanned if isinstance(text.scanned, str) else text.data().decode() for text in self._own}
            self._texts = self._own + collect(_decode(call.native), results=results, known=known)
        self._findings = NOTHING
        self.verdict = Verdict()

    def __repr__(self) -> str:
        return f"<Inspection {self.verdict.action} {self.verdict.level}>"

    async def run(self, policy: Policy) -> None:
        """Find and decide; other requests get their turn meanwhile where it takes long."""
        if self._texts:
            self._findings = await self._scanner.scan_in_turns([text.scanned for text in self._texts])
        self.verdict = decide(policy, self._findings)

    def run_at_once(self, policy: Policy) -> None:
        """The same without a pause."""
        if self._texts:
            self._findings = self._scanner.scan([text.scanned for text in self._texts])
        self.verdict = decide(policy, self._findings)

    def redacted(self) -> tuple[bytes, Redactor]:
        """The canonical body with placeholders, and what puts the values back.

        To be called once, after `run`, where the verdict names patterns to redact.
        """
        call, own = self._call, self._own
        # A placeholder that is spelled with escapes stands in the request as any other does.
        plain = _encode(self._doc) if b"\\u" in call.body else b""
        redactor = Redactor((call.body, call.native, plain))
        redactor.redact(own, [match for match in self._findings.matches if match.text < len(own)], self.verdict.redact)
        return _encode(self._doc), redactor


async def inspect(call: Call, scanner: Scanner, policy: Policy) -> Inspection:
    """Look at a request. Other requests get their turn meanwhile where it is a large one."""
    inspection = Inspection(call, scanner, results=policy.scan_tool_results)
    await inspection.run(policy)
    return inspection
