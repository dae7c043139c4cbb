"""The pages of team leads: their own teams and nothing else, keys like those the team has and never more."""

from __future__ import annotations

import datetime as dt
import re

import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone
from django.utils.crypto import get_random_string

from audit.models import OutboxEntry
from budgets import access, validation
from budgets.keys import create_key, digest_of, revoke_key
from budgets.models import ApiKey, Pool, PoolWindow, Team, Usage
from hoosh_site.people.models import TeamLead
from tests.admin_case import AdminTestCase
from tests.site.people_case import is_in, sign_in

pytestmark = pytest.mark.database


class TeamCase(AdminTestCase):
    """Carl, who is no staff, leads Research; Sales is somebody else's."""

    @classmethod
    def setUpTestData(cls) -> None:
        super().setUpTestData()
        cls.notebook = access.agent_named("Research", "notebook", actor="ada")
        cls.robot = access.agent_named("Sales", "robot", actor="ada")
        cls.research, cls.sales = cls.notebook.team, cls.robot.team
        cls.pool = access.default_pool("ada")
        cls.secret_pool = access.save_pool(Pool(name="sales-money", capacity_tokens=77), actor="ada")
        cls.laptop, cls.laptop_text = create_key(
            cls.notebook,
            cls.pool,
            "laptop",
            actor="ada",
            models_allowed=["tiny", "gpt-5*"],
            endpoints=["chat"],
            addresses=["10.0.0.0/8"],
            limits=(60, None, 2),
            queue_class="agent",
        )
        cls.boss, _ = create_key(cls.notebook, cls.pool, "boss", ["inference", "operator"], actor="ada")
        cls.script, _ = create_key(cls.notebook, cls.pool, "script", ["admin"], actor="ada")
        cls.both, _ = create_key(cls.notebook, cls.pool, "both", ["inference", "admin"], actor="ada")
        cls.theirs, _ = create_key(cls.robot, cls.secret_pool, "their key", actor="ada")
        TeamLead.objects.create(user=cls.carl, team=cls.research)
        cls.lia = User.objects.create_user("lia", "", "pw")
        TeamLead.objects.create(user=cls.lia, team=cls.sales)

    def setUp(self) -> None:
        self.client.force_login(self.carl)

    def at(self, what: str = "", team: Team | None = None) -> str:
        return f"/team/{(team or self.research).pk}/{what}"

    def make(self, **changes: object) -> HttpResponse:
        form = {"name": "phone", "like": self.laptop.pk, "agent": self.notebook.pk, "submission": get_random_string(8)}
        return self.client.post(self.at("keys/add/"), form | changes)

    def shown_key(self, response: HttpResponse) -> str:
        found = re.search(r'id="hoosh-key">(hk-[A-Za-z0-9_-]{43})<', self.clean_html(response))
        assert found is not None, re.findall(r'class="errorlist[^>]*>(.*?)</ul>', response.content.decode())
        return found[1]


