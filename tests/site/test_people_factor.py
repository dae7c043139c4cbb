"""A second factor: set up, asked for at the sign-in, used up with each code, renewed, removed and reset."""

from __future__ import annotations

import re
from html import unescape
from io import StringIO

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import CommandError, call_command
from django.test import Client, override_settings

from audit.models import OutboxEntry
from hoosh_site.people import factors
from hoosh_site.people.models import RecoveryCode, SecondFactor, TeamLead
from hoosh_site.people.session import FACTOR
from tests.admin_case import AdminTestCase
from tests.site.people_case import actions, code_of, factor_of, is_in, sign_in, with_app

pytestmark = pytest.mark.database

PAGE = "/account/second-factor/"


class SetUpTest(AdminTestCase):
    def test_the_page_leads_from_the_button_over_the_picture_to_the_recovery_codes(self):
        assert "None is set up" in self.client.get(PAGE).content.decode()
        assert self.client.post(PAGE, {"do": "begin"}).status_code == 302
        html = self.clean_html(self.client.get(PAGE))
        assert "<svg" in html
        secret = re.search(r'id="hoosh-secret">([A-Z2-7]{32})<', html)[1]
        assert not factors.confirmed(self.ada)
        wrong = self.client.post(PAGE, {"do": "confirm", "code": "000000"})
        assert "This code is wrong" in wrong.content.decode()
        html = self.clean_html(self.client.post(PAGE, {"do": "confirm", "code": code_of(secret)}))
        codes = re.search(r'id="hoosh-codes">([^<]*)<', html)[1].split()
        assert len(codes) == 10
        assert all(re.fullmatch(r"([A-Z2-7]{4}-){3}[A-Z2-7]{4}", code) for code in codes)
        assert self.client.session[FACTOR] == factors.confirmed(self.ada).pk
        html = self.client.get(PAGE).content.decode()
        assert secret not in html
        assert codes[0] not in html
        assert actions("user.second_factor") == ["user.second_factor_set"]

    def test_neither_secret_nor_codes_are_stored_in_clear(self):
        secret, codes = with_app(self.ada)
        assert secret not in factor_of(self.ada).secret
        stored = RecoveryCode.objects.values_list("digest", flat=True)
        assert not any(code.replace("-", "") in digest for code in codes for digest in stored)
        told = OutboxEntry.objects.values_list("data", flat=True)
        assert not any(code in str(data) for code in (secret, *codes) for data in told)

    def test_a_secret_is_bound_to_its_person(self):
        with_app(self.ada)
        with_app(self.bob)
        SecondFactor.objects.filter(user=self.bob).update(secret=factor_of(self.ada).secret)
        assert not factors.accepts(factor_of(self.bob), "123456")

    def test_beginning_again_replaces_what_was_never_confirmed_and_nothing_else(self):
        first = factors.secret_of(factors.begin(self.ada))
        second = factors.secret_of(factors.begin(self.ada))
        assert first != second
        assert factors.confirm(factor_of(self.ada), code_of(second))
        assert factors.secret_of(factors.begin(self.ada)) == second

    def test_renewing_and_removing_take_a_code(self):
        secret, codes = with_app(self.ada)
        for do in ("renew", "remove"):
            assert "This code is wrong" in self.client.post(PAGE, {"do": do, "code": "123"}).content.decode()
        html = self.client.post(PAGE, {"do": "renew", "code": code_of(secret)}).content.decode()
        renewed = re.search(r'id="hoosh-codes">([^<]*)<', html)[1].split()
        assert not factors.accepts(factor_of(self.ada), codes[0])
        assert self.client.post(PAGE, {"do": "remove", "code": renewed[0]}).status_code == 302
        assert not SecondFactor.objects.exists()
        assert actions("user.")[-2:] == ["user.recovery_code_used", "user.second_factor_removed"]

    def test_wrong_codes_on_the_page_are_counted_too(self):
        with_app(self.ada)
        answers = [self.client.post(PAGE, {"do": "remove", "code": "123456"}).status_code for _ in range(6)]
        assert answers == [200] * 5 + [429]


class SignInTest(AdminTestCase):
    def setUp(self) -> None:
        self.secret, self.codes = with_app(self.ada)

    def enter(self, code: str, password: str = "pw") -> bool:
        client = Client()
        sign_in(client, "ada", password, code)
        return is_in(client)

    def test_the_password_alone_does_not_open(self):
        assert not self.enter("")
        assert not self.enter("000000")
        assert self.enter(code_of(self.secret))

    def test_a_code_opens_once(self):
        code = code_of(self.secret)
        assert self.enter(code)
        assert not self.enter(code)

    def test_a_code_of_a_clock_one_step_ahead_opens_and_uses_up_those_before(self):
        assert self.enter(code_of(self.secret, steps=1))
        assert not self.enter(code_of(self.secret))

    def test_a_code_of_a_clock_far_away_does_not_open(self):
        assert not self.enter(code_of(self.secret, steps=3))
        assert not self.enter(code_of(self.secret, steps=-3))

    def test_a_recovery_code_opens_once_and_is_recorded(self):
        assert self.enter(self.codes[3].lower().replace("-", " "))
        assert not self.enter(self.codes[3])
        entry = OutboxEntry.objects.get(action="user.recovery_code_used")
        assert (entry.target, entry.data) == ("ada", {"object": f"auth.user:{self.ada.pk}", "left": 9})

    def test_somebody_elses_code_does_not_open(self):
        other, _ = with_app(self.bob)
        assert not self.enter(code_of(other))

    def test_a_code_is_not_used_up_by_a_wrong_password(self):
        code = code_of(self.secret)
        assert not self.enter(code, password="wrong")
        assert self.enter(code)

    def test_a_refusal_says_the_same_whatever_was_wrong(self):
        said = set()
        for name, password, code in (
            ("ada", "pw", ""),
            ("ada", "pw", "000000"),
            ("ada", "wrong", ""),
            ("nobody-known", "wrong", ""),
            ("carl", "pw", ""),  # exists, with this password, but is no staff
        ):
            response = sign_in(Client(), name, password, code)
            page = re.sub(r' value="[^"]*"', "", response.content.decode())
            said.add((response.status_code, page))
        assert len(said) == 1

    def test_the_audit_log_says_how_somebody_signed_in(self):
        assert not self.enter("000000")
        assert self.enter(code_of(self.secret))
        sign_in(Client(), "bob", "pw")
        refused, ada, bob = OutboxEntry.objects.filter(action__startswith="operator.").order_by("id")
        assert (refused.action, refused.target) == ("operator.sign_in_refused", "ada")
        assert (ada.target, ada.data["with"]) == ("ada", "code")
        assert (bob.target, "with" in bob.data) == ("bob", False)


