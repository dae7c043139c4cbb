"""Rows an operator edits to say who answers: providers, credentials, routes, policies, model cards, settings.

Workers never read these tables. `providers.publish` turns them into a `ConfigVersion` document; the document is
what runs. All writes that matter go through `providers.publish` and `providers.vault`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from providers import validation
from providers.catalog import CATALOG, KIND_CHOICES
from providers.privacy.about import ABOUT
from providers.privacy.patterns import compile_error


def limit(label: str) -> Any:
    """A limit of requests or tokens; blank = none."""
    return models.PositiveIntegerField(
        label,
        null=True,
        blank=True,
        validators=(MinValueValidator(1), MaxValueValidator(validation.RATE_LIMIT)),
        help_text="Blank = no limit.",
    )


def kind_choices() -> tuple[tuple[str, str], ...]:
    """The catalogue's kinds. A function, so that a new catalogue row needs no migration."""
    return KIND_CHOICES


class AddressClass(models.TextChoices):
    """Where a provider's address may resolve to; fixed when the operator saves the URL."""

    LOOPBACK = "loopback", "Loopback (this host)"
    PRIVATE = "private", "Private network"
    PUBLIC = "public", "Public internet"
    UNIX = "unix", "Unix socket"


class Strategy(models.TextChoices):
    """How a policy orders the candidates of a model."""

    PRIORITY = "priority", "Priority: the lowest number first"
    ROUND_ROBIN = "round_robin", "Round robin: each in turn"
    WEIGHTED = "weighted", "Weighted: by chance, in proportion to the weights"
    LOWEST_LATENCY = "lowest_latency", "Lowest latency: who answered fastest of late"
    LEAST_BUSY = "least_busy", "Least busy: fewest calls under way"
    LEAST_COST = "least_cost", "Least cost: the lowest price for the request"
    DIRECT = "direct", "Direct: the first by priority and nobody else"


class DisconnectPolicy(models.TextChoices):
    """What happens upstream when the client leaves mid-answer."""

    CANCEL = "cancel", "Cancel the upstream call"
    DRAIN = "drain", "Read the answer to its end"
    CAP = "cap", "Read on for so many tokens, then cancel"


class UnknownPrice(models.TextChoices):
    """What happens to a request that draws on a money budget when nobody knows its price."""

    REFUSE = "refuse", "Refuse where a pool has a money limit"
    OBSERVE = "observe", "Let it through; it costs nothing and is counted as unpriced"


class UnsupportedParams(models.TextChoices):
    """What becomes of a request with a parameter that its provider cannot honour and that means something."""

    STRICT = "strict", "Refuse it"
    LENIENT = "lenient", "Leave the parameter out and say so in a header"


