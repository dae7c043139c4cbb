"""Providers, their secrets, and what a look at them finds."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.http import Http404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from hoosh_site.management_api.fields import Joined, RowSerializer, Strict, Text
from hoosh_site.management_api.paging import Filter
from hoosh_site.management_api.problems import ChangedError
from hoosh_site.management_api.rows import Rows, hold_config, search, wake
from providers import admin_tls, drafts, services, validation
from providers.catalog import CATALOG
from providers.exporting import PROVIDER_FIELDS
from providers.globs import matcher
from providers.models import ClientCertificate, Credential, Provider, ProviderProbe


class CredentialSerializer(RowSerializer):
    """A stored secret. It is written, never read; what is told of it is its end."""

    secret = Text(write_only=True, max_length=services.SECRET_LIMIT, help_text="To store, or to store anew.")
    is_usable = serializers.BooleanField(
        read_only=True, help_text="False: it was stored for another base URL; store it again."
    )

    class Meta:
        model = Credential
        fields = ("id", "name", "secret", "last4", "is_usable", "enabled", "revision", "rotated_at", "created_at")
        read_only_fields = ("id", "last4", "revision", "rotated_at", "created_at")


class StoredCredentialSerializer(CredentialSerializer):
    """A stored secret as a provider tells it."""

    class Meta(CredentialSerializer.Meta):
        fields = ("id", "name", "last4", "is_usable", "enabled", "revision")  # type: ignore[assignment]
        read_only_fields = fields  # type: ignore[assignment]

    secret = None  # type: ignore[assignment]


class ProviderSerializer(RowSerializer):
    """An upstream server."""

    pins = Joined(required=False, allow_empty=True, help_text="sha256/… of keys, one of which must be seen.")
    credentials = StoredCredentialSerializer(many=True, read_only=True)

    class Meta:
        model = Provider
        fields = (
            *("id", *PROVIDER_FIELDS, "address_class", "managed_by"),
            *("credentials", "created_at", "updated_at"),
        )
        read_only_fields = ("id", "address_class", "managed_by", "created_at", "updated_at")


class CertificateSerializer(Strict):
    """What is shown to a provider that asks for a certificate."""

    chain_pem = Text(help_text="The certificate and what is above it.")
    key_pem = Text(write_only=True, required=False, allow_blank=True, help_text="Left out: the stored key is kept.")
    fingerprint = serializers.CharField(read_only=True, help_text="SHA-256 of the first certificate, hex.")
    is_usable = serializers.BooleanField(read_only=True)
    rotated_at = serializers.DateTimeField(read_only=True)


class SeenSerializer(serializers.Serializer[None]):
    """One certificate of the chain seen last."""

    role = serializers.CharField()
    name = serializers.CharField()
    not_after = serializers.DateTimeField()
    pin = serializers.CharField()
    is_pinned = serializers.BooleanField()


class FoundSerializer(serializers.Serializer[None]):
    """One model a provider listed, with the routes that send it there."""

    name = serializers.CharField()
    routes = serializers.ListField(child=serializers.CharField())


class LookSerializer(serializers.Serializer[None]):
    """What the last look at a provider found."""

    ok = serializers.BooleanField(allow_null=True, help_text="null = nobody has looked yet")
    detail = serializers.CharField(help_text="What is wrong; empty where nothing is.")
    latency_ms = serializers.FloatField(allow_null=True)
    checked_at = serializers.DateTimeField(allow_null=True)
    answered_at = serializers.DateTimeField(allow_null=True)
    consecutive_failures = serializers.IntegerField()
    models = FoundSerializer(many=True)
    certificates = SeenSerializer(many=True)


class VersionSerializer(serializers.Serializer[None]):
    """The version in force now."""

    version = serializers.IntegerField()


class Providers(Rows):
    """Who answers."""

    label = "providers.provider"
    bodiless = frozenset({"test", "observe", "disable_now"})
    publishes = True
    serializer_class = ProviderSerializer
    queryset = Provider.objects.prefetch_related("credentials__provider").select_related("probe", "client_certificate")
    filters = {**search(), "kind": Filter("kind"), "enabled": Filter("enabled", "truth")}
    verbs: ClassVar = {"models": "view"}

    def create(self, request: Request, **path: Any) -> Response:
        """A new provider. Its address is looked up before anything is written."""
        row = services.save_provider(self.make(self.read(request)), actor=self.actor)
        wake()
        return self.told(self.again(row), status=201)

    def partial_update(self, request: Request, **path: Any) -> Response:
        """Change the fields that are there. A new base URL is looked up; secrets have to be stored for it again."""
        values = self.read(request, partial=True)
        self.address_class = self._observed(self.row(), values)
        return super().partial_update(request, **path)

    def _observed(self, row: Provider, values: dict[str, Any]) -> str | None:
        """The class of a new address: looked up outside of the transaction."""
        kind = CATALOG.get(values.get("kind", row.kind))
        if kind is None:
            return None  # refused when it is saved
        try:
            url = validation.base_url(values.get("base_url", row.base_url), default=kind.base_url)
        except ValidationError as exc:
            raise ValidationError({"base_url": exc.messages}) from exc
        return None if url == row.base_url else services.observe_address(url)

    def save(self, row: Provider, actor: str) -> None:
        """Change a provider."""
        services.save_provider(row, actor=actor, address_class=self.address_class or row.address_class)

    def erase(self, row: Provider, actor: str) -> None:
        """Delete a provider with its credentials and routes."""
        services.delete_provider(row, actor=actor)

    def gate(self) -> None:
        """Before the row."""
        hold_config()

    @extend_schema(request=None, responses=LookSerializer, summary="Test the connection now")
    def test(self, request: Request, **path: Any) -> Response:
        """Connect, list its models, and remember what was found. Takes seconds at most."""
        row = self.row()
        try:
            admin.site.probe(row.pk)  # type: ignore[attr-defined]  # ours
        except Provider.DoesNotExist:
            return self.retrieve(request, **path)  # deleted meanwhile
        wake()
        return Response(_look(self.row()))

    @extend_schema(responses=LookSerializer, summary="What the last look found: models and certificates")
    def models(self, request: Request, **path: Any) -> Response:
        """Nobody is called."""
        return Response(_look(self.row()))

    @extend_schema(request=None, responses=ProviderSerializer, summary="Accept the class its address has now")
    def observe(self, request: Request, **path: Any) -> Response:
        """For a server that moved from one network to another."""
        services.observe_again(self.row(), actor=self.actor)
        wake()
        return self.told(self.row())

    @extend_schema(request=None, responses=VersionSerializer, summary="Switch it off at once")
    def disable_now(self, request: Request, **path: Any) -> Response:
        """In what is in force, whatever else waits for a review, and in the draft as well."""
        _, version = drafts.disable_now(self.row().pk, self.actor)
        wake()
        return Response({"version": version.number})


def _look(row: Provider) -> dict[str, Any]:
    probe: ProviderProbe | None = getattr(row, "probe", None)
    routes = [(matcher(route.pattern), route.name) for route in row.routes.order_by("id")]
    names = ("detail", "latency_ms", "checked_at", "answered_at", "consecutive_failures")
    values = {name: getattr(probe, name) for name in names} if probe else dict.fromkeys(names)
    return {
        **values,
        "ok": probe.ok if probe else None,
        "detail": probe.detail if probe else "",
        "consecutive_failures": probe.consecutive_failures if probe else 0,
        "models": [
            {"name": name, "routes": [route for matches, route in routes if matches(name)]}
            for name in sorted(probe.models if probe else ())
        ],
        "certificates": [
            {name: getattr(each, name) for name in ("role", "name", "not_after", "pin", "is_pinned")}
            for each in admin_tls.server_chain(row)
        ],
    }


class _OfProvider(Rows):
    """Rows below a provider."""

    publishes = True

    def provider(self) -> Provider:
        """The provider in the path. Raises `Http404`."""
        view = Providers(kwargs={"pk": self.kwargs["provider_pk"]}, request=self.request, action="retrieve")
        found: Provider = view.row()
        return found

    def gate(self) -> None:
        """Before the row."""
        hold_config()


class Credentials(_OfProvider):
    """The secrets of a provider: written, replaced, never read."""

    label = "providers.credential"
    serializer_class = CredentialSerializer
    queryset = Credential.objects.none()
    told_by = ("revision",)

    def get_queryset(self) -> QuerySet[Credential]:
        """Those of the provider in the path."""
        if getattr(self, "swagger_fake_view", False):
            return Credential.objects.none()
        return Credential.objects.filter(provider=self.provider()).select_related("provider")

    def create(self, request: Request, **path: Any) -> Response:
        """Store a secret under a name. One of that name is not replaced: change that one."""
        values = self.read(request)
        with self.writing():
            provider = self.provider()
            name = values.get("name", "default")
            if provider.credentials.filter(name=name).exists():
                raise ValidationError({"name": "A credential of this name is stored already."})
            row = services.set_credential(provider, name, values["secret"], actor=self.actor)
            if not values.get("enabled", True):
                row.enabled = False
                services.save_credential(row, actor=self.actor)
        return self.told(self.again(row), status=201)

    def partial_update(self, request: Request, **path: Any) -> Response:
        """Rename it, switch it off, or store a new secret in its place."""
        values = self.read(request, partial=True)
        secret = values.pop("secret", None)
        with self.writing():
            row = self.row()
            self.match(request, row)
            for name, value in values.items():
                setattr(row, name, value)
            services.save_credential(row, actor=self.actor)
            if secret is not None:
                services.set_credential(row.provider, row.name, secret, actor=self.actor)
        return self.told(self.again(row))

    def erase(self, row: Credential, actor: str) -> None:
        """Forget a secret."""
        services.delete_credential(row, actor=actor)


class ClientCertificates(_OfProvider):
    """The one certificate a provider is shown."""

    label = "providers.provider"
    serializer_class = CertificateSerializer
    queryset = ClientCertificate.objects.none()
    told_by = ("rotated_at",)
    verbs: ClassVar = {"destroy": "change"}

    def row(self) -> ClientCertificate:
        """The certificate. Raises `Http404` where there is none."""
        rows = ClientCertificate.objects.select_related("provider").filter(provider=self.provider())
        found: ClientCertificate | None = rows.first()
        if found is None:
            raise Http404
        return found

    @extend_schema(request=CertificateSerializer, responses=CertificateSerializer)
    def replace(self, request: Request, **path: Any) -> Response:
        """Show this certificate from now on."""
        values = self.read(request)
        with transaction.atomic():
            self.gate()
            provider = self.provider()
            row = ClientCertificate.objects.select_related("provider").filter(provider=provider).first()
            if row is not None:
                self.match(request, row)
            elif request.headers.get("If-Match", "").strip():
                raise ChangedError
            services.set_client_certificate(provider, values["chain_pem"], values.get("key_pem", ""), actor=self.actor)
        wake()
        return self.told(self.row())

    def retrieve(self, request: Request, **path: Any) -> Response:
        """The chain; the key is never told."""
        return self.told(self.row())

    def erase(self, row: ClientCertificate, actor: str) -> None:
        """Show none any more, and forget the key."""
        services.remove_client_certificate(row.provider, actor=actor)
