"""The shapes of what is asked about costs and of the answers, also for the API's OpenAPI description."""

from __future__ import annotations

from rest_framework import serializers

from gateway.api.fields import TextField, TruthField, WholeNumberField

MAX_TOKENS = 10**9

_MICRO = "Whole millionths of a USD; what is smaller is cut off."
_USD = "Exact, with twelve places."


class EstimateRequest(serializers.Serializer[None]):
    """A request that was not made yet."""

    model = TextField(most=256)
    input_tokens = WholeNumberField(most=MAX_TOKENS, default=0)
    output_tokens = WholeNumberField(most=MAX_TOKENS, default=0)


class EstimateSerializer(serializers.Serializer[None]):
    """What it would cost where it would be sent first. The two amounts are null when nobody knows the price."""

    model = serializers.CharField()
    input_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    provider = serializers.CharField()
    route = serializers.CharField()
    upstream_model = serializers.CharField()
    price = serializers.ChoiceField(choices=("known", "free", "unknown"), help_text="free = a local provider's")
    price_id = serializers.IntegerField(allow_null=True)
    estimated_cost_micro_usd = serializers.IntegerField(allow_null=True, help_text=_MICRO)
    estimated_cost_usd = serializers.CharField(allow_null=True, help_text=_USD)


class RecommendRequest(serializers.Serializer[None]):
    """What a request needs of its model."""

    input_tokens = WholeNumberField(most=MAX_TOKENS, default=0)
    max_output_tokens = WholeNumberField(most=MAX_TOKENS, default=0)
    uses_tools = TruthField(default=False)
    has_vision = TruthField(default=False)
    has_system_prompt = TruthField(default=False)


class RecommendSerializer(serializers.Serializer[None]):
    """The cheapest model that can do it."""

    model = serializers.CharField()
    provider = serializers.CharField()
    route = serializers.CharField()
    tier = serializers.CharField()
    required_tier = serializers.CharField()
    price_id = serializers.IntegerField(allow_null=True)
    estimated_cost_micro_usd = serializers.IntegerField(help_text=_MICRO)
    estimated_cost_usd = serializers.CharField(help_text=_USD)


class CostRecordSerializer(serializers.Serializer[None]):
    """One group. Besides these it has the fields of its dimensions, such as `team` and `team_id`."""

    provider = serializers.CharField(required=False)
    base_url = serializers.CharField(required=False, help_text="For operators only.")
    is_local = serializers.BooleanField(required=False)
    request_count = serializers.IntegerField(help_text="First attempts.")
    attempt_count = serializers.IntegerField(help_text="Upstream calls.")
    error_count = serializers.IntegerField()
    unpriced_count = serializers.IntegerField(help_text="Attempts that used tokens no price was known for.")
    total_input_tokens = serializers.IntegerField()
    total_cached_tokens = serializers.IntegerField(help_text="Part of the input.")
    total_output_tokens = serializers.IntegerField()
    total_cost_micro_usd = serializers.IntegerField(help_text=_MICRO)
    total_cost_usd = serializers.CharField(help_text=_USD)


class PeriodSerializer(serializers.Serializer[None]):
    """The reporting period in force. It begins with a reset."""

    number = serializers.IntegerField()
    since = serializers.DateTimeField(allow_null=True, help_text="null = since the beginning")


class CostsSerializer(serializers.Serializer[None]):
    """Sums over everything that was asked for, and per group."""

    total_requests = serializers.IntegerField()
    total_prompt_tokens = serializers.IntegerField()
    total_completion_tokens = serializers.IntegerField()
    total_cost_micro_usd = serializers.IntegerField(help_text=_MICRO)
    total_cost_usd = serializers.CharField(help_text=_USD)
    unpriced_count = serializers.IntegerField()
    team = serializers.CharField(allow_null=True, help_text="null = all teams")
    group_by = serializers.ListField(child=serializers.CharField())
    period = PeriodSerializer(allow_null=True, help_text="null = all periods")
    records = CostRecordSerializer(many=True)


class ResetSerializer(serializers.Serializer[None]):
    """A new reporting period has begun."""

    status = serializers.ChoiceField(choices=("reset",))
    period = PeriodSerializer()
