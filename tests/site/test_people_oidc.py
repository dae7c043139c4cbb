"""Signing in by an identity provider, against one that runs on loopback and can be wrong in many ways."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.test import override_settings

from audit.models import OutboxEntry
from budgets import access
from hoosh_site.checks import check_settings
from hoosh_site.people import factors
from hoosh_site.people.models import ExternalIdentity, TeamLead
from hoosh_site.settings import _oidc_groups
from tests.admin_case import AdminTestCase
from tests.oidc_provider import CLIENT, SECRET, OidcProvider
from tests.site.people_case import is_in

pytestmark = pytest.mark.database

BROWSER = httpx.Client()
GROUPS = [("viewer", "watchers"), ("operator", "sre"), ("admin", "platform")]


class ProviderCase(AdminTestCase):
    def setUp(self) -> None:
        self.provider = self.enterContext(OidcProvider())
        self.provider.claims["groups"] = ["sre", "others"]
        self.settings_in_force(
            HOOSH_OIDC_ISSUER=self.provider.issuer,
            HOOSH_OIDC_CLIENT_ID=CLIENT,
            HOOSH_OIDC_CLIENT_SECRET=SECRET,
            HOOSH_OIDC_GROUPS=GROUPS,
            HOOSH_OIDC_NAME="Example",
        )

    def settings_in_force(self, **values: Any) -> None:
        self.enterContext(override_settings(**values))

    def leave(self, wanted: str = "") -> str:
        """To the provider and back: the callback's address with its query."""
        away = self.client.get("/account/oidc/", {"next": wanted})
        assert away.status_code == 302
        back = BROWSER.get(away.headers["location"]).headers["location"]
        assert back.startswith("http://testserver/account/oidc/callback/?")
        return back.removeprefix("http://testserver")

    def sign_in(self, wanted: str = "") -> HttpResponse:
        return self.client.get(self.leave(wanted))

    def refused(self, response: HttpResponse) -> str:
        """The recorded reason of a refusal that tells the person nothing."""
        assert response.headers["location"] == "/admin/login/"
        assert not is_in(self.client)
        entry = OutboxEntry.objects.filter(action="operator.sign_in_refused").order_by("-id")[0]
        assert "Signing in did not work" in self.client.get("/admin/login/").content.decode()
        return str(entry.data["reason"])


