"""How people sign in, and what team leads look after. No key may see or change any of it."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from rest_framework import serializers
from rest_framework.request import Request

from budgets.models import Team
from gateway.api.authentication import caller_of
from gateway.errors import ForbiddenError
from hoosh_site.management_api.fields import Named, RowSerializer
from hoosh_site.management_api.paging import Filter
from hoosh_site.management_api.people import Accounts
from hoosh_site.management_api.rows import Rows
from hoosh_site.people import administrators, factors, lockout, noting
from hoosh_site.people.models import ExternalIdentity, SecondFactor, SignInFailure, TeamLead

_USER = {"user": Filter("user__username", about="The user's name.")}


class LeadSerializer(RowSerializer):
    """Somebody who looks after a team on the team page."""

    user = Named(queryset=User.objects.all(), slug_field="username", help_text="The user's name.")
    team = Named(queryset=Team.objects.all(), help_text="The team's name.")

    class Meta:
        model = TeamLead
        fields = ("id", "user", "team")
        read_only_fields = ("id",)


class TeamLeads(Accounts):
    """Who looks after which team."""

    label = "people.teamlead"
    serializer_class = LeadSerializer
    queryset = TeamLead.objects.select_related("user", "team")
    filters = {**_USER, "team": Filter("team__name", about="The team's name.")}

    def judge(self, before: Any, values: dict[str, Any], lists: dict[str, Any]) -> None:
        """Whoever may change leads may make anybody one."""


class FactorSerializer(serializers.ModelSerializer[SecondFactor]):
    """That somebody has a second factor. Its secret is told to nobody."""

    user = serializers.CharField(source="user.username")

    class Meta:
        model = SecondFactor
        fields = ("id", "user", "confirmed_at", "created_at")


class SecondFactors(Rows):
    """Who has a second factor; deleting one resets it."""

    label = "people.secondfactor"
    serializer_class = FactorSerializer
    queryset = SecondFactor.objects.select_related("user")
    filters = _USER

    def erase(self, row: SecondFactor, actor: str) -> None:
        """They sign in without one until they set up another. Those of administrators are administrators' to reset."""
        if not administrators.may_touch(_person(self.request), row.user):
            raise ForbiddenError("The second factors of administrators are administrators' to reset.")
        factors.remove(row, actor=actor)


class FailureSerializer(serializers.ModelSerializer[SignInFailure]):
    """How many sign-ins failed of late for a name, an address, or a name from an address."""

    class Meta:
        model = SignInFailure
        fields = ("id", "name", "address", "attempts", "since", "locked_until")


class FailedSignIns(Rows):
    """Failed sign-ins of late; deleting a row unlocks."""

    label = "people.signinfailure"
    serializer_class = FailureSerializer
    queryset = SignInFailure.objects.all()
    filters = {name: Filter(name) for name in ("name", "address")}

    def erase(self, row: SignInFailure, actor: str) -> None:
        """Forget what was counted."""
        lockout.forget(row, actor=actor)


class IdentitySerializer(serializers.ModelSerializer[ExternalIdentity]):
    """A user as an identity provider knows them."""

    user = serializers.CharField(source="user.username")

    class Meta:
        model = ExternalIdentity
        fields = ("id", "user", "issuer", "subject", "created_at")


class ExternalIdentities(Rows):
    """Whom the identity provider knows; behind a deletion the next sign-in makes a new account."""

    label = "people.externalidentity"
    serializer_class = IdentitySerializer
    queryset = ExternalIdentity.objects.select_related("user")
    filters = _USER

    def erase(self, row: ExternalIdentity, actor: str) -> None:
        """Forget whom it stands for."""
        noting.note(row, "deleted", actor=actor)
        row.delete()


def _person(request: Request) -> Any:
    return caller_of(request).user
