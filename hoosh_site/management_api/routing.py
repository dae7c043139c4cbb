"""Routes, policies, patterns, model cards and the gateway settings."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from gateway import plane
from gateway.endpoints import INFERENCE
from gateway.errors import BadRequestError, GatewayUnavailableError
from hoosh_site.management_api.access import demand
from hoosh_site.management_api.fields import Joined, Named, RowSerializer, Strict, Text
from hoosh_site.management_api.paging import Filter, one
from hoosh_site.management_api.rows import Rows, hold_cards, hold_config, search
from providers import known_models, ordering, services
from providers.admin_base import free_route_name
from providers.compile import pattern_doc, privacy_doc
from providers.exporting import (
    CARD_FIELDS,
    PATTERN_FIELDS,
    POLICY_FIELDS,
    PRIVACY_FIELDS,
    ROUTE_FIELDS,
    SETTINGS_FIELDS,
)
from providers.models import (
    DataPattern,
    GatewaySettings,
    ModelCard,
    PrivacyPolicy,
    Provider,
    Route,
    RoutingPolicy,
)
from providers.privacy.trial import Trial, of_pattern, of_policy
from providers.privacy.verdict import policy_of

_TRIAL_CHARS = 100_000
_ENABLED = {"enabled": Filter("enabled", "truth")}


class Configuration(Rows):
    """Rows of the published configuration."""

    publishes = True

    def gate(self) -> None:
        """Before the row."""
        hold_config()


class RouteSerializer(RowSerializer):
    """Requests for models like `pattern` may go to `provider`."""

    provider = Named(queryset=Provider.objects.all(), help_text="The provider's name.")
    tags = Joined(required=False)
    capabilities = Joined(required=False)

    class Meta:
        model = Route
        fields = ("id", "provider", *ROUTE_FIELDS, "managed_by", "created_at", "updated_at")
        read_only_fields = ("id", "managed_by", "created_at", "updated_at")


class QuestionSerializer(Strict):
    """A request, or what of it has a say in where it goes."""

    model = Text(max_length=256)
    path = serializers.ChoiceField(choices=sorted(INFERENCE), default="/v1/chat/completions")
    tags = Text(max_length=256, required=False, allow_blank=True, help_text="As in the header x-hoosh-tags.")
    body = serializers.DictField(required=False, help_text="More of the request, such as max_tokens or tools.")


class PlaceSerializer(Strict):
    """Where a route shall stand: before or behind another one, one of the two."""

    before = Named(queryset=Route.objects.all(), required=False, help_text="A route's name.")
    after = Named(queryset=Route.objects.all(), required=False, help_text="A route's name.")


class MovedSerializer(serializers.Serializer[None]):
    """What a move changed."""

    changed = serializers.ListField(child=serializers.CharField(), help_text="Routes that have another priority now.")


class KnownModelSerializer(serializers.Serializer[None]):
    """A model that routes or providers name."""

    name = serializers.CharField()
    providers = serializers.ListField(child=serializers.CharField())


class MeaningSerializer(serializers.Serializer[None]):
    """The known models a pattern stands for."""

    pattern = serializers.CharField()
    problem = serializers.CharField(help_text="Why it is no pattern; empty where it is one.")
    matching = KnownModelSerializer(many=True)
    total = serializers.IntegerField()
    known = serializers.IntegerField()


class Routes(Configuration):
    """Which models go to which provider, in which order."""

    label = "providers.route"
    bodiless = frozenset({"clone"})
    serializer_class = RouteSerializer
    queryset = Route.objects.select_related("provider")
    filters = {**search(), "provider": Filter("provider__name"), "pattern": Filter("pattern"), **_ENABLED}
    verbs: ClassVar = {"clone": "view add", "explain": "view", "matches": "view"}
    query: ClassVar = {"matches": frozenset({"pattern"})}

    def save(self, row: Route, actor: str) -> None:
        """Create or change a route."""
        services.save_route(row, actor=actor)

    def erase(self, row: Route, actor: str) -> None:
        """Delete a route."""
        services.delete_route(row, actor=actor)

    @extend_schema(request=None, responses={201: RouteSerializer}, summary="Copy a route; the copy is disabled")
    def clone(self, request: Request, **path: Any) -> Response:
        """Under a new name."""
        with self.writing():
            copy = self.row()
            copy.pk, copy._state.adding = None, True
            copy.name, copy.enabled, copy.managed_by = free_route_name(f"{copy.name} copy"), False, ""
            self.save(copy, self.actor)
        response = self.told(self.again(copy), status=201)
        response["Location"] = f"{request.path.rstrip('/').rpartition('/')[0].rpartition('/')[0]}/{copy.pk}"
        return response

    @extend_schema(request=PlaceSerializer, responses=MovedSerializer, summary="Put it before or behind another route")
    def move(self, request: Request, **path: Any) -> Response:
        """It gets a priority between its new neighbours; as few others as possible are renumbered. One version."""
        serializer = PlaceSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        if len(serializer.validated_data) != 1:
            raise BadRequestError("Give either 'before' or 'after'.", param="before")
        ((side, other),) = serializer.validated_data.items()
        with self.writing():
            route = self.row()
            if route.pk == other.pk:
                raise BadRequestError("That is the route itself.", param=side)
            rows = list(Route.objects.select_related("provider").order_by("priority", "name"))
            place = [row.pk for row in rows if row.pk != route.pk].index(other.pk) + (side == "after")
            changed = ordering.renumbered([(row.pk, row.priority) for row in rows], route.pk, place)
            for row in rows:
                if row.pk in changed:
                    row.priority = changed[row.pk]
                    self.save(row, self.actor)
        names = [row.name for row in rows if row.pk in changed]
        return Response({"changed": names}, headers=self.publication())

    @extend_schema(
        parameters=[OpenApiParameter("pattern", str, required=True, description="As of a route.")],
        responses=MeaningSerializer,
        summary="What a pattern stands for at present",
    )
    def matches(self, request: Request, **path: Any) -> Response:
        """Of models that routes name or providers listed at their last look."""
        return Response(known_models.told(one(request, "pattern") or ""))

    @extend_schema(
        request=QuestionSerializer,
        responses={200: OpenApiTypes.OBJECT},
        summary="Where a request would go, and why; nobody is called",
    )
    def explain(self, request: Request, **path: Any) -> Response:
        """A worker answers, as for `POST /v1/route/explain`."""
        question = QuestionSerializer(data=request.data)
        question.is_valid(raise_exception=True)
        asked = dict(question.validated_data)
        body = {**asked.pop("body", {}), **asked}
        if plane.current is None:
            raise GatewayUnavailableError("This process runs no gateway, so there is nobody to ask.")
        try:
            told = json.loads(plane.current.explain(json.dumps(body).encode()))
        except RuntimeError as exc:
            raise GatewayUnavailableError(f"There is no answer: {exc}.") from exc
        if "error" in told:
            raise BadRequestError(str(told["error"])[:1000])
        return Response(told)


class PolicySerializer(RowSerializer):
    """How the candidates of some models are ordered; the first policy that fits counts."""

    fallbacks = Joined(required=False)
    tags = Joined(required=False)

    class Meta:
        model = RoutingPolicy
        fields = ("id", *POLICY_FIELDS, "managed_by")
        read_only_fields = ("id", "managed_by")


class RoutingPolicies(Configuration):
    """How candidates are ordered, by model."""

    label = "providers.routingpolicy"
    serializer_class = PolicySerializer
    queryset = RoutingPolicy.objects.all()
    filters = {**search(), **_ENABLED}

    def save(self, row: RoutingPolicy, actor: str) -> None:
        """Create or change a policy."""
        services.save_policy(row, actor=actor)

    def erase(self, row: RoutingPolicy, actor: str) -> None:
        """Delete a policy."""
        services.delete_policy(row, actor=actor)


class TextSerializer(Strict):
    """A text to try."""

    text = Text(max_length=_TRIAL_CHARS, allow_blank=True)


class MatchSerializer(serializers.Serializer[None]):
    """A pattern that occurs, and how often."""

    name = serializers.CharField()
    level = serializers.CharField()
    count = serializers.IntegerField()


class TrialSerializer(serializers.Serializer[None]):
    """What is found in a text, and what a policy would do. The text is not told again, and kept nowhere."""

    found = MatchSerializer(many=True)
    level = serializers.CharField(allow_null=True)
    action = serializers.CharField(allow_null=True)
    redacted = serializers.ListField(child=serializers.CharField())


def _told(trial: Trial) -> Response:
    verdict = trial.verdict
    return Response(
        {
            "found": [{"name": each.name, "level": each.level, "count": each.count} for each in trial.found],
            "level": verdict.level if verdict else None,
            "action": verdict.action if verdict else None,
            "redacted": sorted(verdict.redact) if verdict else [],
        }
    )


class _Tried(Configuration):
    """Rows that a text can be tried against."""

    verbs: ClassVar = {"trial": "view"}

    @extend_schema(request=TextSerializer, responses=TrialSerializer, summary="Try a text; nothing is kept")
    def trial(self, request: Request, **path: Any) -> Response:
        """What is found, and what would be done."""
        row = self.row()
        serializer = TextSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        try:
            return _told(self.tried(serializer.validated_data["text"], row))
        except ValueError as exc:
            raise BadRequestError(str(exc)[:1000], param="text") from exc

    def tried(self, text: str, row: Any) -> Trial:
        """What is found in the text."""
        raise NotImplementedError


class PrivacySerializer(RowSerializer):
    """What of a team's requests may leave, and how."""

    disabled = Joined(required=False, help_text="Patterns that are not looked for.")

    class Meta:
        model = PrivacyPolicy
        fields = ("id", *PRIVACY_FIELDS, "managed_by")
        read_only_fields = ("id", "managed_by")


