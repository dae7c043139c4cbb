"""The shapes of the control API's answers, for its OpenAPI description."""

from __future__ import annotations

from rest_framework import serializers


class ErrorDetailSerializer(serializers.Serializer[None]):
    """What went wrong."""

    message = serializers.CharField()
    type = serializers.CharField()
    param = serializers.CharField(allow_null=True)
    code = serializers.CharField(allow_null=True)


class ErrorSerializer(serializers.Serializer[None]):
    """Every error reply."""

    error = ErrorDetailSerializer()


class ProviderHealthSerializer(serializers.Serializer[None]):
    """One provider. The fields after `last_check_ms` are for operators only."""

    provider = serializers.CharField()
    status = serializers.ChoiceField(choices=("healthy", "unhealthy", "unknown", "disabled"))
    enabled = serializers.BooleanField()
    healthy = serializers.BooleanField(allow_null=True, help_text="null = not looked at yet")
    consecutive_failures = serializers.IntegerField()
    last_check_ms = serializers.IntegerField(allow_null=True, help_text="Unix time in milliseconds")
    kind = serializers.CharField(required=False)
    base_url = serializers.CharField(required=False)
    address_class = serializers.CharField(required=False)
    detail = serializers.CharField(required=False, help_text="What the last look found wrong; empty when nothing.")
    latency_ms = serializers.FloatField(required=False, allow_null=True)
    models = serializers.ListField(child=serializers.CharField(), required=False)


class WorkerSerializer(serializers.Serializer[None]):
    """One worker process, as it last described itself."""

    index = serializers.IntegerField()
    pid = serializers.IntegerField()
    version = serializers.CharField()
    status = serializers.DictField()
    status_age_s = serializers.FloatField(allow_null=True)


class ProvidersHealthSerializer(serializers.Serializer[None]):
    """All providers, ordered by name."""

    providers = ProviderHealthSerializer(many=True)
    check_interval_secs = serializers.FloatField(help_text="0 = active probes are off")
    workers = WorkerSerializer(many=True, required=False)


class NodeSerializer(serializers.Serializer[None]):
    """One enabled provider."""

    id = serializers.CharField(help_text="Kind and base URL; kind and name for keys without the operator scope")
    provider = serializers.CharField()
    status = serializers.ChoiceField(choices=("online", "suspect", "offline", "unknown"))
    last_beat_ms = serializers.IntegerField(allow_null=True, help_text="When it was last found well, Unix milliseconds")


class HeartbeatSerializer(serializers.Serializer[None]):
    """The fleet. Accelerators are those of the host that control runs on."""

    nodes = NodeSerializer(many=True)
    total_nodes = serializers.IntegerField()
    online = serializers.IntegerField()
    suspect = serializers.IntegerField()
    offline = serializers.IntegerField()
    unknown = serializers.IntegerField()
    suspect_after_secs = serializers.FloatField()
    offline_after_secs = serializers.FloatField()
    total_gpus = serializers.IntegerField()
    total_vram_mb = serializers.IntegerField()
    available_vram_mb = serializers.IntegerField()


class ReloadSerializer(serializers.Serializer[None]):
    """Every worker runs this version."""

    status = serializers.ChoiceField(choices=("reloaded",))
    version = serializers.IntegerField()


class AttemptSerializer(serializers.Serializer[None]):
    """One upstream call of a request."""

    attempt = serializers.IntegerField()
    provider = serializers.CharField(allow_null=True)
    route = serializers.CharField(allow_null=True)
    upstream_model = serializers.CharField()
    status = serializers.IntegerField()
    error = serializers.CharField(allow_null=True)
    input_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField()
    cache_write_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    reasoning_tokens = serializers.IntegerField()
    tokens = serializers.IntegerField(help_text="Charged to the pool.")
    held = serializers.IntegerField(help_text="Held before the call.")
    basis = serializers.CharField(help_text="How the numbers were obtained.")
    cost_usd = serializers.CharField(help_text="Decimal.")
    price_id = serializers.IntegerField(allow_null=True)
    latency_ms = serializers.FloatField()
    ttft_ms = serializers.FloatField(allow_null=True)


class RequestSerializer(serializers.Serializer[None]):
    """One request: what it used, attempt by attempt, and how its route was chosen."""

    id = serializers.CharField()
    client_request_id = serializers.CharField(allow_null=True)
    at = serializers.DateTimeField()
    key_id = serializers.IntegerField()
    agent_id = serializers.IntegerField()
    team_id = serializers.IntegerField()
    pool_id = serializers.IntegerField()
    endpoint = serializers.CharField()
    model = serializers.CharField()
    stream = serializers.BooleanField()
    status = serializers.IntegerField()
    error = serializers.CharField(allow_null=True)
    cached = serializers.BooleanField(help_text="A kept answer: no provider was called.")
    tokens = serializers.IntegerField()
    cost_usd = serializers.CharField()
    config_version = serializers.IntegerField()
    attempts = AttemptSerializer(many=True)
    decision = serializers.JSONField(allow_null=True)