class SeeingTest(TeamCase):
    def test_a_lead_signs_in_and_comes_to_the_team(self):
        client = Client()
        assert sign_in(client, "carl", "pw").headers["location"] == "/admin/"
        response = client.get("/admin/", follow=True)
        assert [address for address, _ in response.redirect_chain] == [
            "/admin/login/?next=/admin/",
            "/team/",
            f"/team/{self.research.pk}/",
        ]

    def test_who_asked_for_an_unusable_address_comes_to_their_first_page(self):
        for name, last in (("ada", "/admin/"), ("carl", f"/team/{self.research.pk}/")):
            for wanted in ("https://evil.example/", "//evil.example", "/\\evil", ""):
                client = Client()
                form = {"username": name, "password": "pw", "next": wanted}
                response = client.post("/admin/login/", form, follow=True)
                assert response.status_code == 200, (name, wanted)
                assert response.redirect_chain[-1][0] == last, (name, wanted)

    def test_the_page_shows_the_team_and_nobody_elses(self):
        ids = {"key_id": self.laptop.pk, "agent_id": self.notebook.pk, "pool_id": self.pool.pk}
        values = {"endpoint": "chat", "model": "tiny", "status": 200, "tokens": 4321, "price_id": 1}
        Usage.objects.create(rid="0" * 32, at=timezone.now(), team_id=self.research.pk, **ids, **values)
        Usage.objects.create(rid="1" * 32, at=timezone.now(), team_id=self.sales.pk, **ids, **values)
        PoolWindow.objects.create(pool_id=self.pool.pk, capacity=10_000_000, committed=9_000_000)
        html = self.clean_html(self.client.get(self.at()))
        for text in ("notebook", "laptop", self.laptop.prefix, "default", "9M of 10M tokens", "4,321"):
            assert text in html, text
        for text in ("Sales", ">robot<", "their key", "sales-money", "8,642", self.laptop.digest):
            assert text not in html, text

    def test_last_use_is_shown(self):
        at = timezone.now() - dt.timedelta(hours=3)
        Usage.objects.create(rid="0" * 32, at=at, key_id=self.laptop.pk, agent_id=1, team_id=1, pool_id=1, status=200)
        assert f"{at:%Y-%m-%d %H:%M}" in self.client.get(self.at()).content.decode()

    def test_who_leads_several_teams_chooses(self):
        TeamLead.objects.create(user=self.carl, team=self.sales)
        html = self.clean_html(self.client.get("/team/"))
        assert "Research" in html
        assert "Sales" in html

    def test_who_leads_none_sees_none(self):
        self.client.force_login(self.bob)
        assert "You lead no team" in self.clean_html(self.client.get("/team/"))

    def test_without_leading_nobody_without_staff_status_signs_in(self):
        TeamLead.objects.filter(user=self.carl).delete()
        client = Client()
        sign_in(client, "carl", "pw")
        assert not is_in(client)

    def test_every_address_opens_for_leads_of_that_team_only(self):
        """The matrix: addresses x look and send x who asks."""
        revoke, rotate = f"keys/{self.laptop.pk}/revoke/", f"keys/{self.laptop.pk}/rotate/"
        for path, method, answer in (
            ("", "get", 200),
            ("", "post", 405),
            ("keys/add/", "get", 200),
            ("keys/add/", "post", 200),
            (rotate, "get", 405),
            (rotate, "post", 200),
            (revoke, "get", 200),
            (revoke, "post", 302),
        ):
            for name in ("lia", "bob", "ada", "", "carl"):
                client = Client()
                if name:
                    client.force_login(User.objects.get(username=name))
                response = getattr(client, method)(self.at(path))
                expected = answer if name == "carl" or answer == 405 else 404 if name else 302
                assert response.status_code == expected, (name, method, path)
                if not name and answer != 405:
                    assert response.headers["location"].startswith("/admin/login/?next=/team/")

    def test_keys_of_other_teams_are_not_reached_through_ones_own(self):
        for what in ("rotate", "revoke"):
            assert self.client.post(self.at(f"keys/{self.theirs.pk}/{what}/")).status_code == 404
        self.theirs.refresh_from_db()
        assert self.theirs.revoked_at is None

    def test_admin_stays_closed(self):
        for path in ("", "budgets/team/", f"budgets/apikey/{self.laptop.pk}/change/", "auth/user/"):
            assert self.client.get(f"/admin/{path}").status_code == 302
        assert self.client.get("/v1/costs").status_code == 401


class PasswordTest(TeamCase):
    PAGE = "/account/password/"

    def test_a_lead_changes_the_own_password_with_an_entry(self):
        assert "Change your password" in self.clean_html(self.client.get(self.PAGE))
        form = {"old_password": "pw", "new_password1": "Xk29dk2kdkd!canary", "new_password2": "Xk29dk2kdkd!canary"}
        assert self.client.post(self.PAGE, form | {"old_password": "wrong"}).status_code == 200
        assert self.client.post(self.PAGE, form).status_code == 302
        assert "Your password is changed" in self.client.get(self.PAGE).content.decode()
        assert User.objects.get(username="carl").check_password("Xk29dk2kdkd!canary")
        (entry,) = OutboxEntry.objects.filter(action="user.password_set")
        assert (entry.actor, entry.target, entry.about) == ("carl", "carl", True)
        assert entry.data == {"object": f"auth.user:{self.carl.pk}"}

    def test_who_is_not_signed_in_has_none(self):
        assert Client().get(self.PAGE).headers["location"].startswith("/admin/login/?next=")


