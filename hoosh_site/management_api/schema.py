"""How the API's OpenAPI description is made: parameters, error replies, names of operations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from drf_spectacular.openapi import AutoSchema

from gateway.api import schema as control_schema
from gateway.api.serializers import ErrorSerializer

__all__ = ["ManagementSchema", "control_schema", "without_twins"]  # that one makes the key known to the description

PREFIX = "/api/v1/"
_ERROR = "What is refused, in one shape; `error.fields` names the fields that are at fault."


class ManagementSchema(AutoSchema):
    """Tags by resource, and the error reply of every operation."""

    def get_tags(self) -> list[str]:
        """The first part of the path."""
        return [self.path.removeprefix(PREFIX).split("/")[0]]

    def get_operation_id(self) -> str:
        """The path and the method: unique, and readable where clients are generated from it."""
        words = re.sub(r"\{[^}]*\}", "", self.path.removeprefix(PREFIX)).replace("-", "_").strip("/")
        words = re.sub(r"[^a-z0-9]+", "_", words).strip("_")
        action = getattr(self.view, "action", None) or self.method.lower()
        return f"{words}_{action}"

    def get_summary(self) -> str | None:
        """As the view says, else the first line of its method's docstring."""
        return super().get_summary() or (self.get_description() or "").partition("\n")[0].rstrip(".") or None

    def _is_list_view(self, serializer: Any = None) -> bool:
        return getattr(self.view, "action", "") == "list"

    def _get_response_bodies(self, direction: Any = "response") -> Any:
        bodies = super()._get_response_bodies(direction)
        if direction == "response":
            bodies["4XX"] = self._get_response_for_code(ErrorSerializer, "4XX")  # type: ignore[no-untyped-call]
            bodies["4XX"]["description"] = _ERROR
        return bodies


def without_twins(endpoints: Sequence[tuple[str, str, str, Any]]) -> list[tuple[str, str, str, Any]]:
    """drf-spectacular's hook: of a path that works with and without its last slash, only the one without is told."""
    paths = {path for path, *_ in endpoints}
    return [each for each in endpoints if not (each[0].endswith("/") and each[0].rstrip("/") in paths)]