class SignInTest(ProviderCase):
    def test_the_form_offers_it_and_the_person_comes_in_with_the_role_of_their_group(self):
        html = self.clean_html(self.client.get("/admin/login/?next=/admin/costs/"))
        assert "Sign in with Example" in html
        response = self.sign_in("/admin/providers/provider/")
        assert response.headers["location"] == "/admin/providers/provider/"
        assert self.client.get("/admin/providers/provider/").status_code == 200
        eve = User.objects.get(username="eve@example.org")
        assert (eve.is_staff, eve.is_superuser, eve.has_usable_password()) == (True, False, False)
        assert set(eve.groups.values_list("name", flat=True)) == {"operator"}
        identity = ExternalIdentity.objects.get()
        assert (identity.user, identity.issuer, identity.subject) == (eve, self.provider.issuer, "u-1")
        told = [(entry.action, entry.actor) for entry in OutboxEntry.objects.order_by("id")]
        made = [("user.created", "identity provider"), ("user.changed", "identity provider")]
        assert told == [*made, ("operator.signed_in", "eve@example.org")]
        assert OutboxEntry.objects.latest("id").data["with"] == "identity provider"

    def test_the_cookie_is_for_these_pages_only_and_gone_afterwards(self):
        self.client.get("/account/oidc/")
        cookie = self.client.cookies["hoosh_oidc"]
        assert (cookie["path"], cookie["httponly"], cookie["samesite"]) == ("/account/oidc/", True, "Lax")
        self.sign_in()
        assert self.client.cookies["hoosh_oidc"].value == ""

    def test_the_same_person_is_the_same_user_whatever_their_address_became(self):
        self.sign_in()
        self.provider.claims["email"] = "new@example.org"
        self.sign_in()
        assert ExternalIdentity.objects.get().user.username == "eve@example.org"

    def test_somebody_with_another_ones_address_does_not_get_their_account(self):
        User.objects.create_superuser("eve@example.org", "eve@example.org", "pw")
        assert "exists already" in self.refused(self.sign_in())
        assert not ExternalIdentity.objects.exists()

    def test_roles_follow_the_groups_at_each_sign_in(self):
        self.sign_in()
        eve = ExternalIdentity.objects.get().user
        self.provider.claims["groups"] = ["watchers"]
        self.sign_in()
        assert set(eve.groups.values_list("name", flat=True)) == {"viewer"}
        self.client.logout()
        self.provider.claims["groups"] = []
        assert "no role" in self.refused(self.sign_in())
        eve.refresh_from_db()
        assert (eve.is_staff, eve.groups.count()) == (False, 0)

    def test_nobody_is_made_of_whom_no_group_has_a_role(self):
        self.provider.claims["groups"] = ["others"]
        before = User.objects.count()
        assert "none of the person's groups" in self.refused(self.sign_in())
        assert User.objects.count() == before

    def test_groups_and_address_may_come_with_the_user_information(self):
        self.provider.in_user_info = {"groups": "platform", "email": "eve@example.org", "email_verified": True}
        del self.provider.claims["groups"], self.provider.claims["email"]
        self.sign_in()
        eve = User.objects.get(username="eve@example.org")
        assert set(eve.groups.values_list("name", flat=True)) == {"admin"}

    def test_without_mapped_groups_somebody_here_gives_the_role(self):
        self.settings_in_force(HOOSH_OIDC_GROUPS=[])
        assert "has no role yet" in self.refused(self.sign_in())
        User.objects.filter(username="eve@example.org").update(is_staff=True)
        assert self.sign_in().headers["location"] == "/admin/"

    def test_a_team_lead_comes_to_their_team(self):
        self.settings_in_force(HOOSH_OIDC_GROUPS=[])
        self.sign_in()
        team = access.agent_named("Research", "notebook", actor="ada").team
        TeamLead.objects.create(user=ExternalIdentity.objects.get().user, team=team)
        assert self.sign_in().headers["location"] == "/team/"

    def test_a_disabled_account_stays_out(self):
        self.sign_in()
        self.client.logout()
        User.objects.filter(username="eve@example.org").update(is_active=False)
        assert "is disabled" in self.refused(self.sign_in())

    def test_only_addresses_of_these_domains_and_only_verified_ones(self):
        self.settings_in_force(HOOSH_OIDC_DOMAINS=["example.org"])
        for claims, why in (
            ({"email": "eve@evil.example"}, "of a domain"),
            ({"email": "eve@sub.example.org"}, "of a domain"),
            ({"email_verified": False}, "vouches for no"),
            ({"email_verified": "true"}, "vouches for no"),
            ({"email": None}, "vouches for no"),
        ):
            kept = dict(self.provider.claims)
            self.provider.claims |= claims
            assert why in self.refused(self.sign_in())
            self.provider.claims = kept
        assert self.sign_in().headers["location"] == "/admin/"

    def test_an_unverified_address_is_nobodys_name(self):
        self.provider.claims["email_verified"] = False
        self.sign_in()
        user = ExternalIdentity.objects.get().user
        assert (user.username, user.email) == ("u-1", "")

    def test_the_way_on_stays_here(self):
        for wanted in ("https://evil.example/", "//evil.example/", "javascript:alert(1)"):
            assert self.sign_in(wanted).headers["location"] == "/admin/"
            self.client.logout()

    @override_settings(HOOSH_REQUIRE_SECOND_FACTOR=True)
    def test_the_second_factor_is_the_providers_business(self):
        self.sign_in()
        assert self.client.get("/admin/").status_code == 200
        assert factors.confirmed(ExternalIdentity.objects.get().user) is None

    def test_a_new_key_of_the_provider_is_read(self):
        self.sign_in()
        self.client.logout()
        self.provider.rotate()
        assert self.sign_in().headers["location"] == "/admin/"

    def test_what_was_read_of_the_provider_is_kept_for_a_while(self):
        self.sign_in()
        self.sign_in()
        assert self.provider.asked.count("/.well-known/openid-configuration") == 1