class Provider(models.Model):
    """An upstream server that speaks one of the catalogue's dialects."""

    name = models.CharField(
        max_length=64,
        unique=True,
        validators=(validation.name,),
        help_text="Short name, shown in headers and reports.",
    )
    kind = models.CharField(max_length=32, choices=kind_choices)
    base_url = models.CharField(
        "base URL",
        max_length=500,
        blank=True,
        help_text="Without /v1 (a pasted one is removed). Blank = the kind's usual address.",
    )
    address_class = models.CharField(
        max_length=16,
        choices=AddressClass.choices,
        editable=False,
        default=AddressClass.PUBLIC,
        help_text="Seen when the URL was saved; connections to any other class are refused.",
    )
    ca_pem = models.TextField(
        "private CA (PEM)",
        blank=True,
        validators=(validation.certificates,),
        help_text="Only these authorities are trusted, if set.",
    )
    pins = models.TextField(
        "certificate pins",
        blank=True,
        validators=(validation.pins,),
        help_text="sha256/…, one per line: the server's certificate, or one above it, must have one of these keys.",
    )
    requests_per_minute = limit("requests per minute")
    tokens_per_minute = limit("tokens per minute")
    concurrent_requests = limit("requests at once")
    enabled = models.BooleanField(default=True)
    note = models.TextField(blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False, help_text="Set on imported rows.")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Pins that could never be looked at must not seem to protect anything."""
        url = self.base_url or (CATALOG[self.kind].base_url if self.kind in CATALOG else "")
        if self.pins and not url.startswith("https://"):
            raise ValidationError({"pins": "Pins need a base URL with https://."})


class Credential(models.Model):
    """A secret for a provider, encrypted, bound to the base URL it was saved with."""

    provider = models.ForeignKey(Provider, on_delete=models.CASCADE, related_name="credentials")
    name = models.CharField(max_length=64, default="default", validators=(validation.name,))
    ciphertext = models.TextField(editable=False, default="")
    last4 = models.CharField(max_length=4, editable=False, default="")
    bound_base_url = models.CharField(max_length=500, editable=False, default="")
    revision = models.PositiveIntegerField(default=1, editable=False)
    position = models.PositiveIntegerField(default=0)
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)
    rotated_at = models.DateTimeField(null=True, blank=True, editable=False)
    used_at = models.DateTimeField(
        null=True, blank=True, editable=False
    )  # last call, to the minute; see providers.uses

    class Meta:
        ordering = ("provider", "position", "id")
        constraints = (models.UniqueConstraint(fields=("provider", "name"), name="credential_name_per_provider"),)

    def __str__(self) -> str:
        return f"{self.provider} / {self.name} (…{self.last4})" if self.last4 else f"{self.provider} / {self.name}"

    @property
    def is_usable(self) -> bool:
        """Whether a secret is stored and was typed for the provider's present base URL."""
        return bool(self.ciphertext) and self.bound_base_url == self.provider.base_url


class ClientCertificate(models.Model):
    """What the gateway shows to a provider that asks for a certificate. The key is encrypted, together with the chain,
    and bound to the base URL it was saved with."""

    provider = models.OneToOneField(Provider, on_delete=models.CASCADE, related_name="client_certificate")
    chain_pem = models.TextField(validators=(validation.certificates,))
    fingerprint = models.CharField(max_length=64, help_text="SHA-256 of the first certificate, hex.")
    ciphertext = models.TextField(editable=False)
    bound_base_url = models.CharField(max_length=500, editable=False)
    rotated_at = models.DateTimeField(editable=False)

    def __str__(self) -> str:
        return f"{self.provider} / {self.fingerprint[:16]}"

    @property
    def is_usable(self) -> bool:
        """Whether the key was saved for the provider's present base URL."""
        return self.bound_base_url == self.provider.base_url


_DAY_S = 86_400


def _seconds(label: str) -> Any:
    return models.FloatField(
        label,
        null=True,
        blank=True,
        validators=(validation.finite, MinValueValidator(0.05), MaxValueValidator(_DAY_S)),
        help_text="Seconds; blank = the gateway's default.",
    )


def _default_seconds(label: str, default: float, least: float, most: float = _DAY_S) -> Any:
    return models.FloatField(
        label,
        default=default,
        validators=(validation.finite, MinValueValidator(least), MaxValueValidator(most)),
        help_text="Seconds.",
    )