@override_settings(HOOSH_REQUIRE_SECOND_FACTOR=True)
class RequiredTest(AdminTestCase):
    def setUp(self) -> None:
        sign_in(self.client, "ada", "pw")

    def test_without_one_only_the_page_to_set_one_up_opens(self):
        for path in ("/admin/", "/admin/providers/provider/", "/team/"):
            response = self.client.get(path)
            assert (response.status_code, response.headers["location"]) == (302, PAGE)
        assert self.client.post("/admin/providers/configversion/publish/").headers["location"] == PAGE
        assert "A second factor is required here" in self.client.get(PAGE).content.decode()
        assert self.client.get("/v1/admin/providers").status_code in (401, 404)
        assert self.client.get("/v1/events/recent").status_code == 401

    def test_once_it_is_set_up_everything_opens(self):
        self.client.post(PAGE, {"do": "begin"})
        secret = factors.secret_of(factor_of(self.ada))
        self.client.post(PAGE, {"do": "confirm", "code": code_of(secret)})
        assert self.client.get("/admin/").status_code == 200
        assert self.client.get("/v1/events/recent").status_code == 200

    def test_a_session_from_before_must_show_it(self):
        with_app(self.ada)
        response = self.client.get("/admin/")
        assert (response.status_code, response.headers["location"]) == (302, "/admin/login/")
        assert not is_in(self.client)

    def test_after_a_reset_the_session_leads_back_to_the_page(self):
        self.client.post(PAGE, {"do": "begin"})
        self.client.post(PAGE, {"do": "confirm", "code": code_of(factors.secret_of(factor_of(self.ada)))})
        factors.remove(factor_of(self.ada), actor="somebody")
        assert self.client.get("/admin/").headers["location"] == PAGE

    def test_signing_out_always_works(self):
        assert self.client.post("/admin/logout/").status_code == 200
        assert not is_in(self.client)


class ResetTest(AdminTestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        super().setUpTestData()
        cls.sam = User.objects.create_user("sam", "", "pw", is_staff=True)
        cls.sam.groups.add(Group.objects.get(name="security"))

    def test_security_resets_a_second_factor_after_a_question(self):
        with_app(self.bob)
        self.client.force_login(self.sam)
        assert "Reset second factor" in self.page("auth_user_change", self.bob.pk)
        assert "recognised" in self.page("auth_user_second_factor", self.bob.pk)
        assert self.post("auth_user_second_factor", {}, self.bob.pk).status_code == 302
        assert not SecondFactor.objects.exists()
        entry = OutboxEntry.objects.get(action="user.second_factor_reset")
        assert (entry.actor, entry.target, entry.level) == ("sam", "bob", "warning")

    def test_nobody_but_a_superuser_resets_a_superusers(self):
        with_app(self.ada)
        self.client.force_login(self.sam)
        assert self.post("auth_user_second_factor", {}, self.ada.pk).status_code == 403
        factor = factor_of(self.ada)
        assert self.post("people_secondfactor_delete", {"post": "yes"}, factor.pk).status_code == 403
        self.act("people_secondfactor_changelist", "delete_selected", [factor], post="yes")
        assert SecondFactor.objects.filter(user=self.ada).exists()

    def test_the_command_resets_from_the_host(self):
        with_app(self.ada)
        out = StringIO()
        call_command("reset_second_factor", "ada", stdout=out)
        assert "ada signs in without" in out.getvalue()
        assert not SecondFactor.objects.exists()
        for name, said in (("ada", "no second factor"), ("eve", "no user")):
            with pytest.raises(CommandError, match=said):
                call_command("reset_second_factor", name)

    def test_leads_without_access_to_admin_have_the_page_too(self):
        from budgets import access

        agent = access.agent_named("Research", "notebook", actor="ada")
        TeamLead.objects.create(user=self.carl, team=agent.team)
        sign_in(self.client, "carl", "pw")
        assert "None is set up" in self.clean_html(self.client.get(PAGE))

    def test_nobody_else_has(self):
        assert Client().get(PAGE).headers["location"].startswith("/admin/login/?next=")


class PictureTest(AdminTestCase):
    def test_the_picture_has_no_style_and_names_the_person(self):
        address = factors.address_of(factors.begin(self.ada), "Hoosh")
        assert address.startswith("otpauth://totp/Hoosh:ada?")
        assert unescape(address).count("secret=") == 1
        picture = factors.picture(address)
        assert picture.startswith("<svg")
        assert "style=" not in picture
        assert "<script" not in picture
