"""What requests and answers are looked through for, and what then happens."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.db import models

from providers import validation
from providers.privacy.about import ABOUT
from providers.privacy.patterns import compile_error


class Level(models.TextChoices):
    """How private something is."""

    PUBLIC = "public", "Public"
    INTERNAL = "internal", "Internal"
    CONFIDENTIAL = "confidential", "Confidential"
    RESTRICTED = "restricted", "Restricted"


class PrivacyAction(models.TextChoices):
    """What is done with a request of a level."""

    ALLOW = "allow", "Let it pass"
    REDACT = "redact", "Send placeholders instead, and put the values back into the answer"
    LOCAL = "local", "Only to local providers"
    REFUSE = "refuse", "Refuse it"


class AnswerAction(models.TextChoices):
    """What is done with an answer in which something is found."""

    REDACT = "redact", "Mask it"
    REFUSE = "refuse", "Refuse the answer, or cut the stream"


class DataPattern(models.Model):
    """Something privacy policies look for beside the built-in patterns."""

    name = models.CharField(max_length=64, unique=True, validators=(validation.label_name,))
    source = models.CharField(
        "regular expression", max_length=1000, help_text="As RE2 reads it: no look-around, no back references."
    )
    level = models.CharField(
        max_length=16, choices=[each for each in Level.choices if each[0] != Level.PUBLIC], default=Level.CONFIDENTIAL
    )
    ignore_case = models.BooleanField(default=False)
    enabled = models.BooleanField(default=True)
    note = models.TextField(blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Refuse a name of a built-in pattern, and an expression that cannot be used, in RE2's words."""
        if self.name in ABOUT:
            raise ValidationError({"name": "A built-in pattern has this name."})
        if reason := compile_error(self.source):
            raise ValidationError({"source": reason})


class PrivacyPolicy(models.Model):
    """What of a team's requests may leave, and how."""

    name = models.CharField(max_length=64, unique=True, validators=(validation.name,))
    default_level = models.CharField(
        max_length=16,
        choices=Level.choices,
        default=Level.PUBLIC,
        help_text="Of requests in which nothing graver is found.",
    )
    internal = models.CharField(max_length=16, choices=PrivacyAction.choices, default=PrivacyAction.ALLOW)
    confidential = models.CharField(max_length=16, choices=PrivacyAction.choices, default=PrivacyAction.LOCAL)
    restricted = models.CharField(max_length=16, choices=PrivacyAction.choices, default=PrivacyAction.REFUSE)
    disabled = models.CharField(
        "patterns switched off",
        max_length=1024,
        blank=True,
        validators=(validation.labels,),
        help_text="Names of patterns that are not looked for; comma-separated.",
    )
    redact_local = models.BooleanField(default=False, help_text="Redact also what is sent to local providers only.")
    scan_tool_results = models.BooleanField(default=True, help_text="Look also at what tools have returned.")
    scan_answers = models.BooleanField(default=False, help_text="Look at answers, too. Streams then lag a little.")
    answer_level = models.CharField(
        max_length=16,
        choices=[each for each in Level.choices if each[0] != Level.PUBLIC],
        default=Level.RESTRICTED,
        help_text="From which level on something in an answer counts.",
    )
    answer_action = models.CharField(max_length=16, choices=AnswerAction.choices, default=AnswerAction.REDACT)
    note = models.TextField(blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        ordering = ("name",)
        verbose_name_plural = "privacy policies"

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Refuse to switch off what there is not: a misspelt name would leave its pattern on."""
        known = {*ABOUT, *DataPattern.objects.values_list("name", flat=True)}
        if unknown := [name for name in validation.split(self.disabled) if name not in known]:
            raise ValidationError({"disabled": f"There is no pattern named {', '.join(unknown)}."})