class Route(models.Model):
    """One rule: requests for models like `pattern` may go to `provider`."""

    name = models.CharField(max_length=64, unique=True, validators=(validation.name,))
    pattern = models.CharField(
        max_length=256,
        validators=(validation.pattern,),
        help_text="Model name as clients send it; * matches anything.",
    )
    provider = models.ForeignKey(Provider, on_delete=models.CASCADE, related_name="routes")
    upstream_model = models.CharField(
        max_length=256, blank=True, validators=(validation.model_name,), help_text="Blank = the requested name."
    )
    priority = models.IntegerField(default=10, help_text="Lower is tried first.")
    weight = models.PositiveIntegerField(
        default=1,
        validators=(MaxValueValidator(1_000_000),),
        help_text="Its share where a policy weighs routes; 0 = only when the others fail.",
    )
    sticky = models.BooleanField(
        default=False,
        help_text="Keep conversations on this route where the policy leaves a choice, for the provider's prompt cache.",
    )
    tags = models.CharField(max_length=256, blank=True, validators=(validation.labels,), help_text="Comma-separated.")
    capabilities = models.CharField(
        max_length=256,
        blank=True,
        validators=(validation.labels,),
        help_text="Comma-separated; what this route can do.",
    )
    connect_timeout_s = _seconds("connect timeout")
    first_byte_timeout_s = _seconds("first-byte timeout")
    gap_timeout_s = _seconds("gap timeout")
    total_timeout_s = _seconds("total timeout")
    output_cap = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=(MinValueValidator(1),),
        help_text="Most output tokens of an answer on this route; a request that asks for more gets this many.",
    )
    on_disconnect = models.CharField(
        max_length=16,
        choices=DisconnectPolicy.choices,
        default=DisconnectPolicy.CANCEL,
        help_text="What happens upstream when the client leaves in mid-answer. What was read is charged.",
    )
    disconnect_cap = models.PositiveIntegerField(
        "tokens read on",
        default=1024,
        validators=(MinValueValidator(1),),
        help_text="Output tokens read after the client left, at most; only where the policy is to read on for so many.",
    )
    duplicates_allowed = models.BooleanField(
        default=False, help_text="May a request that was already sent be sent again to the next candidate?"
    )
    requests_per_minute = limit("requests per minute")
    tokens_per_minute = limit("tokens per minute")
    concurrent_requests = limit("requests at once")
    cache_s = models.PositiveIntegerField(
        "keep answers for (s)",
        default=0,
        validators=(MaxValueValidator(7 * 86_400),),
        help_text="The same request of the same team gets the same answer again, for nothing. 0 = never.",
    )
    semantic_threshold = models.FloatField(
        "tell them to similar questions from",
        default=0.0,
        validators=(validation.threshold,),
        help_text="Cosine of the questions' vectors from which on they count as the same, 0.5 to 1. 0 = never.",
    )
    compact_percent = models.PositiveIntegerField(
        "shorten conversations above (% of the context)",
        default=0,
        validators=(MaxValueValidator(100),),
        help_text="Older turns of longer conversations are left out, and a header says so. 0 = never.",
    )
    compress = models.BooleanField(
        "compress prompts",
        default=False,
        help_text="Runs of white space become one, but in code blocks and tool arguments; a header says so.",
    )
    enabled = models.BooleanField(default=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("priority", "name")

    def __str__(self) -> str:
        return self.name


class RoutingPolicy(models.Model):
    """How the candidates of some models are ordered, and which models to fall back to."""

    name = models.CharField(max_length=64, unique=True, validators=(validation.name,))
    pattern = models.CharField(max_length=256, default="*", validators=(validation.pattern,))
    strategy = models.CharField(max_length=32, choices=Strategy.choices, default=Strategy.PRIORITY)
    fallbacks = models.CharField(
        max_length=1024,
        blank=True,
        validators=(validation.model_names,),
        help_text="Further model names, comma-separated.",
    )
    tags = models.CharField(
        max_length=256,
        blank=True,
        validators=(validation.labels,),
        help_text="Only routes that have all of these tags; comma-separated.",
    )
    position = models.IntegerField(default=0, help_text="The first matching policy wins.")
    enabled = models.BooleanField(default=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        ordering = ("position", "id")
        verbose_name_plural = "routing policies"

    def __str__(self) -> str:
        return self.name


class OwnCards(models.Manager["ModelCard"]):
    """The cards that operators and their configuration files made."""

    def get_queryset(self) -> models.QuerySet[ModelCard]:
        """Without the imported ones."""
        return super().get_queryset().filter(source="")


class ModelCard(models.Model):
    """What is known of a model: its name, limits and abilities (`providers.cards` says which card counts).

    An imported card has a `source`. It lies under an operator's own cards and is never edited, so that an import can
    follow its list without touching what an operator wrote; `objects` are therefore the own cards, `every` all.
    """

    pattern = models.CharField(
        max_length=256,
        validators=(validation.pattern,),
        help_text="The model's name at the provider; * matches anything.",
    )
    display_name = models.CharField(max_length=100, blank=True, help_text="For people; blank = the model's own name.")
    context_tokens = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=(MinValueValidator(1),),
        help_text="Prompt and answer together, at most. Told to clients and used for advice; not enforced.",
    )
    max_output_tokens = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=(MinValueValidator(1),),
        help_text="The longest answer; used where a request names no limit.",
    )
    min_bytes_per_token = models.FloatField(
        default=1.0,
        validators=(validation.finite, MinValueValidator(0.25), MaxValueValidator(16)),
        help_text="1 is provable for byte-level tokenizers; a higher figure is your assumption and holds less.",
    )
    capabilities = models.CharField(
        max_length=256,
        blank=True,
        validators=(validation.labels,),
        help_text="Labels, comma-separated: tools, vision, …",
    )
    note = models.TextField(blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)
    source = models.CharField(
        max_length=64, blank=True, editable=False, help_text="The list an imported card comes from; blank = your own."
    )

    objects = OwnCards()
    every: ClassVar[models.Manager[ModelCard]] = models.Manager()

    class Meta:
        ordering = ("pattern",)
        constraints = (
            models.UniqueConstraint(
                fields=("pattern",),
                condition=models.Q(source=""),
                name="one_own_card_per_pattern",
                violation_error_message="A card with this pattern already exists.",
            ),
            models.UniqueConstraint(
                fields=("pattern",), condition=~models.Q(source=""), name="one_imported_card_per_pattern"
            ),
        )

    def __str__(self) -> str:
        return self.pattern

    @property
    def is_imported(self) -> bool:
        """Whether an import made this card and follows its list."""
        return bool(self.source)


