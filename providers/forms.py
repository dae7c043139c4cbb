"""Forms of the provider pages. They refuse early and in words; the writing is done by `providers.services`."""

from __future__ import annotations

import json
import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from audit.generics import RowForm
from providers import services, validation
from providers.catalog import CATALOG, Kind
from providers.exporting import LIMIT_FIELDS
from providers.models import ClientCertificate, Credential, GatewaySettings, Provider, Route

PATTERN_HELP = (
    "The model name as clients send it; upper and lower case differ. * stands for any text, also none: "
    "gpt-* answers gpt-4o and gpt-4o-mini, * answers every model. "
    "The lowest priority among all matching routes is tried first."
)


_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


class PemArea(forms.Textarea):
    """For certificates. A private key that got in by mistake is not sent back with the page."""

    def __init__(self) -> None:
        super().__init__({"rows": 4, "class": "vLargeTextField hoosh-mono", "spellcheck": "false"})

    def format_value(self, value: Any) -> str | None:
        """What is shown again."""
        text = super().format_value(value)
        return _KEY.sub("", text) if isinstance(text, str) else None


class _TypedOnce(forms.Widget):
    """A field whose text never comes back with the page: a form that is shown again says that it is lost."""

    template_name = "admin/widgets/typed_once.html"

    def get_context(self, name: str, value: Any, attrs: dict[str, Any] | None) -> dict[str, Any]:
        """Django's, without the text; `widget.lost` names what says that one was typed."""
        context: dict[str, Any] = super().get_context(name, None, attrs)
        if value:
            lost = f"{context['widget']['attrs'].get('id', name)}_lost"
            context["widget"] |= {"lost": lost, "attrs": context["widget"]["attrs"] | {"aria-describedby": lost}}
        return context


class SecretInput(_TypedOnce, forms.PasswordInput):
    """For a secret: typed, never shown."""


class KeyArea(_TypedOnce, PemArea):
    """For a private key: typed, never shown."""


class ProviderForm(RowForm[Provider]):
    """A provider. The address is looked up here, before any transaction is open, and its class kept for the save.

    `client` is what to do with the client certificate: (chain, key) to store, ("", "") to remove it, None to keep it.
    """

    client_chain = forms.CharField(
        label="Client certificate (PEM)",
        required=False,
        widget=PemArea,
        help_text="Shown to the server if it asks: the certificate and what is above it. Blank = none.",
    )
    client_key = forms.CharField(label="Its private key (PEM)", required=False, widget=KeyArea)

    class Meta:
        model = Provider
        fields = ("name", "kind", "base_url", "ca_pem", "pins", *LIMIT_FIELDS, "enabled", "note")
        widgets = {"ca_pem": PemArea, "pins": forms.Textarea({"rows": 3, "class": "vLargeTextField hoosh-mono"})}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.address_class: str | None = None
        self.client: tuple[str, str] | None = None
        stored: ClientCertificate | None = getattr(self.instance, "client_certificate", None)
        self._stored_chain = stored.chain_pem if stored else ""
        self.initial["client_chain"] = self._stored_chain
        self.initial["pins"] = self.instance.pins.replace(",", "\n")
        if (key := self.fields.get("client_key")) is not None:
            key.help_text = "Encrypted when saved, never shown again. It must have no passphrase."
            if stored:
                since = f"Stored {stored.rotated_at:%Y-%m-%d}"
                state = "blank keeps it" if stored.is_usable else "saved for another base URL: type it again"
                key.help_text += f" {since}; {state}."
        kind = self.fields.get("kind")
        if kind is not None:
            guides = {row.name: {"address": row.base_url, "hint": _hint(row)} for row in CATALOG.values()}
            kind.widget.attrs["data-hoosh-kinds"] = json.dumps(guides)

    def clean(self) -> dict[str, Any]:
        """Bring the base URL into its stored form and look its address up when it is new."""
        super().clean()
        data: dict[str, Any] = self.cleaned_data
        kind = CATALOG.get(data.get("kind", ""))
        if kind is None or "base_url" not in data:
            return data
        try:
            url = validation.base_url(data["base_url"], default=kind.base_url)
            if (url == validation.DEMO_URL) != (kind.name == "demo"):
                raise ValidationError(f"{validation.DEMO_URL} and the kind “demo” belong together.")
            if self.instance._state.adding or url != self.initial.get("base_url"):
                self.address_class = services.observe_address(url)
        except ValidationError as exc:
            self.add_error("base_url", exc.messages)
            return data
        data["base_url"] = url
        self._clean_client(url)
        return data

    def _clean_client(self, url: str) -> None:
        """Try certificate and key out, unless they stay as they are."""
        if "client_chain" not in self.cleaned_data:
            return
        chain = self.cleaned_data["client_chain"].replace("\r\n", "\n").strip()
        key = self.cleaned_data.get("client_key", "")
        if chain == self._stored_chain and not key:
            if chain and not url.startswith("https://"):
                self.add_error("client_chain", "A client certificate needs a base URL with https://.")
            return
        if not chain:
            if key:
                self.add_error("client_chain", "Paste the certificate that this key belongs to.")
            self.client = "", ""
            return
        # A provider of its own: the row itself takes the new address only when the whole form is good.
        wanted = Provider(pk=self.instance.pk, base_url=url)
        try:
            services.check_client_certificate(wanted, chain, key)
        except ValidationError as exc:
            self.add_error(None, exc)
        else:
            self.client = chain, key