class KeyTest(TeamCase):
    def test_a_new_key_has_the_rights_of_the_one_it_is_like(self):
        text = self.shown_key(self.make())
        made = ApiKey.objects.get(name="phone")
        assert made.digest == digest_of(text)
        for name in (
            *("agent", "pool", "own_pool", "pools_allowed", "scopes", "models_allowed", "endpoints_allowed"),
            *("addresses_allowed", "queue_class", "limits", "expires_at"),
        ):
            assert getattr(made, name) == getattr(self.laptop, name), name
        entry = OutboxEntry.objects.get(action="key.created", actor="carl")
        assert text not in str(entry.data)
        assert text not in self.client.get(self.at()).content.decode()

    def test_it_may_have_less(self):
        self.make(models="tiny, gpt-5-mini", days=3)
        made = ApiKey.objects.get(name="phone")
        assert made.models_allowed == "tiny,gpt-5-mini"
        assert made.expires_at < timezone.now() + dt.timedelta(days=3, minutes=1)

    def test_but_never_more(self):
        for models in ("gpt-4", "*", "gpt-*", "tiny*", "tiny, large"):
            assert "That key may not use" in self.make(models=models).content.decode(), models
        ApiKey.objects.filter(pk=self.laptop.pk).update(expires_at=timezone.now() + dt.timedelta(days=2))
        self.make(days=30)
        made = ApiKey.objects.get(name="phone")
        self.laptop.refresh_from_db()
        assert made.expires_at == self.laptop.expires_at

    def test_keys_of_operators_others_and_the_dead_are_no_pattern(self):
        dead, _ = create_key(self.notebook, self.pool, "dead", actor="ada")
        revoke_key(dead, actor="ada")
        for key in (self.boss, self.script, self.both, self.theirs, dead):
            assert "Select a valid choice" in self.make(like=key.pk).content.decode()
        assert not ApiKey.objects.filter(name="phone").exists()

    def test_nor_are_other_teams_agents_chosen(self):
        assert "Select a valid choice" in self.make(agent=self.robot.pk).content.decode()

    def test_fields_that_are_not_in_the_form_change_nothing(self):
        self.make(scopes="operator", pool=self.secret_pool.pk, endpoints_allowed="", queue_class="interactive")
        made = ApiKey.objects.get(name="phone")
        assert (made.scopes, made.pool, made.queue_class) == ("inference", self.pool, "agent")

    def test_a_form_that_is_sent_twice_makes_one_key(self):
        self.make(submission="once")
        assert "was sent before" in self.make(submission="once").content.decode()
        assert ApiKey.objects.filter(name="phone").count() == 1

    def test_a_rotated_key_leaves_the_old_one_a_day_and_says_when_it_was_last_used(self):
        at = timezone.now() - dt.timedelta(hours=3)
        Usage.objects.create(rid="0" * 32, at=at, key_id=self.laptop.pk, agent_id=1, team_id=1, pool_id=1, status=200)
        response = self.client.post(self.at(f"keys/{self.laptop.pk}/rotate/"), {"submission": "r"})
        text = self.shown_key(response)
        assert f"last used {at:%Y-%m-%d %H:%M} UTC" in response.content.decode()
        made = ApiKey.objects.get(digest=digest_of(text))
        assert made.rotated_from == self.laptop
        assert (made.queue_class, made.endpoints_allowed) == ("agent", "chat")
        self.laptop.refresh_from_db()
        assert self.laptop.expires_at - timezone.now() < dt.timedelta(days=1)

    def test_a_key_is_revoked_after_a_question(self):
        assert "refused within a second" in self.clean_html(self.client.get(self.at(f"keys/{self.laptop.pk}/revoke/")))
        assert self.client.post(self.at(f"keys/{self.laptop.pk}/revoke/")).status_code == 302
        self.laptop.refresh_from_db()
        assert self.laptop.revoked_at is not None
        assert OutboxEntry.objects.filter(action="key.revoked", actor="carl").exists()

    def test_keys_that_can_do_more_than_a_lead_are_an_operators(self):
        html = self.client.get(self.at()).content.decode()
        for key in (self.boss, self.script, self.both):
            for what in ("rotate", "revoke"):
                assert self.client.post(self.at(f"keys/{key.pk}/{what}/")).status_code == 403, (key.name, what)
            assert f"keys/{key.pk}/" not in html
            key.refresh_from_db()
            assert key.revoked_at is None

    def test_a_lead_hands_on_every_scope_that_is_in_the_list_for_leads_and_no_other(self):
        for scope in validation.SCOPES:
            key, _ = create_key(self.notebook, self.pool, f"with {scope}", [scope], actor="ada")
            is_known = scope in ("inference", "routes")
            assert self.client.post(self.at(f"keys/{key.pk}/revoke/")).status_code == (302 if is_known else 403), scope

    def test_the_first_key_is_an_operators_to_make(self):
        ApiKey.objects.filter(agent=self.notebook).delete()
        html = self.client.get(self.at()).content.decode()
        assert "An operator makes the team" in html
        assert "New API key" not in html
        assert "Select a valid choice" in self.make().content.decode()
