"""Who may do what in admin: the permissions of the four roles, and what each page of its own needs. Pure.

docs/console.md shows the same tables to people; a test compares the two. A role is a Django group of that name, made
by `hoosh_site.people.groups`; operators may change it like any other group.
"""

from __future__ import annotations

from collections.abc import Iterator

VIEWER, OPERATOR, SECURITY, ADMIN = ROLES = ("viewer", "operator", "security", "admin")
VIEW, ADD, CHANGE, DELETE = ACTIONS = ("view", "add", "change", "delete")
_ALL = frozenset(ACTIONS)
_SEE = frozenset({VIEW})

GIVE_OPERATOR_SCOPE = "budgets.give_operator_scope"
MANAGE_ADMINS = "people.manage_admins"
CHANGE_PRIVACY = "providers.change_privacypolicy"

# Model -> what "operator" and "security" may do to its rows. "viewer" may view each of them, "admin" may do everything.
MODELS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "providers.provider": (_ALL, _SEE),
    "providers.route": (_ALL, _SEE),
    "providers.routingpolicy": (_ALL, _SEE),
    "providers.privacypolicy": (_SEE, _ALL),
    "providers.datapattern": (_SEE, _ALL),
    "providers.modelcard": (_ALL, _SEE),
    "providers.gatewaysettings": (_SEE | {CHANGE}, _SEE),
    "providers.configversion": (_SEE, _SEE),
    "budgets.team": (_ALL, _ALL),
    "budgets.agent": (_ALL, _ALL),
    "budgets.apikey": (_SEE | {ADD, CHANGE}, _SEE | {ADD, CHANGE}),
    "budgets.pool": (_ALL, _SEE),
    "budgets.price": (_SEE | {ADD}, _SEE),
    "budgets.usage": (_SEE, _SEE),
    "budgets.poolwindow": (_SEE | {CHANGE}, _SEE),
    "budgets.poolalert": (_SEE, _SEE),
    "budgets.ledgerentry": (_SEE, _SEE),
    "budgets.ledgerorder": (_SEE, _SEE),
    "budgets.lease": (_SEE, _SEE),
    "budgets.reservation": (_SEE, _SEE),
    "budgets.warmquestion": (_ALL, _SEE),
    "budgets.anomaly": (_SEE | {CHANGE}, _SEE | {CHANGE}),
    "events.event": (_SEE, _SEE),
    "events.webhook": (_ALL, _SEE),
    "audit.auditentry": (_SEE, _SEE),
    "audit.outboxentry": (_SEE, _SEE),
    "auth.user": (_SEE, _ALL),
    "auth.group": (_SEE, _SEE),
    "people.teamlead": (_SEE, _ALL),
    "people.secondfactor": (_SEE, _SEE | {DELETE}),
    "people.signinfailure": (_SEE, _SEE | {DELETE}),
    "people.externalidentity": (_SEE, _SEE | {DELETE}),
}

# Permissions that are no model's four -> the roles that have them beside "admin".
OTHERS: dict[str, tuple[str, ...]] = {
    GIVE_OPERATOR_SCOPE: (SECURITY,),
    MANAGE_ADMINS: (),
}


def permissions(role: str) -> frozenset[str]:
    """The permissions of "viewer", "operator" and "security" as "app.codename". "admin" has every one there is."""
    return frozenset(_permissions(role))


def _permissions(role: str) -> Iterator[str]:
    column = {VIEWER: None, OPERATOR: 0, SECURITY: 1}[role]
    for model, actions in MODELS.items():
        app, _, name = model.partition(".")
        for action in _SEE if column is None else actions[column]:
            yield f"{app}.{action}_{name}"
    for permission, roles in OTHERS.items():
        if role in roles:
            yield permission
