"""Keys in admin: where they may be used, who uses an old one still, and who may give which scope."""

from __future__ import annotations

import datetime as dt
import json
from io import StringIO

import pytest
from django.contrib.auth.models import Group, User
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from budgets import access
from budgets.keys import create_key, last_used, rotate_key
from budgets.models import ApiKey, Usage
from tests.admin_case import AdminTestCase
from tests.budgets.test_admin import key_form

pytestmark = pytest.mark.database


class KeyTest(AdminTestCase):
    def setUp(self) -> None:
        super().setUp()
        cache.clear()  # it remembers the forms other tests sent
        self.agent = access.agent_named("Research", "notebook", actor="ada")
        self.pool = access.default_pool("ada")

    def use(self, key: ApiKey, ago: dt.timedelta, rid: str = "0") -> dt.datetime:
        at = timezone.now() - ago
        Usage.objects.create(rid=rid * 32, at=at, key_id=key.pk, agent_id=1, team_id=1, pool_id=1, status=200)
        return at

    def test_endpoints_and_addresses_are_chosen_and_reach_the_workers(self):
        more = {"endpoints_allowed": ["chat", "embeddings"], "addresses_allowed": "10.0.0.0/8, 2001:db8::1"}
        response = self.post("budgets_apikey_add", key_form(self.agent, self.pool, **more))
        html = self.clean_html(response)
        assert "chat,embeddings" in html
        key = ApiKey.objects.get()
        record = access.key_record(key)
        assert record.endpoints == ("chat", "embeddings")
        assert record.addresses == ("10.0.0.0/8", "2001:db8::1")
        page = self.page("budgets_apikey_change", key.pk)
        assert page.count("checked") == 3, "two endpoints and the scope"
        form = key_form(self.agent, self.pool, endpoints_allowed=[], addresses_allowed="")
        assert self.post("budgets_apikey_change", form, key.pk).status_code == 302
        key.refresh_from_db()
        assert (key.endpoints_allowed, key.addresses_allowed) == ("", "")

    def test_what_is_no_network_is_refused(self):
        response = self.post("budgets_apikey_add", key_form(self.agent, self.pool, addresses_allowed="10.0.0.1/8"))
        assert "neither an address nor a network" in self.errors(response)
        assert not ApiKey.objects.exists()

    def test_the_control_api_looks_at_the_address_too(self):
        _, text = create_key(self.agent, self.pool, "k", actor="ada", addresses=["10.0.0.0/8"])
        ask = {"HTTP_AUTHORIZATION": f"Bearer {text}"}
        assert Client().get("/v1/costs", REMOTE_ADDR="10.9.9.9", **ask).status_code == 200
        refused = Client().get("/v1/costs", REMOTE_ADDR="192.0.2.1", **ask)
        assert refused.status_code == 403
        assert json.loads(refused.content)["error"]["code"] == "address_not_allowed"

    def test_a_rotated_key_has_every_right_of_the_old_one(self):
        old, _ = create_key(
            self.agent,
            self.pool,
            "k",
            actor="ada",
            queue_class="batch",
            endpoints=["chat", "responses"],
            addresses=["10.0.0.0/8", "192.0.2.1"],
            limits=(1, 2, 3),
        )
        new, _ = rotate_key(old, actor="ada")
        left_out = {"id", "prefix", "digest", "expires_at", "rotated_from", "seq", "created_at"}
        for field in ApiKey._meta.concrete_fields:
            if field.name not in left_out:
                assert getattr(new, field.attname) == getattr(old, field.attname), field.name

    def test_the_pages_of_both_keys_say_when_the_old_one_was_last_used(self):
        old, _ = create_key(self.agent, self.pool, "k", actor="ada")
        assert last_used(old) is None
        self.use(old, dt.timedelta(days=4), "0")
        at = self.use(old, dt.timedelta(hours=5), "1")
        shown = self.clean_html(self.client.post(self.url("budgets_apikey_rotate", old.pk), {"submission": "s"}))
        assert f"{at:%Y-%m-%d %H:%M} UTC" in shown
        new = ApiKey.objects.latest("pk")
        page = self.page("budgets_apikey_change", new.pk)
        assert f"{old.prefix}…</a>, which works until " in page
        assert f"and was last used: {at:%Y-%m-%d %H:%M} UTC" in page
        assert "not as far as usage rows are kept" in page
        assert f"{new.prefix}…</a> replaces it" in self.page("budgets_apikey_change", old.pk)

    def test_operators_make_keys_but_none_that_operate_and_security_makes_any(self):
        operator_key, _ = create_key(self.agent, self.pool, "robot", ["operator"], actor="ada")
        for role, may in (("operator", False), ("security", True)):
            user = User.objects.create_user(role, "", "pw", is_staff=True)
            user.groups.add(Group.objects.get(name=role))
            self.client.force_login(user)
            form = key_form(self.agent, self.pool, name=f"of {role}", submission=role)
            assert "Copy this key now" in self.post("budgets_apikey_add", form).content.decode()
            form |= {"scopes": ["operator"], "submission": f"{role}-2", "name": f"operator of {role}"}
            assert ("Copy this key now" in self.post("budgets_apikey_add", form).content.decode()) is may
            rotated = self.post("budgets_apikey_rotate", {"submission": f"{role}-3"}, operator_key.pk)
            assert rotated.status_code == (200 if may else 403)

    def test_the_command_takes_them(self):
        out = StringIO()
        options = {"endpoints": "chat", "addresses": "10.0.0.0/8,192.0.2.1", "json": True}
        call_command("create_key", "k", stdout=out, **options)
        key = ApiKey.objects.get(pk=json.loads(out.getvalue())["id"])
        assert (key.endpoints_allowed, key.addresses_allowed) == ("chat", "10.0.0.0/8,192.0.2.1")
        with pytest.raises(CommandError, match="Endpoints are"):
            call_command("create_key", "k", endpoints="images", stdout=StringIO())
