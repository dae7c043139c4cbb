"""The page for one's own password, for those who cannot open the one in admin. A change of it is recorded."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.forms import PasswordChangeForm
from django.contrib.auth.views import PasswordChangeView
from django.db import transaction
from django.http import HttpResponse
from django.urls import reverse_lazy
from django.utils.decorators import method_decorator

from hoosh_site.people import noting
from hoosh_site.people.pages import frame, person, signed_in


@method_decorator(signed_in, name="dispatch")
class PasswordView(PasswordChangeView):
    """The old password and twice the new one; other sessions of this person end."""

    template_name = "people/password.html"
    success_url = reverse_lazy("people:password")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """With what the frame shows."""
        return {**super().get_context_data(**kwargs), **frame(self.request, "Password")}

    def form_valid(self, form: PasswordChangeForm) -> HttpResponse:
        """Set it, with its entry."""
        user = person(self.request)
        with transaction.atomic():
            noting.note(user, "password_set", actor=user.get_username())
            response = super().form_valid(form)
        messages.success(self.request, "Your password is changed.")
        return response
