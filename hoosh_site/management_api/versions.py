"""What was published, what waits, and the way back."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import Any, ClassVar

import msgspec
from django.http import Http404
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from gateway.api.authentication import caller_of
from gateway.errors import BadRequestError, ForbiddenError
from hoosh_site.dry_run import MOST, DryRun, dry_run
from hoosh_site.management_api.fields import Moment, Strict, Text
from hoosh_site.management_api.paging import Filter, whole
from hoosh_site.management_api.problems import ConflictError
from hoosh_site.management_api.rows import ID_LIMIT, Acting, Rows, wake
from providers import config, differences, drafts, publish, revert
from providers.compile import compile_document, problems
from providers.config import ConfigDocument
from providers.models import ConfigVersion, DraftChange, ScheduledPublication

CHANGE = "providers.change_gatewaysettings"
CHANGES_SHOWN = 500
REQUESTS = 1000


class ConfigVersionSerializer(serializers.ModelSerializer[ConfigVersion]):
    """A published configuration."""

    class Meta:
        model = ConfigVersion
        fields = ("number", "digest", "author", "note", "created_at")


class DocumentSerializer(ConfigVersionSerializer):
    """A published configuration, with all it says. Secrets are in no version."""

    document = serializers.DictField()

    class Meta(ConfigVersionSerializer.Meta):
        fields = (*ConfigVersionSerializer.Meta.fields, "document")  # type: ignore[assignment]


class FieldChangeSerializer(serializers.Serializer[None]):
    """What became of one field, as text."""

    field = serializers.CharField()
    before = serializers.CharField()
    after = serializers.CharField()


class ChangeSerializer(serializers.Serializer[None]):
    """What became of one row."""

    section = serializers.CharField()
    name = serializers.CharField()
    what = serializers.ChoiceField(choices=("added", "removed", "changed"))
    fields = FieldChangeSerializer(many=True)  # type: ignore[assignment]  # a field, not the property


class DifferenceSerializer(serializers.Serializer[None]):
    """What a version changed."""

    before = serializers.IntegerField(allow_null=True, help_text="The version compared with; null = there is none.")
    after = serializers.IntegerField()
    changes = ChangeSerializer(many=True)
    more = serializers.IntegerField(help_text="Changes that are not told.")


class NoteSerializer(Strict):
    """Why; it stands in the history."""

    note = Text(max_length=300, required=False, allow_blank=True, default="")


class SeenSerializer(Strict):
    """Which draft is meant: the one that was read."""

    seen = Text(
        max_length=64,
        required=False,
        allow_blank=True,
        default="",
        help_text="`digest` of the draft as read; needed to publish where changes are reviewed.",
    )


class PublishSerializer(SeenSerializer, NoteSerializer):
    """What is published, and why."""


class ScheduleSerializer(PublishSerializer):
    """When."""

    at = Moment()


class WaitingChangeSerializer(serializers.ModelSerializer[DraftChange]):
    """A change that waits for its review."""

    class Meta:
        model = DraftChange
        fields = ("at", "author", "what")


class ProblemSerializer(serializers.Serializer[None]):
    """Why a draft cannot run."""

    row = serializers.CharField()
    field = serializers.CharField()
    remedy = serializers.CharField()


class DraftSerializer(serializers.Serializer[None]):
    """What is saved and not published."""

    version = serializers.IntegerField(allow_null=True, help_text="In force.")
    digest = serializers.CharField(help_text="Names the draft as it is: send it back as `seen`.")
    differs = serializers.BooleanField()
    is_reviewed = serializers.BooleanField(help_text="Changes wait for somebody else to publish them.")
    waits = serializers.BooleanField(help_text="Changes wait until they are published.")
    may_publish = serializers.BooleanField()
    refusal = serializers.CharField(help_text="Why the caller may not publish it; empty where nothing is against it.")
    problems = ProblemSerializer(many=True)
    changes = ChangeSerializer(many=True)
    more = serializers.IntegerField(help_text="Changes that are not told.")
    waiting = WaitingChangeSerializer(many=True)


class ScheduledSerializer(serializers.ModelSerializer[ScheduledPublication]):
    """A draft that is to be published at a moment, unless it changed by then."""

    class Meta:
        model = ScheduledPublication
        fields = ("id", "at", "author", "note", "digest", "state", "result", "created_at")


class OutcomeSerializer(serializers.Serializer[None]):
    """What one configuration does with the requests."""

    answered = serializers.FloatField()
    refused = serializers.IntegerField()
    usd = serializers.FloatField()
    unpriced = serializers.IntegerField()
    mean_ms = serializers.FloatField(allow_null=True)


class MoveSerializer(serializers.Serializer[None]):
    """Requests that would go elsewhere; an empty route = refused. `_at`: "provider / model" that is asked there."""

    model = serializers.CharField()
    before = serializers.CharField(allow_blank=True)
    after = serializers.CharField(allow_blank=True)
    before_at = serializers.CharField(allow_blank=True)
    after_at = serializers.CharField(allow_blank=True)
    requests = serializers.FloatField()
    usd = serializers.FloatField()


class DryRunSerializer(serializers.Serializer[None]):
    """The last requests, weighed by what is in force and by the draft. Nobody is called."""

    requests = serializers.IntegerField()
    before = OutcomeSerializer()
    after = OutcomeSerializer()
    moved = serializers.FloatField()
    usd_more = serializers.FloatField()
    moves = MoveSerializer(many=True)
    newly_refused = serializers.DictField(child=serializers.IntegerField())
    newly_answered = serializers.DictField(child=serializers.IntegerField())


class RevertedSerializer(serializers.Serializer[None]):
    """The version in force now, and what could not be as it was."""

    version = serializers.IntegerField(allow_null=True)
    warnings = serializers.ListField(child=serializers.CharField())


class Versions(Rows):
    """The published configurations, newest first."""

    label = "providers.configversion"
    serializer_class = ConfigVersionSerializer
    queryset = ConfigVersion.objects.defer("document", "owners")
    keyset = ("number",)
    newest_first = True
    filters = {"author": Filter("author"), "digest": Filter("digest")}
    verbs: ClassVar = {"diff": "view", "revert": f"view {CHANGE}"}
    query: ClassVar = {"diff": frozenset({"against"})}

    @extend_schema(responses=DocumentSerializer)
    def retrieve(self, request: Request, **path: Any) -> Response:
        """A version with its document."""
        version = self.row()
        told = ConfigVersionSerializer(version).data
        return Response({**told, "document": _plain(_document(version))})

    @extend_schema(
        parameters=[OpenApiParameter("against", int, description="Another version.")],
        responses=DifferenceSerializer,
        summary="What a version changed",
    )
    def diff(self, request: Request, **path: Any) -> Response:
        """Against the version before it, or `?against=` another."""
        version = self.row()
        number = whole(request, "against", 0, least=1, most=ID_LIMIT - 1)
        older = ConfigVersion.objects.filter(number__lt=version.number).order_by("-number").first()
        if number:
            older = ConfigVersion.objects.filter(number=number).first()
            if older is None:
                raise Http404
        found = differences.described(_document(older), _document(version)) if older else []
        return Response(
            {"before": older.number if older else None, "after": version.number, **_changes(found)},
        )

    @extend_schema(request=NoteSerializer, responses=RevertedSerializer, summary="Go back to a version")
    def revert(self, request: Request, **path: Any) -> Response:
        """The rows become what it says, and that is published as a new version."""
        _refuse_keys(request)
        made = revert.revert(self.row().number, actor=self.actor, note=_read(NoteSerializer, request)["note"])
        wake()
        return Response({"version": made.version.number, "warnings": made.warnings})


def _plain(document: ConfigDocument) -> Any:
    return msgspec.json.decode(config.encode(document))


def _document(version: ConfigVersion) -> ConfigDocument:
    try:
        return config.unpack(bytes(version.document))
    except ValueError as exc:
        told = f"Version {version.number} was made by a gateway with another format of versions."
        raise ConflictError(told, code="refused") from exc


def _changes(found: list[differences.Change]) -> dict[str, Any]:
    shown = [
        {
            "section": each.section,
            "name": each.name,
            "what": each.what,
            "fields": [{"field": name, "before": before, "after": after} for name, before, after in each.fields],
        }
        for each in found[:CHANGES_SHOWN]
    ]
    return {"changes": shown, "more": max(0, len(found) - CHANGES_SHOWN)}


def _read(kind: type[serializers.Serializer[Any]], request: Request) -> dict[str, Any]:
    serializer = kind(data=request.data)
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)


def _refuse_keys(request: Request) -> None:
    """A key is nobody's second pair of eyes: whoever holds it may have made the change."""
    if caller_of(request).key is not None and publish.is_reviewed():
        raise ForbiddenError("Changes are reviewed here: a person has to sign in to publish them.")