def _hint(kind: Kind) -> str:
    """What the form says about a kind while it is chosen."""
    if kind.name == "demo":
        return "Answers by itself, for a first try: no address, no credential."
    address = (
        f"Leave the address blank for {kind.base_url}."
        if kind.base_url
        else "Enter the address of your own server or resource."
    )
    if kind.auth == "none" or kind.local:
        return f"Usually runs on this host or beside it. {address} A credential only if the server asks for one."
    return f"{address} Paste a key below, under Credentials."


class CredentialForm(RowForm[Credential]):
    """A credential whose secret can be typed but never read back."""

    secret = forms.CharField(
        required=False,
        strip=True,
        widget=SecretInput({"autocomplete": "new-password", "class": "vTextField"}),
    )

    class Meta:
        model = Credential
        fields = ("name", "secret", "enabled")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        stored = bool(self.instance.ciphertext)
        hint = f"…{self.instance.last4} is stored; blank keeps it" if stored and self.instance.last4 else ""
        self.fields["secret"].widget.attrs["placeholder"] = hint or (
            "stored; blank keeps it" if stored else "paste the secret"
        )

    def clean_secret(self) -> str:
        """Refuse what could not stand in a header."""
        secret: str = self.cleaned_data["secret"]
        if not secret:
            if not self.instance.ciphertext:
                raise ValidationError("Enter the secret.", code="required")
            return ""
        try:
            services.check_secret(secret)
        except ValidationError as exc:
            raise ValidationError(exc.messages) from exc
        return secret


class RouteForm(RowForm[Route]):
    """A route, with its pattern explained."""

    class Meta:
        model = Route
        fields = (
            "name",
            "pattern",
            "provider",
            "upstream_model",
            "priority",
            "weight",
            "sticky",
            "enabled",
            "tags",
            "capabilities",
            "connect_timeout_s",
            "first_byte_timeout_s",
            "gap_timeout_s",
            "total_timeout_s",
            "output_cap",
            "on_disconnect",
            "disconnect_cap",
            "duplicates_allowed",
            *LIMIT_FIELDS,
            "cache_s",
            "cache_price_percent",
            "semantic_threshold",
            "compact_percent",
            "compress",
        )
        help_texts = {"pattern": PATTERN_HELP}

    def clean(self) -> dict[str, Any]:
        """The whole cannot be shorter than its part."""
        super().clean()
        _check_times(self)
        return self.cleaned_data


class GatewaySettingsForm(RowForm[GatewaySettings]):
    """The one settings row."""

    class Meta:
        model = GatewaySettings
        exclude = ()

    def clean(self) -> dict[str, Any]:
        """The whole cannot be shorter than its part."""
        super().clean()
        _check_times(self)
        return self.cleaned_data


def _check_times(form: RowForm[Any]) -> None:
    names = ("connect_timeout_s", "first_byte_timeout_s", "total_timeout_s")
    if problem := validation.times_problem(*map(form.cleaned_data.get, names)):
        form.add_error("total_timeout_s", problem)
