"""The two addresses of a sign-in by an identity provider: leaving for it, and coming back."""

from __future__ import annotations

from dataclasses import asdict

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from audit.record import record
from hoosh_site.people import oidc, oidc_people
from hoosh_site.people.session import EXTERNAL
from hoosh_site.people.signing_in import address_of
from hoosh_site.signals import NOBODY

_COOKIE = "hoosh_oidc"
_PATH = "/account/oidc/"
_AGE_S = 600
_BACKEND = "django.contrib.auth.backends.ModelBackend"
_FAILED = "Signing in did not work. Somebody who sees the audit log can tell why."


@never_cache
@require_safe
def begin(request: HttpRequest) -> HttpResponse:
    """Send the browser to the provider; what it must bring back is in a signed cookie of its own."""
    if not oidc.is_on():
        raise Http404("No identity provider is set.")
    try:
        address, begun = oidc.begin(_redirect_uri(request))
    except oidc.OidcError as exc:
        return _refuse(request, str(exc))
    kept = {**asdict(begun), "next": request.GET.get("next", "")[:2000]}
    response = HttpResponseRedirect(address)
    response.set_cookie(
        _COOKIE,
        signing.dumps(kept, salt=_COOKIE),
        max_age=_AGE_S,
        path=_PATH,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",  # it is needed when the provider sends the browser back
    )
    return response


@never_cache
@require_safe
def callback(request: HttpRequest) -> HttpResponse:
    """Sign in whom the provider vouches for."""
    if not oidc.is_on():
        raise Http404("No identity provider is set.")
    try:
        kept = signing.loads(request.COOKIES.get(_COOKIE, ""), salt=_COOKIE, max_age=_AGE_S)
        begun = oidc.Begun(kept["state"], kept["nonce"], kept["verifier"])
    except (signing.BadSignature, KeyError, TypeError):
        return _refuse(request, "this browser did not begin to sign in, or took too long")
    answer = {name: str(value) for name, value in request.GET.items()}
    try:
        user = oidc_people.user_of(oidc.finish(begun, answer, _redirect_uri(request)))
    except oidc.OidcError as exc:
        return _refuse(request, str(exc))
    user.hoosh_factor = EXTERNAL  # type: ignore[attr-defined]  # for the session, see signals
    login(request, user, backend=_BACKEND)
    wanted = str(kept.get("next", ""))
    is_ours = url_has_allowed_host_and_scheme(wanted, {request.get_host()}, require_https=request.is_secure())
    home = reverse("admin:index") if user.is_staff else reverse("people:team")
    return _cleared(HttpResponseRedirect(wanted if is_ours else home))


def _redirect_uri(request: HttpRequest) -> str:
    path = reverse("people:oidc_callback")
    return f"{settings.HOOSH_PUBLIC_URL}{path}" if settings.HOOSH_PUBLIC_URL else request.build_absolute_uri(path)


def _refuse(request: HttpRequest, reason: str) -> HttpResponse:
    """Back to the form. The reason is recorded, and not told to whoever tries."""
    data = {"reason": reason[:300], "with": "identity provider"}
    personal = {"address": address_of(request)}
    record("operator.sign_in_refused", target=NOBODY, about=True, level="warning", data=data, personal=personal)
    messages.error(request, _FAILED)
    return _cleared(HttpResponseRedirect(reverse("admin:login")))


def _cleared(response: HttpResponse) -> HttpResponse:
    response.delete_cookie(_COOKIE, path=_PATH, samesite="Lax")
    return response
