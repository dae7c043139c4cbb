"""Too many failed sign-ins close the door for a while: by name and address, without telling who exists."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client, TransactionTestCase, override_settings
from django.utils import timezone

from audit.models import OutboxEntry
from hoosh_site.people import lockout
from hoosh_site.people.models import SignInFailure
from tests.admin_case import AdminTestCase
from tests.site.people_case import actions, code_of, is_in, sign_in, with_app

pytestmark = pytest.mark.database

LIMIT = 5


class LockoutTest(AdminTestCase):
    def setUp(self) -> None:
        """Nobody is signed in."""

    def tries(self, name: str, count: int, address: str = "192.0.2.7", password: str = "wrong") -> list[int]:
        return [sign_in(Client(), name, password, REMOTE_ADDR=address).status_code for _ in range(count)]

    def opens(self, name: str, address: str = "192.0.2.7", code: str = "") -> bool:
        client = Client()
        sign_in(client, name, "pw", code, REMOTE_ADDR=address)
        return is_in(client)

    def past(self, minutes: int) -> None:
        """So long ago, everything."""
        for row in SignInFailure.objects.all():
            row.since -= timedelta(minutes=minutes)
            row.locked_until = row.locked_until and row.locked_until - timedelta(minutes=minutes)
            row.save()

    def test_after_so_many_failures_even_the_right_password_is_refused(self):
        assert self.tries("ada", LIMIT + 1) == [200] * LIMIT + [429]
        assert not self.opens("ada")
        entry = OutboxEntry.objects.get(action="operator.locked_out")
        assert (entry.target, entry.level, entry.personal) == ("ada", "warning", {"address": "192.0.2.7"})

    def test_while_it_lasts_attempts_are_neither_counted_nor_recorded(self):
        self.tries("ada", LIMIT)
        before = (actions(), list(SignInFailure.objects.order_by("pk").values()))
        self.tries("ada", 10)
        assert (actions(), list(SignInFailure.objects.order_by("pk").values())) == before

    def test_names_that_do_not_exist_are_locked_just_the_same(self):
        assert self.tries("nobody-known", LIMIT + 1) == [200] * LIMIT + [429]

    def test_somebody_else_from_there_and_the_same_person_from_elsewhere_go_on(self):
        self.tries("ada", LIMIT)
        assert self.opens("bob")
        assert self.opens("ada", "192.0.2.8")

    def test_it_ends_by_itself(self):
        self.tries("ada", LIMIT)
        self.past(14)
        assert not self.opens("ada")
        self.past(2)
        assert self.opens("ada")

    def test_failures_long_apart_do_not_add_up(self):
        for _ in range(3):
            assert self.tries("ada", LIMIT - 1) == [200] * (LIMIT - 1)
            self.past(16)
        assert self.opens("ada")

    def test_signing_in_forgets_ones_own_mistakes(self):
        self.tries("ada", LIMIT - 1)
        assert self.opens("ada")
        assert self.tries("ada", LIMIT - 1) == [200] * (LIMIT - 1)

    def test_signing_in_does_not_clear_an_address_that_tries_many_names(self):
        for number in range(24):
            self.tries(f"name-{number}", 1)
        assert self.opens("bob")
        assert self.tries("one-more", 2) == [200, 429]
        assert not self.opens("bob")
        assert self.opens("bob", "192.0.2.9")

    def test_a_name_that_is_tried_from_everywhere_is_locked_everywhere(self):
        for number in range(10 * LIMIT):
            self.tries("ada", 1, f"198.51.100.{number}")
        assert not self.opens("ada", "203.0.113.5")
        assert self.opens("bob", "203.0.113.5")

    def test_an_ipv6_network_counts_as_one_address(self):
        for number in range(LIMIT):
            self.tries("ada", 1, f"2001:db8:0:1::{number + 1:x}")
        assert not self.opens("ada", "2001:db8:0:1::ffff")
        assert self.opens("ada", "2001:db8:0:2::1")

    def test_wrong_codes_are_counted_like_wrong_passwords(self):
        secret, _ = with_app(self.ada)
        assert self.tries("ada", LIMIT + 1, password="pw") == [200] * LIMIT + [429]
        assert not self.opens("ada", code=code_of(secret))

    def test_small_and_capital_letters_are_one_name(self):
        for name in ("ada", "Ada", "ADA", "aDa", "adA"):
            self.tries(name, 1)
        assert not self.opens("ada")

    def test_the_answer_says_that_it_is_locked_and_the_form_stays(self):
        self.tries("ada", LIMIT)
        response = sign_in(Client(), "ada", "pw", REMOTE_ADDR="192.0.2.7")
        assert response.status_code == 429
        assert "Too many sign-ins failed" in self.clean_html(response)

    def test_old_rows_are_thrown_out(self):
        for number in range(5):
            self.tries(f"name-{number}", 1, f"198.51.100.{number}")
        SignInFailure.objects.update(since=timezone.now() - timedelta(minutes=31))
        self.tries("another", 1)
        assert set(SignInFailure.objects.values_list("name", flat=True)) == {"another", ""}

    def test_a_first_sign_in_from_where_somebody_failed_long_ago_is_no_failure(self):
        lockout.begin("mistyped", "203.0.113.9").failed()
        SignInFailure.objects.update(since=timezone.now() - timedelta(minutes=31))
        lockout.begin("somebody", "203.0.113.9").succeeded()
        lockout.begin("somebody", "203.0.113.9").failed()
        counted = set(SignInFailure.objects.values_list("name", "address", "attempts"))
        assert counted == {("", "203.0.113.9", 1), ("somebody", "", 1), ("somebody", "203.0.113.9", 1)}

    @override_settings(HOOSH_SIGN_IN_ATTEMPTS=0)
    def test_it_can_be_switched_off(self):
        assert self.tries("ada", 12) == [200] * 12
        assert not SignInFailure.objects.exists()

    def test_names_of_any_length_and_kind_are_counted(self):
        assert self.tries("x" * 5000, 1) == [200]
        assert self.tries("a\x00b", 1)[0] in (200, 400)
        assert self.tries("ß" * 150, LIMIT + 1) == [200] * LIMIT + [429]

    def test_the_command_lists_and_unlocks(self):
        self.tries("ada", LIMIT)
        out = StringIO()
        call_command("unlock", stdout=out)
        assert out.getvalue().startswith("ada from 192.0.2.7 until ")
        call_command("unlock", "ada", stdout=StringIO())
        assert self.opens("ada")
        self.tries("bob", LIMIT, "192.0.2.8")
        call_command("unlock", "192.0.2.8", stdout=StringIO())
        assert self.opens("bob", "192.0.2.8")
        self.tries("bob", LIMIT)
        call_command("unlock", all=True, stdout=StringIO())
        assert self.opens("bob")
        assert actions("operator.unlocked") == ["operator.unlocked"] * 3
        with pytest.raises(CommandError):
            call_command("unlock", "ada", all=True)

    def test_security_unlocks_by_deleting_a_row(self):
        self.tries("ada", LIMIT)
        sam = User.objects.create_user("sam", "", "pw", is_staff=True)
        sam.groups.add(Group.objects.get(name="security"))
        self.client.force_login(sam)
        assert "locked until" in self.page("people_signinfailure_changelist")
        row = SignInFailure.objects.get(name="ada", address="192.0.2.7")
        assert self.post("people_signinfailure_delete", {"post": "yes"}, row.pk).status_code == 302
        assert self.opens("ada")
        assert "operator.unlocked" in actions()


class AtOnceTest(TransactionTestCase):
    databases = "__all__"

    def test_guesses_sent_at_once_are_no_more_than_guesses_sent_in_turn(self):
        def guess(_: int) -> bool:
            try:
                return lockout.begin("ada", "192.0.2.7").locked_until is None
            finally:
                connection.close()

        with ThreadPoolExecutor(8) as pool:
            allowed = sum(pool.map(guess, range(24)))
        assert allowed == LIMIT
