"""One request before it is routed: what is in it, what shall be done, and its bodies without what must not leave."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.privacy.redaction import Redactor
from gateway.privacy.scanner import LARGE_BYTES, Findings, Scanner
from gateway.privacy.texts import Text, collect
from gateway.privacy.verdict import Policy, Verdict, decide
from providers.canonical import Call

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Inspection:
    """What was found in one request. Only `verdict` may be kept beyond it."""

    __slots__ = ("_body", "_call", "_results", "_scanner", "verdict")

    def __init__(self, call: Call, scanner: Scanner, *, results: bool) -> None:
        self._call, self._scanner, self._results = call, scanner, results
        self._body: tuple[Any, list[Text], Findings] | None = None
        self.verdict = Verdict()

    def __repr__(self) -> str:
        return f"<Inspection {self.verdict.action} {self.verdict.level}>"

    async def run(self, policy: Policy) -> None:
        """Find and decide. Of the client's own body only what the canonical one does not say is looked at."""
        call = self._call
        doc = _decode(call.body)
        own = collect(doc, results=self._results)
        texts = own
        if call.native:
            known = {text.scanned if isinstance(text.scanned, str) else text.data().decode() for text in own}
            texts = own + collect(_decode(call.native), results=self._results, known=known)
        findings = await _scan(self._scanner, texts)
        self.verdict = decide(policy, findings)
        self._body = (doc, own, findings)

    async def redacted(self) -> tuple[bytes, bytes, Redactor]:
        """The canonical body and the client's own (b"" where it had none) with placeholders, and what puts them back.

        To be called once, after `run`, where the verdict names patterns to redact.
        """
        assert self._body is not None
        call, names = self._call, self.verdict.redact
        doc, own, findings = self._body
        redactor = Redactor((call.body, call.native))
        redactor.redact(own, [match for match in findings.matches if match.text < len(own)], names)
        if not call.native:
            return _encode(doc), b"", redactor
        native = _decode(call.native)
        texts = collect(native, results=self._results)
        redactor.redact(texts, (await _scan(self._scanner, texts)).matches, names)
        return _encode(doc), _encode(native), redactor


async def inspect(call: Call, scanner: Scanner, policy: Policy) -> Inspection:
    """Look at a request. Other requests get their turn meanwhile where it is a large one."""
    inspection = Inspection(call, scanner, results=policy.scan_tool_results)
    await inspection.run(policy)
    return inspection


async def _scan(scanner: Scanner, texts: list[Text]) -> Findings:
    scanned = [text.scanned for text in texts]
    if not scanned:
        return Findings()
    if sum(map(len, scanned)) > LARGE_BYTES:
        return await scanner.scan_large(scanned)
    return scanner.scan(scanned)