class PrivacyPolicies(_Tried):
    """What of requests may leave, by team."""

    label = "providers.privacypolicy"
    serializer_class = PrivacySerializer
    queryset = PrivacyPolicy.objects.all()
    filters = search()

    def tried(self, text: str, row: PrivacyPolicy) -> Trial:
        """Under this policy."""
        patterns = [pattern_doc(each) for each in DataPattern.objects.filter(enabled=True).order_by("id")]
        return of_policy(text, policy_of(privacy_doc(row)), patterns)

    def save(self, row: PrivacyPolicy, actor: str) -> None:
        """Create or change a policy."""
        services.save_privacy_policy(row, actor=actor)

    def erase(self, row: PrivacyPolicy, actor: str) -> None:
        """Delete a policy nobody has."""
        services.delete_privacy_policy(row, actor=actor)


class PatternSerializer(RowSerializer):
    """Something privacy policies look for beside the built-in patterns."""

    class Meta:
        model = DataPattern
        fields = ("id", *PATTERN_FIELDS, "managed_by")
        read_only_fields = ("id", "managed_by")


class DataPatterns(_Tried):
    """What policies look for beside the built-in patterns."""

    label = "providers.datapattern"
    serializer_class = PatternSerializer
    queryset = DataPattern.objects.all()
    filters = {**search(), "level": Filter("level"), **_ENABLED}

    def tried(self, text: str, row: DataPattern) -> Trial:
        """This pattern alone."""
        return of_pattern(text, pattern_doc(row))

    def save(self, row: DataPattern, actor: str) -> None:
        """Create or change a pattern."""
        services.save_data_pattern(row, actor=actor)

    def erase(self, row: DataPattern, actor: str) -> None:
        """Delete a pattern no policy switches off."""
        services.delete_data_pattern(row, actor=actor)


