"""The shapes of the audit log's answers, for the API's description."""

from __future__ import annotations

from rest_framework import serializers


class IntegritySerializer(serializers.Serializer[None]):
    """Where an entry is in the tree."""

    version = serializers.CharField()
    leaf = serializers.CharField(help_text="Its leaf hash, hexadecimal.")
    log = serializers.IntegerField(help_text="Number of its month's log.")
    index = serializers.IntegerField(help_text="Its leaf in that log, from 0.")


class AuditedSerializer(serializers.Serializer[None]):
    """One entry. `data` has before and after of a change; numbers in it are texts."""

    id = serializers.IntegerField()
    seq = serializers.IntegerField()
    timestamp = serializers.IntegerField(help_text="Unix milliseconds")
    event = serializers.CharField()
    level = serializers.ChoiceField(choices=("info", "warning", "error", "critical"))
    message = serializers.CharField()
    source = serializers.ChoiceField(choices=("site", "ledger", "usage", "log"))  # type: ignore[assignment]  # a field
    actor = serializers.CharField(help_text='"erased" when the person was.')
    target = serializers.CharField()
    data = serializers.DictField()  # type: ignore[assignment]  # a field, not the property
    provider = serializers.CharField(required=False)
    model = serializers.CharField(required=False)
    integrity = IntegritySerializer()


class FaultSerializer(serializers.Serializer[None]):
    """What is wrong."""

    seq = serializers.IntegerField(help_text="The first entry that shows it.")
    what = serializers.CharField()
    found = serializers.DateTimeField()


class VerifiedSerializer(serializers.Serializer[None]):
    """What `chain_valid` rests on."""

    entries = serializers.IntegerField(help_text="Verified since they were written, from the first on.")
    behind = serializers.IntegerField(help_text="Signed, but not verified yet.")
    checkpoint = serializers.DictField(allow_null=True, help_text="log and size of the newest one")
    last_full_pass = serializers.DateTimeField(allow_null=True, help_text="When all entries were last verified again.")
    last_full_pass_entries = serializers.IntegerField()
    fault = FaultSerializer(allow_null=True)


class AuditSerializer(serializers.Serializer[None]):
    """A page of entries. `count` and `valid` are `total` and `chain_valid` by hoosh's other names."""

    entries = AuditedSerializer(many=True)
    total = serializers.IntegerField(help_text="Entries there are, whatever was asked for.")
    count = serializers.IntegerField()
    chain_valid = serializers.BooleanField()
    valid = serializers.BooleanField()
    verified = VerifiedSerializer()
    next = serializers.IntegerField(allow_null=True, help_text="`before` of the next page.")


class CheckpointSerializer(serializers.Serializer[None]):
    """A signed tree head."""

    log = serializers.CharField()
    size = serializers.IntegerField()
    root = serializers.CharField()  # type: ignore[assignment]  # a field
    at = serializers.DateTimeField()
    note = serializers.CharField()


class BatchSerializer(serializers.Serializer[None]):
    """Where a request is in its settle batch."""

    owner = serializers.CharField()
    number = serializers.CharField()
    count = serializers.CharField()
    index = serializers.CharField()
    path = serializers.ListField(child=serializers.CharField())


class ProofSerializer(serializers.Serializer[None]):
    """A proof file. All its numbers are texts, because it is in canonical form."""

    kind = serializers.ChoiceField(choices=("proof",))
    format = serializers.CharField()
    entry = serializers.CharField(help_text="The entry's body, byte for byte.")
    index = serializers.CharField()
    size = serializers.CharField()
    path = serializers.ListField(child=serializers.CharField())
    checkpoint = serializers.CharField(help_text="The signed note.")
    usage = serializers.CharField(required=False, help_text="The request's record.")
    batch = BatchSerializer(required=False)


class ConsistencySerializer(serializers.Serializer[None]):
    """That one checkpoint continues another."""

    kind = serializers.ChoiceField(choices=("consistency",))
    format = serializers.CharField()
    log = serializers.CharField()
    first = serializers.CharField(help_text="The older checkpoint's signed note.")
    second = serializers.CharField(help_text="The newer one's.")
    path = serializers.ListField(child=serializers.CharField())
