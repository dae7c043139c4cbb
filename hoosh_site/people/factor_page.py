"""The page of one's own second factor: set up, renew the recovery codes, remove."""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.debug import sensitive_post_parameters

from hoosh_site.people import factors, lockout
from hoosh_site.people.models import SecondFactor
from hoosh_site.people.pages import person, show, signed_in
from hoosh_site.people.session import EXTERNAL, FACTOR
from hoosh_site.people.signing_in import address_of
from providers.vault import VaultError

_ISSUER = "Hoosh"
_WRONG = "This code is wrong, or it was used before. Wait for the next one."
_TEMPLATE = "people/second_factor.html"


class CodeForm(forms.Form):
    """One code."""

    code = forms.CharField(
        max_length=32,
        widget=forms.TextInput(attrs={"autocomplete": "one-time-code", "autocapitalize": "off", "spellcheck": "false"}),
    )


@method_decorator(sensitive_post_parameters(), name="dispatch")
@method_decorator(signed_in, name="dispatch")
class SecondFactorView(View):
    """GET shows what there is; POST does what its button says (`do`)."""

    def get(self, request: HttpRequest) -> HttpResponse:
        """The state, and what can be done about it."""
        return _show(request, CodeForm())

    def post(self, request: HttpRequest) -> HttpResponse:
        """Set up, confirm, renew or remove."""
        user = person(request)
        if request.POST.get("do") == "begin":
            factors.begin(user)
            return HttpResponseRedirect(reverse("people:second_factor"))
        form = CodeForm(request.POST)
        factor = SecondFactor.objects.filter(user=user).first()
        if factor is None or not form.is_valid():
            return _show(request, form)
        work = {"confirm": _confirm, "renew": _renew, "remove": _remove}.get(request.POST.get("do", ""))
        if work is None:
            return _show(request, form)
        attempt = lockout.begin(user.get_username(), address_of(request))
        if attempt.locked_until is not None:
            form.add_error(None, "Too many wrong codes. Try again in a while.")
            return _show(request, form, status=429)
        answer = work(request, factor, form.cleaned_data["code"])
        if answer is None:
            attempt.failed()
            form.add_error(None, _WRONG)
            return _show(request, form)
        attempt.succeeded()
        return answer


def _confirm(request: HttpRequest, factor: SecondFactor, code: str) -> HttpResponse | None:
    codes = [] if factor.confirmed_at else factors.confirm(factor, code)
    if not codes:
        return None
    if request.session.get(FACTOR) != EXTERNAL:
        request.session[FACTOR] = factor.pk
    return _show(request, CodeForm(), codes=codes)


def _renew(request: HttpRequest, factor: SecondFactor, code: str) -> HttpResponse | None:
    if not factor.confirmed_at or not factors.accepts(factor, code):
        return None
    return _show(request, CodeForm(), codes=factors.renew_codes(factor))


def _remove(request: HttpRequest, factor: SecondFactor, code: str) -> HttpResponse | None:
    if not factor.confirmed_at or not factors.accepts(factor, code):
        return None
    factors.remove(factor, actor=person(request).get_username())
    if request.session.get(FACTOR) != EXTERNAL:
        request.session.pop(FACTOR, None)
    messages.success(request, "You sign in without a second factor from now on.")
    return HttpResponseRedirect(reverse("people:second_factor"))


def _show(request: HttpRequest, form: CodeForm, status: int = 200, codes: list[str] | None = None) -> HttpResponse:
    factor = SecondFactor.objects.filter(user=person(request)).first()
    context: dict[str, Any] = {
        "form": form,
        "factor": factor,
        "codes": codes,
        "required": settings.HOOSH_REQUIRE_SECOND_FACTOR,
    }
    if factor is not None and factor.confirmed_at:
        context["left"] = factors.codes_left(factor)
    elif factor is not None:
        try:
            context["secret"] = factors.secret_of(factor)
            context["picture"] = factors.picture(factors.address_of(factor, _ISSUER))
        except VaultError:  # the vault's key was replaced meanwhile: begin again
            factor.delete()
            context["factor"] = None
    return show(request, _TEMPLATE, "Second factor", context, status)
