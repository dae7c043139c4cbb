"""Rows an operator edits to say who answers: providers, credentials, routes, policies, model cards, settings.

Workers never read these tables. `providers.publish` turns them into a `ConfigVersion` document; the document is
what runs. All writes that matter go through `providers.publish` and `providers.vault`.
"""

from __future__ import annotations

from providers.models.card import ModelCard, OwnCards
from providers.models.fields import (
    AddressClass,
    DisconnectPolicy,
    Strategy,
    UnknownPrice,
    UnsupportedParams,
    default_seconds,
    kind_choices,
    limit,
    seconds,
)
from providers.models.privacy import AnswerAction, DataPattern, Level, PrivacyAction, PrivacyPolicy
from providers.models.provider import ClientCertificate, Credential, Provider, ProviderProbe
from providers.models.route import Route, RoutingPolicy
from providers.models.settings import GatewaySettings
from providers.models.version import ConfigVersion, DraftChange, ImportState, ScheduledPublication, Sequence

__all__ = [
    "AddressClass",
    "AnswerAction",
    "ClientCertificate",
    "ConfigVersion",
    "Credential",
    "DataPattern",
    "DisconnectPolicy",
    "DraftChange",
    "GatewaySettings",
    "ImportState",
    "Level",
    "ModelCard",
    "OwnCards",
    "PrivacyAction",
    "PrivacyPolicy",
    "Provider",
    "ProviderProbe",
    "Route",
    "RoutingPolicy",
    "ScheduledPublication",
    "Sequence",
    "Strategy",
    "UnknownPrice",
    "UnsupportedParams",
    "default_seconds",
    "kind_choices",
    "limit",
    "seconds",
]