class Level(models.TextChoices):
    """How private something is."""

    PUBLIC = "public", "Public"
    INTERNAL = "internal", "Internal"
    CONFIDENTIAL = "confidential", "Confidential"
    RESTRICTED = "restricted", "Restricted"


class PrivacyAction(models.TextChoices):
    """What is done with a request of a level."""

    ALLOW = "allow", "Let it pass"
    REDACT = "redact", "Send placeholders instead, and put the values back into the answer"
    LOCAL = "local", "Only to local providers"
    REFUSE = "refuse", "Refuse it"


class AnswerAction(models.TextChoices):
    """What is done with an answer in which something is found."""

    REDACT = "redact", "Mask it"
    REFUSE = "refuse", "Refuse the answer, or cut the stream"


class DataPattern(models.Model):
    """Something privacy policies look for beside the built-in patterns."""

    name = models.CharField(max_length=64, unique=True, validators=(validation.label_name,))
    source = models.CharField(
        "regular expression", max_length=1000, help_text="As RE2 reads it: no look-around, no back references."
    )
    level = models.CharField(
        max_length=16, choices=[each for each in Level.choices if each[0] != Level.PUBLIC], default=Level.CONFIDENTIAL
    )
    ignore_case = models.BooleanField(default=False)
    enabled = models.BooleanField(default=True)
    note = models.TextField(blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Refuse a name of a built-in pattern, and an expression that cannot be used, in RE2's words."""
        if self.name in ABOUT:
            raise ValidationError({"name": "A built-in pattern has this name."})
        if reason := compile_error(self.source):
            raise ValidationError({"source": reason})


class PrivacyPolicy(models.Model):
    """What of a team's requests may leave, and how."""

    name = models.CharField(max_length=64, unique=True, validators=(validation.name,))
    default_level = models.CharField(
        max_length=16,
        choices=Level.choices,
        default=Level.PUBLIC,
        help_text="Of requests in which nothing graver is found.",
    )
    internal = models.CharField(max_length=16, choices=PrivacyAction.choices, default=PrivacyAction.ALLOW)
    confidential = models.CharField(max_length=16, choices=PrivacyAction.choices, default=PrivacyAction.LOCAL)
    restricted = models.CharField(max_length=16, choices=PrivacyAction.choices, default=PrivacyAction.REFUSE)
    disabled = models.CharField(
        "patterns switched off",
        max_length=1024,
        blank=True,
        validators=(validation.labels,),
        help_text="Names of patterns that are not looked for; comma-separated.",
    )
    redact_local = models.BooleanField(default=False, help_text="Redact also what is sent to local providers only.")
    scan_tool_results = models.BooleanField(default=True, help_text="Look also at what tools have returned.")
    scan_answers = models.BooleanField(default=False, help_text="Look at answers, too. Streams then lag a little.")
    answer_level = models.CharField(
        max_length=16,
        choices=[each for each in Level.choices if each[0] != Level.PUBLIC],
        default=Level.RESTRICTED,
        help_text="From which level on something in an answer counts.",
    )
    answer_action = models.CharField(max_length=16, choices=AnswerAction.choices, default=AnswerAction.REDACT)
    note = models.TextField(blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        ordering = ("name",)
        verbose_name_plural = "privacy policies"

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Refuse to switch off what there is not: a misspelt name would leave its pattern on."""
        known = {*ABOUT, *DataPattern.objects.values_list("name", flat=True)}
        if unknown := [name for name in validation.split(self.disabled) if name not in known]:
            raise ValidationError({"disabled": f"There is no pattern named {', '.join(unknown)}."})


class GatewaySettings(models.Model):
    """Behaviour of the whole gateway: exactly one row."""

    strategy = models.CharField(max_length=32, choices=Strategy.choices, default=Strategy.PRIORITY)
    default_output_cap = models.PositiveIntegerField(default=8192, validators=(MinValueValidator(1),))
    body_limit_bytes = models.PositiveIntegerField(
        default=10 * 1024 * 1024, validators=(MinValueValidator(1024), MaxValueValidator(1 << 30))
    )
    body_timeout_s = _default_seconds("body timeout", 30.0, 0.5)
    connect_timeout_s = _default_seconds("connect timeout", 5.0, 0.05)
    first_byte_timeout_s = _default_seconds("first-byte timeout", 120.0, 0.05)
    gap_timeout_s = _default_seconds("gap timeout", 60.0, 0.05)
    total_timeout_s = _default_seconds("total timeout", 600.0, 0.05)
    hold_wait_s = _default_seconds("wait for held tokens", 5.0, 0, most=60)
    max_attempts = models.PositiveIntegerField(default=3, validators=(MinValueValidator(1), MaxValueValidator(10)))
    retry_percent = models.PositiveIntegerField(
        default=20,
        validators=(MaxValueValidator(1000),),
        help_text="Further upstream calls after failures, per hundred requests; 3 a second are always allowed.",
    )
    breaker_failures = models.PositiveIntegerField(default=5, validators=(MinValueValidator(1),))
    breaker_open_s = _default_seconds("circuit open for", 30.0, 0.1)
    probe_interval_s = _default_seconds("probe interval", 30.0, 0)
    ping_interval_s = _default_seconds("ping interval", 15.0, 0)
    unsupported_params = models.CharField(
        "unsupported parameters",
        max_length=16,
        choices=UnsupportedParams.choices,
        default=UnsupportedParams.STRICT,
        help_text="What becomes of a request with a parameter that its provider cannot honour and that matters.",
    )
    cache_mb = models.PositiveIntegerField(
        "memory for kept answers (MiB)", default=64, validators=(MinValueValidator(1), MaxValueValidator(65_536))
    )
    embedding_model = models.CharField(
        "model that embeds questions",
        max_length=256,
        blank=True,
        validators=(validation.model_name,),
        help_text="As clients would name it, for routes that tell answers to similar questions. Blank = the model in "
        "the folder HOOSH_EMBEDDER names.",
    )
    queue_wait_s = _default_seconds("wait for a free place", 10.0, 0, most=600)
    queue_size = models.PositiveIntegerField(
        "requests waiting",
        default=1000,
        validators=(MaxValueValidator(100_000),),
        help_text="At most, per worker, for a place at a route or provider that limits its requests at once.",
    )
    privacy_policy = models.ForeignKey(
        PrivacyPolicy,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="For teams that have none of their own. Blank = nothing is looked at.",
    )
    review = models.BooleanField(
        "review before publishing",
        default=False,
        help_text="What is saved waits as a draft until somebody else than its authors publishes it.",
    )
    drafts = models.BooleanField(
        "publish by hand", default=False, help_text="What is saved waits as a draft until anybody publishes it."
    )
    unknown_price = models.CharField(
        "unknown price",
        max_length=16,
        choices=UnknownPrice.choices,
        default=UnknownPrice.REFUSE,
        help_text="For models without a price row. Local providers are free unless a row prices them.",
    )
    audit_header = models.BooleanField(
        "audit header",
        default=False,
        help_text="Answers carry x-hoosh-audit, the audit log's last checkpoint: callers who keep it are witnesses.",
    )
    cors_origins = models.CharField(
        max_length=1024,
        default="*",
        blank=True,
        validators=(validation.origins,),
        help_text="Comma-separated, or *.",
    )

    class Meta:
        verbose_name = verbose_name_plural = "gateway settings"
        constraints = (models.CheckConstraint(condition=models.Q(pk=1), name="gateway_settings_single_row"),)

    def __str__(self) -> str:
        return "Gateway settings"


class ConfigVersion(models.Model):
    """A published configuration. Insert-only but for `owners`: what ran, who published it and why."""

    number = models.BigAutoField(primary_key=True)
    digest = models.CharField(max_length=64, db_index=True)
    document = models.BinaryField(help_text="providers.config.pack() of the document")
    owners = models.JSONField(default=dict, editable=False)  # which import made which row: providers.owners
    author = models.CharField(max_length=150, blank=True)
    note = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-number",)

    def __str__(self) -> str:
        return f"Version {self.number}"


class DraftChange(models.Model):
    """A change that waits for somebody else to publish it, where the gateway settings ask for that."""

    at = models.DateTimeField(auto_now_add=True)
    author = models.CharField(max_length=150)
    what = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ("id",)

    def __str__(self) -> str:
        return f"{self.author}: {self.what}"


class ScheduledPublication(models.Model):
    """A draft that is to be published at a moment, unless it changed by then."""

    class State(models.TextChoices):
        """What became of it."""

        WAITING = "waiting", "waiting"
        DONE = "done", "published"
        FAILED = "failed", "not published"
        CANCELLED = "cancelled", "cancelled"

    at = models.DateTimeField("publish at", db_index=True)
    author = models.CharField(max_length=150)
    note = models.CharField(max_length=500, blank=True)
    digest = models.CharField(max_length=64, help_text="Of the draft as it was when this was decided.")
    state = models.CharField(max_length=16, choices=State.choices, default=State.WAITING)
    result = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} UTC by {self.author}"


class ProviderProbe(models.Model):
    """What the last look at a provider found: written by control's probes and by "Test connection"."""

    provider = models.OneToOneField(Provider, on_delete=models.CASCADE, related_name="probe")
    ok = models.BooleanField(default=False)
    consecutive_failures = models.PositiveIntegerField(default=0)
    detail = models.CharField(max_length=300, blank=True)
    latency_ms = models.FloatField(null=True, blank=True)
    checked_at = models.DateTimeField(null=True, blank=True)
    answered_at = models.DateTimeField(null=True, blank=True, help_text="When it was last found well.")
    certificates = models.JSONField(
        default=dict, blank=True, help_text="The chain seen last: base_url, seen_at, chain of name, not_after, pin."
    )
    # Last: inside this class body the name hides the module it comes from.
    models = models.JSONField(default=list, blank=True, help_text="Model names the provider listed.")

    def __str__(self) -> str:
        return f"{self.provider}: {'ok' if self.ok else 'down'}"


class Sequence(models.Model):
    """Counters control watches to see that rows outside the configuration document changed ("cards")."""

    name = models.CharField(max_length=32, primary_key=True)
    value = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


class ImportState(models.Model):
    """What was last imported from a file, so that an unchanged file is not imported again. At most one row."""

    fingerprint = models.CharField(max_length=64, help_text="Over the file and the variables and files it names.")
    source = models.CharField(max_length=500, blank=True)
    imported_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = (models.CheckConstraint(condition=models.Q(pk=1), name="import_state_single_row"),)

    def __str__(self) -> str:
        return self.source