class WrongTest(ProviderCase):
    def test_a_provider_that_is_wrong_opens_nothing(self):
        for fault, why in (
            ("denied", "refused"),
            ("state of another", "state"),
            ("iss of another", "another issuer"),
            ("token of another issuer", "does not count"),
            ("token for another client", "does not count"),
            ("token for several", "somebody else"),
            ("token issued to another", "somebody else"),
            ("token with another nonce", "does not count"),
            ("token without a nonce", "does not count"),
            ("token that has expired", "does not count"),
            ("token of the future", "does not count"),
            ("token without a signature", "does not count"),
            ("token signed with the client's secret", "does not count"),
            ("token signed by another", "does not count"),
        ):
            self.provider.fault = fault
            assert why in self.refused(self.sign_in()), fault
        self.provider.fault = ""
        assert self.sign_in().headers["location"] == "/admin/"

    def test_user_information_about_somebody_else_opens_nothing(self):
        self.provider.fault = "user info of another"
        del self.provider.claims["groups"]
        self.provider.in_user_info = {"groups": ["platform"]}
        assert "about somebody else" in self.refused(self.sign_in())

    def test_a_provider_that_calls_itself_otherwise_or_wants_secrets_in_clear_is_not_asked(self):
        for fault, why in (("issuer of another", "calls itself"), ("token endpoint in clear", "not https")):
            self.provider.fault = fault
            assert why in self.refused(self.client.get("/account/oidc/"))
        assert "/authorize" not in self.provider.asked

    def test_an_answer_counts_once(self):
        back = self.leave()
        assert self.client.get(back).headers["location"] == "/admin/"
        self.client.logout()
        assert "did not begin" in self.refused(self.client.get(back))

    def test_an_answer_in_another_browser_opens_nothing(self):
        back = self.leave()
        self.client.cookies.clear()
        assert "did not begin" in self.refused(self.client.get(back))

    def test_an_answer_to_another_beginning_opens_nothing(self):
        back = self.leave()
        self.leave()
        assert "state" in self.refused(self.client.get(back))

    def test_a_code_with_another_verifier_gets_nothing(self):
        query = parse_qs(urlsplit(self.leave()).query)
        away = self.client.get("/account/oidc/").headers["location"]
        state = parse_qs(urlsplit(away).query)["state"][0]
        back = self.client.get("/account/oidc/callback/", {"code": query["code"][0], "state": state})
        assert "answered 400" in self.refused(back)

    def test_a_provider_that_is_away_says_so_in_the_log_only(self):
        self.settings_in_force(HOOSH_OIDC_ISSUER="http://127.0.0.1:9/nobody")
        assert "cannot be reached" in self.refused(self.client.get("/account/oidc/"))

    def test_the_pages_are_not_there_without_a_provider(self):
        self.settings_in_force(HOOSH_OIDC_ISSUER="")
        assert self.client.get("/account/oidc/").status_code == 404
        assert self.client.get("/account/oidc/callback/").status_code == 404
        assert "Sign in with" not in self.client.get("/admin/login/").content.decode()


@pytest.mark.parametrize(
    ("issuer", "client", "said"),
    [
        ("http://idp.example.org", "x", "https:// address"),
        ("https://idp.example.org", "", "only one is set"),
        ("", "x", "only one is set"),
    ],
)
def test_settings_that_make_no_sense_are_findings(issuer, client, said):
    with override_settings(HOOSH_OIDC_ISSUER=issuer, HOOSH_OIDC_CLIENT_ID=client):
        (found,) = check_settings(None)
        assert found.id == "hoosh.E011"
        assert said in found.msg
    with override_settings(HOOSH_OIDC_ISSUER="https://idp.example.org", HOOSH_OIDC_CLIENT_ID="x"):
        assert check_settings(None) == []


@pytest.mark.parametrize("written", ["boss=all", "viewer=", "viewer", "=all"])
def test_groups_that_cannot_be_read_stop_everything(written, monkeypatch):
    monkeypatch.setenv("HOOSH_OIDC_GROUPS", f"admin=platform, {written}")
    with pytest.raises(ImproperlyConfigured, match="Write role=group"):
        _oidc_groups()
