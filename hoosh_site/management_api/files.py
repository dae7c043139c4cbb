"""The whole configuration as one document: written out, checked, brought in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.parsers import BaseParser
from rest_framework.request import Request
from rest_framework.response import Response

from gateway.api.parsers import StrictJSONParser
from hoosh_site.exporting import export_text
from hoosh_site.importing import import_text
from hoosh_site.management_api.fields import Strict, Text
from hoosh_site.management_api.paging import truth
from hoosh_site.management_api.rows import Acting, bounded, wake
from providers.hoosh_toml import MAX_FILE_BYTES

_NAME = "The document"
_VERBS = ("add", "change", "delete")
_ROWS = ("provider", "credential", "route", "routingpolicy", "privacypolicy", "datapattern", "modelcard")
_WRITES = " ".join(
    (
        *(f"providers.{verb}_{model}" for model in _ROWS for verb in _VERBS),
        "providers.change_gatewaysettings",
        *(f"budgets.{verb}_{model}" for model in ("team", "agent", "pool", "apikey") for verb in ("add", "change")),
        "budgets.add_price",
    )
)
_READS = " ".join(
    (
        *(f"providers.view_{model}" for model in ("provider", "route", "routingpolicy", "privacypolicy")),
        *(f"providers.view_{model}" for model in ("datapattern", "modelcard", "gatewaysettings")),
        *(f"budgets.view_{model}" for model in ("team", "agent", "pool", "price")),
    )
)


class TomlParser(BaseParser):
    """A document as it is."""

    media_type = "application/toml"

    def parse(
        self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The bytes under "toml"."""
        return {"toml": bounded(stream, MAX_FILE_BYTES).read().decode("utf-8", "surrogateescape")}


class DocumentParser(StrictJSONParser):
    """A JSON object that holds a document."""

    def parse(
        self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The object."""
        return super().parse(bounded(stream, 2 * MAX_FILE_BYTES), media_type, parser_context)


class ImportSerializer(Strict):
    """A document of `export-config`, or hoosh's own configuration file, with the secrets it names as `$NAME`."""

    toml = serializers.CharField(trim_whitespace=False, max_length=MAX_FILE_BYTES)
    variables = serializers.DictField(
        child=Text(max_length=10_000, allow_blank=True),
        required=False,
        help_text="Values of `$NAME`. The gateway's own environment is never read here.",
    )


class ImportReportSerializer(serializers.Serializer[None]):
    """What an import did, or would do."""

    version = serializers.IntegerField(help_text="In force afterwards; 0 = only checked.")
    changes = serializers.ListField(child=serializers.CharField())
    unsupported = serializers.ListField(child=serializers.CharField())
    unknown = serializers.ListField(child=serializers.CharField())
    warnings = serializers.ListField(child=serializers.CharField())


class ImportConfig(Acting):
    """Bring the rows in line with a document."""

    parser_classes: Any = (DocumentParser, TomlParser)
    label = "providers.provider"
    verbs: ClassVar = {"create": _WRITES}
    query: ClassVar = {"create": frozenset({"check", "adopt"})}

    @extend_schema(
        request={"application/json": ImportSerializer, "application/toml": OpenApiTypes.STR},
        parameters=[
            OpenApiParameter("check", bool, description="1 = only say what would be done."),
            OpenApiParameter("adopt", bool, description="1 = take over rows of the same names made by operators."),
        ],
        responses=ImportReportSerializer,
        summary="Import a configuration: all or nothing",
    )
    def create(self, request: Request) -> Response:
        """Changes only rows that an import made, unless it adopts others; published once."""
        serializer = ImportSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        asked = serializer.validated_data
        check, adopt = truth(request, "check"), truth(request, "adopt")
        report = import_text(
            asked["toml"].encode("utf-8", "surrogateescape"),
            self.actor,
            name=_NAME,
            variables=asked.get("variables", {}),
            adopt=adopt,
            check=check,
        )
        if not check:
            wake()
        told = report.as_dict()
        del told["path"]
        return Response(told)


class ExportConfig(Acting):
    """The configuration as a document."""

    label = "providers.provider"
    verbs: ClassVar = {"retrieve": _READS}

    @extend_schema(
        responses={(200, "application/toml"): OpenApiTypes.STR}, summary="The configuration as TOML, without secrets"
    )
    def retrieve(self, request: Request) -> HttpResponse:
        """What `import-config` reads back; secrets stand there as `$NAME`."""
        return HttpResponse(
            export_text(), content_type="application/toml; charset=utf-8", headers=self.default_response_headers
        )