def _refuse_unseen(seen: str) -> None:
    """A review is of something."""
    if not seen and publish.is_reviewed():
        raise BadRequestError("Changes are reviewed here: name the draft you looked at by its digest.", param="seen")


class Draft(Acting):
    """What is saved and not published yet."""

    label = "providers.configversion"
    verbs: ClassVar = {
        "retrieve": "view",
        "dry_run": "view",
        **dict.fromkeys(("publish", "discard", "schedule"), CHANGE),
    }
    query: ClassVar = {"dry_run": frozenset({"requests"})}

    @extend_schema(responses=DraftSerializer, summary="The draft: what it changes, who changed it, what is wrong")
    def retrieve(self, request: Request) -> Response:
        """`differs` is false where everything is published."""
        document, now, found = compile_document(), drafts.in_force(), publish.latest()
        digest = config.digest(document)
        wrong = problems(document)
        refusal = drafts.refusal(self.actor)
        return Response(
            {
                "version": found[0] if found else None,
                "digest": digest,
                "differs": found is None or digest != config.digest(now),
                "is_reviewed": publish.is_reviewed(),
                "waits": publish.waits(),
                "may_publish": not refusal and not wrong,
                "refusal": refusal,
                "problems": [
                    {"row": each.row, "field": each.field, "remedy": each.remedy} for each in wrong[:CHANGES_SHOWN]
                ],
                **_changes(differences.described(now, document)),
                "waiting": WaitingChangeSerializer(DraftChange.objects.order_by("-id")[:100], many=True).data,
            }
        )

    @extend_schema(request=PublishSerializer, responses=ConfigVersionSerializer, summary="Publish the draft")
    def publish(self, request: Request) -> Response:
        """Answers with the version in force."""
        asked = _read(PublishSerializer, request)
        _refuse_keys(request)
        _refuse_unseen(asked["seen"])
        version = drafts.approve(self.actor, note=asked["note"], seen=asked["seen"])
        wake()
        return Response(ConfigVersionSerializer(version).data)

    @extend_schema(request=SeenSerializer, responses=RevertedSerializer, summary="Discard the draft")
    def discard(self, request: Request) -> Response:
        """The rows become what is in force."""
        warnings = drafts.discard(self.actor, seen=_read(SeenSerializer, request)["seen"])
        wake()
        found = publish.latest()
        return Response({"version": found[0] if found else None, "warnings": warnings})

    @extend_schema(request=ScheduleSerializer, responses={201: ScheduledSerializer}, summary="Publish the draft later")
    def schedule(self, request: Request) -> Response:
        """As it is now; it is not published when it changes before."""
        asked = _read(ScheduleSerializer, request)
        _refuse_keys(request)
        _refuse_unseen(asked["seen"])
        at: dt.datetime = asked["at"]
        row = drafts.schedule(self.actor, at, seen=asked["seen"], note=asked["note"])
        return Response(ScheduledSerializer(row).data, status=201)

    @extend_schema(
        parameters=[OpenApiParameter("requests", int, description="So many of the last ones.")],
        responses=DryRunSerializer,
        summary="What the draft would have done with the last requests",
    )
    def dry_run(self, request: Request) -> Response:
        """`?requests=` so many, at most ten thousand."""
        count = whole(request, "requests", REQUESTS, least=1, most=MOST)
        return Response(_run(dry_run(drafts.in_force(), compile_document(), requests=count)))


def _run(found: DryRun) -> dict[str, Any]:
    def outcome(side: Any) -> dict[str, Any]:
        names = ("answered", "refused", "usd", "unpriced", "mean_ms")
        return {name: getattr(side, name) for name in names}

    return {
        "requests": found.requests,
        "before": outcome(found.before),
        "after": outcome(found.after),
        "moved": found.moved,
        "usd_more": found.usd_more,
        "moves": [asdict(each) for each in found.moves],
        "newly_refused": dict(found.newly_refused),
        "newly_answered": dict(found.newly_answered),
    }


class Scheduled(Rows):
    """Drafts that are published at a moment, newest first."""

    label = "providers.configversion"
    serializer_class = ScheduledSerializer
    queryset = ScheduledPublication.objects.all()
    newest_first = True
    filters = {"state": Filter("state")}
    told_by = ("state",)
    verbs: ClassVar = {"destroy": CHANGE}

    @extend_schema(summary="Do not publish it")
    def destroy(self, request: Request, **path: Any) -> Response:
        """Its row stays, cancelled."""
        row = self.row()
        self.match(request, row)
        if not drafts.cancel(row, self.actor):
            raise ConflictError("It does not wait any more.", code="refused")
        return Response(status=204)
