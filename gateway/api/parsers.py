"""Reading request bodies of the control API by the rules of inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from rest_framework.parsers import BaseParser

from gateway import strict


class StrictJSONParser(BaseParser):
    """One JSON object, whatever else it may be refused with a 400 that says why (see `gateway.strict`)."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[bytes],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The object. Raises `BadRequestError`."""
        return strict.load(stream.read())[0]
