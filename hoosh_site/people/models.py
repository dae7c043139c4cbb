"""What is stored about people beside Django's users and groups. Secrets are sealed or only their digests are kept."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class RoleOffer(models.Model):
    """A permission a role's group was given once; see `hoosh_site.people.groups`."""

    role = models.CharField(max_length=32)
    permission = models.CharField(max_length=200)

    class Meta:
        default_permissions = ()
        constraints = (models.UniqueConstraint(fields=("role", "permission"), name="role_offered_once"),)

    def __str__(self) -> str:
        return f"{self.role} {self.permission}"


class SecondFactor(models.Model):
    """A user's authenticator app. Counts from `confirmed_at` on; until then it is only being set up."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="second_factor")
    secret = models.TextField(editable=False)  # sealed by the vault
    confirmed_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_step = models.BigIntegerField(default=0, editable=False)  # a code of this step of 30 s or before is used up
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = "second factor"
        permissions = (("manage_admins", "Can manage administrators, groups and single permissions"),)

    def __str__(self) -> str:
        return f"second factor of {self.user}"


class RecoveryCode(models.Model):
    """A code that opens one sign-in without the authenticator app. Only its digest is stored."""

    factor = models.ForeignKey(SecondFactor, on_delete=models.CASCADE, related_name="recovery_codes")
    digest = models.CharField(max_length=64)
    used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        default_permissions = ()
        constraints = (models.UniqueConstraint(fields=("factor", "digest"), name="recovery_code_once"),)

    def __str__(self) -> str:
        return f"recovery code {self.pk}"


class SignInFailure(models.Model):
    """How many sign-ins failed of late for one name, one address, or one name from one address."""

    name = models.CharField(max_length=150, blank=True, db_index=True)  # as typed, in small letters
    address = models.CharField(max_length=64, blank=True, db_index=True)
    attempts = models.PositiveIntegerField(default=0)
    since = models.DateTimeField(db_index=True)
    locked_until = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("-since",)
        verbose_name = "failed sign-in"
        constraints = (models.UniqueConstraint(fields=("name", "address"), name="sign_in_failure_once"),)

    def __str__(self) -> str:
        return " from ".join(part for part in (self.name, self.address) if part)


class ExternalIdentity(models.Model):
    """A user as an identity provider knows them. The pair of issuer and subject never means anybody else."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="external_identity")
    issuer = models.CharField(max_length=250)
    subject = models.CharField(max_length=250)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = "external identity"
        verbose_name_plural = "external identities"
        constraints = (models.UniqueConstraint(fields=("issuer", "subject"), name="external_identity_once"),)

    def __str__(self) -> str:
        return f"{self.user} at {self.issuer}"


class TeamLead(models.Model):
    """Somebody who looks after a team's agents and keys on the team page, with or without access to admin."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="teams_led")
    team = models.ForeignKey("budgets.Team", on_delete=models.CASCADE, related_name="leads")

    class Meta:
        ordering = ("team__name", "user__username")
        verbose_name = "team lead"
        constraints = (models.UniqueConstraint(fields=("user", "team"), name="team_lead_once"),)

    def __str__(self) -> str:
        return f"{self.user} leads {self.team}"