class CardSerializer(RowSerializer):
    """What is known of a model."""

    capabilities = Joined(required=False)

    class Meta:
        model = ModelCard
        fields = ("id", *CARD_FIELDS, "managed_by")
        read_only_fields = ("id", "managed_by")


class ImportedCardSerializer(CardSerializer):
    """A card, with the list it was imported from."""

    class Meta(CardSerializer.Meta):
        fields = (*CardSerializer.Meta.fields, "source")  # type: ignore[assignment]
        read_only_fields = fields  # type: ignore[assignment]


class ModelCards(Rows):
    """What operators know of models. Live: they are no part of the published configuration."""

    label = "providers.modelcard"
    serializer_class = CardSerializer
    queryset = ModelCard.objects.all()
    filters = search("pattern")

    def gate(self) -> None:
        """Before the row."""
        hold_cards()

    def save(self, row: ModelCard, actor: str) -> None:
        """Create or change a card."""
        services.save_card(row, actor=actor)

    def erase(self, row: ModelCard, actor: str) -> None:
        """Delete a card."""
        services.delete_card(row, actor=actor)


class ImportedCards(Rows):
    """Cards that `manage.py import_cards` made: they lie under the others and follow their list."""

    label = "providers.modelcard"
    serializer_class = ImportedCardSerializer
    queryset = ModelCard.every.exclude(source="")
    filters = {**search("pattern"), "source": Filter("source")}


class SettingsSerializer(RowSerializer):
    """How the whole gateway behaves."""

    privacy_policy = Named(
        queryset=PrivacyPolicy.objects.all(), allow_null=True, required=False, help_text="A privacy policy's name."
    )
    cors_origins = Joined(required=False)

    class Meta:
        model = GatewaySettings
        fields = (*SETTINGS_FIELDS, "privacy_policy")


class Settings(Configuration):
    """The one settings row."""

    label = "providers.gatewaysettings"
    serializer_class = SettingsSerializer
    queryset = GatewaySettings.objects.select_related("privacy_policy")

    def row(self) -> GatewaySettings:
        """It is always there."""
        return services.gateway_settings()

    def save(self, row: GatewaySettings, actor: str) -> None:
        """Change the settings. What may leave is decided by who may change privacy policies."""
        before = GatewaySettings.objects.get(pk=row.pk)
        if before.privacy_policy_id != row.privacy_policy_id:
            demand(self.request, "providers.change_privacypolicy")
        services.save_settings(row, actor=actor)
