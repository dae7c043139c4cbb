"""What control reads beside the configuration document, to push it to workers. Reads only, few queries each."""

from __future__ import annotations

from providers import sequences, validation
from providers.config import CardDoc
from providers.models import ClientCertificate, Credential, ModelCard, ProviderProbe, Sequence


def sequences_now() -> dict[str, int]:
    """All change counters by name ("config", "secrets", "cards"); a missing one stands at 0."""
    names = (sequences.CONFIG, sequences.SECRETS, sequences.CARDS)
    return dict.fromkeys(names, 0) | dict(Sequence.objects.filter(name__in=names).values_list("name", "value"))


def secrets() -> dict[int, str]:
    """Ciphertexts of all enabled credentials by id, and of client certificates by the negative id of their provider
    (`ProviderDoc.client_id`). A disabled credential stops even while publishing is impossible."""
    credentials = Credential.objects.filter(enabled=True).exclude(ciphertext="").values_list("id", "ciphertext")
    clients = ClientCertificate.objects.values_list("provider_id", "ciphertext")
    return dict(credentials) | {-provider_id: ciphertext for provider_id, ciphertext in clients}


def cards() -> tuple[int, list[CardDoc]]:
    """The "cards" counter and all model cards. Read in that order: a later change moves the counter again."""
    number = sequences.current(sequences.CARDS)
    return number, [
        CardDoc(
            pattern=row.pattern,
            context_tokens=row.context_tokens,
            max_output_tokens=row.max_output_tokens,
            min_bytes_per_token=row.min_bytes_per_token,
            capabilities=validation.split(row.capabilities),
            display_name=row.display_name,
            imported=row.is_imported,
        )
        for row in ModelCard.every.order_by("source", "id")  # own cards first
    ]


def discovered() -> dict[int, list[str]]:
    """Model names that enabled providers listed when they were last looked at, by provider id."""
    probes = ProviderProbe.objects.filter(provider__enabled=True).values_list("provider_id", "models")
    return {provider_id: [name for name in names if isinstance(name, str)] for provider_id, names in probes if names}
