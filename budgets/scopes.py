"""What a key's scopes stand for, and who may give them. Pure.

Nobody makes a key that can do more than they can themselves: the scope of operators is given by who has the permission
for that; the scope "admin", which may do what the admin pages do, by who also has every permission it carries.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

OPERATOR, ADMIN = "operator", "admin"
PRIVILEGED = (OPERATOR, ADMIN)
OF_LEADS = frozenset({"inference", "routes"})  # what team leads may hand on; every other scope is more than they have
GIVE = "budgets.give_operator_scope"


def _of(app: str, verbs: Iterable[str], *models: str) -> frozenset[str]:
    return frozenset(f"{app}.{verb}_{model}" for verb in verbs for model in models)


_ALL = ("view", "add", "change", "delete")
# Django's permissions that a key with the scope "admin" has. People and what they may do are not among them: a key
# must not be able to make itself a person.
ADMIN_PERMISSIONS = (
    _of("providers", _ALL, "provider", "credential", "route", "routingpolicy", "privacypolicy", "datapattern")
    | _of("providers", _ALL, "modelcard")
    | _of("providers", ("view", "change"), "gatewaysettings")
    | _of("providers", ("view",), "configversion")
    | _of("budgets", _ALL, "team", "agent", "pool", "warmquestion")
    | _of("budgets", ("view", "add", "change"), "apikey")
    | _of("budgets", ("view", "add"), "price")
    | _of("budgets", ("view", "change"), "poolwindow")
    | _of("budgets", ("view",), "usage", "poolalert", "anomaly", "ledgerentry", "ledgerorder", "lease", "reservation")
    | _of("events", _ALL, "webhook")
    | _of("events", ("view",), "event")
    | _of("budgets", ("change",), "anomaly")
    | _of("audit", ("view",), "auditentry", "outboxentry")
    | {GIVE}
)


def not_to_give(has_perm: Callable[[str], bool], scopes: Collection[str]) -> str:
    """The first of the scopes that whoever has these permissions may not give to a key; "" = all may be given."""
    if OPERATOR in scopes and not has_perm(GIVE):
        return OPERATOR
    if ADMIN in scopes and not (has_perm(GIVE) and all(has_perm(name) for name in ADMIN_PERMISSIONS)):
        return ADMIN
    return ""


def refusal(scope: str) -> str:
    """Why a scope is not given, for whoever asked."""
    return f"You may not give a key the scope “{scope}”, nor change one that has it."
