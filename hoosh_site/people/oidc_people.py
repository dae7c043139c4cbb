"""From what an identity provider says about somebody to a user with the groups it names.

An identity is the pair of issuer and subject, never an e-mail address: who gets somebody else's address does not get
their account. Which of the four roles somebody has is decided anew at each sign-in, where groups are mapped at all.
"""

from __future__ import annotations

import re
from typing import Any

from django.conf import settings
from django.contrib.auth.models import Group, User
from django.db import IntegrityError, transaction

from hoosh_site.people import noting, roles
from hoosh_site.people.models import ExternalIdentity
from hoosh_site.people.oidc import OidcError
from hoosh_site.people.signing_in import leads

ACTOR = "identity provider"
_UNUSABLE = re.compile(r"[^\w.@+-]")
_NAME_LIMIT = 150


def user_of(claims: dict[str, Any]) -> User:
    """The user these claims are about, made at the first sign-in. Raises `OidcError` with the reason for nobody."""
    _check_domain(claims)
    mapped = settings.HOOSH_OIDC_GROUPS
    wanted = _roles(claims) if mapped else set()
    issuer, subject = settings.HOOSH_OIDC_ISSUER, claims["sub"]
    with transaction.atomic():
        known = ExternalIdentity.objects.select_related("user").filter(issuer=issuer, subject=subject).first()
        if known is None and mapped and not wanted:
            raise OidcError("none of the person's groups has a role here")
        user = known.user if known is not None else _made(claims)
        if mapped:
            _set_roles(user, wanted)
    if not user.is_active:
        raise OidcError(f"the account {user.get_username()} is disabled")
    if not user.is_staff and not leads(user):
        raise OidcError(f"the account {user.get_username()} has no role yet")
    return user


def _check_domain(claims: dict[str, Any]) -> None:
    domains = settings.HOOSH_OIDC_DOMAINS
    if not domains:
        return
    email = claims.get("email")
    if not isinstance(email, str) or claims.get("email_verified") is not True:
        raise OidcError("the provider vouches for no e-mail address, and only some domains may sign in")
    if email.rpartition("@")[2].lower() not in {domain.lower() for domain in domains}:
        raise OidcError("the e-mail address is of a domain that may not sign in")


def _roles(claims: dict[str, Any]) -> set[str]:
    """The roles of the person's groups."""
    found = claims.get(settings.HOOSH_OIDC_GROUPS_CLAIM)
    names = {found} if isinstance(found, str) else {each for each in found or () if isinstance(each, str)}
    return {role for role, group in settings.HOOSH_OIDC_GROUPS if group in names}


def _made(claims: dict[str, Any]) -> User:
    verified = claims.get("email") if claims.get("email_verified") is True else None
    wanted = next(each for each in (verified, claims.get("preferred_username"), claims["sub"]) if isinstance(each, str))
    name = _UNUSABLE.sub("-", wanted)[:_NAME_LIMIT]
    try:
        with transaction.atomic():
            user = User.objects.create_user(name, email=verified or "")
    except IntegrityError:
        raise OidcError(f"an account {name} exists already; have somebody rename it") from None
    ExternalIdentity.objects.create(user=user, issuer=settings.HOOSH_OIDC_ISSUER, subject=claims["sub"])
    noting.note(user, "created", actor=ACTOR, data={"issuer": settings.HOOSH_OIDC_ISSUER})
    return user


def _set_roles(user: User, wanted: set[str]) -> None:
    """Exactly these of the four roles; groups beside them stay as they are."""
    has = set(user.groups.filter(name__in=roles.ROLES).values_list("name", flat=True))
    user.groups.add(*Group.objects.filter(name__in=wanted - has))
    user.groups.remove(*Group.objects.filter(name__in=has - wanted))
    is_staff = bool(wanted)
    if has != wanted or user.is_staff != is_staff:
        user.is_staff = is_staff
        user.save(update_fields=["is_staff"])
        groups = {"added": sorted(wanted - has), "removed": sorted(has - wanted)}
        noting.note(user, "changed", actor=ACTOR, data={"groups": groups})
