"""API keys: making, taking over, rotating, revoking."""

from __future__ import annotations

import datetime as dt
import hashlib
import re

import pytest
from django.core.exceptions import ValidationError
from django.test import TestCase
from django.utils import timezone

from audit.models import OutboxEntry
from budgets import access, keys
from budgets.models import ApiKey, Pool

pytestmark = pytest.mark.database


def test_a_key_has_256_random_bits_and_a_known_shape() -> None:
    made = {keys.new_text() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"hk-[A-Za-z0-9_-]{43}", text) for text in made)


class KeyTests(TestCase):
    databases = "__all__"

    def setUp(self) -> None:
        self.agent = access.agent_named("team", "agent", actor="a")
        self.pool = access.default_pool("a")

    def create(self, **options: object) -> tuple[ApiKey, str]:
        return keys.create_key(self.agent, self.pool, "app", actor="alice", **options)

    def test_only_digest_and_prefix_are_stored(self) -> None:
        made, text = self.create()
        row = ApiKey.objects.get(pk=made.pk)
        self.assertEqual(row.digest, hashlib.sha256(text.encode()).hexdigest())
        self.assertEqual(row.prefix, text[:11])
        stored = [str(value) for value in vars(row).values()]
        self.assertFalse([value for value in stored if text[11:] in value])

    def test_making_a_key_is_recorded_without_text_or_digest(self) -> None:
        made, text = self.create()
        entry = OutboxEntry.objects.get(action="key.created")
        self.assertEqual((entry.actor, entry.target), ("alice", f"app ({text[:11]}…)"))
        self.assertNotIn(text[11:], str(entry.data))
        self.assertNotIn(made.digest, str(entry.data))

    def test_bad_rights_are_refused(self) -> None:
        for options in ({"scopes": ("root",)}, {"scopes": ()}, {"models_allowed": ("a\nb",)}):
            with self.assertRaises(ValidationError):
                self.create(**options)
        with self.assertRaises(ValidationError):
            self.create(expires_at=timezone.now())
        self.assertEqual(ApiKey.objects.count(), 0)

    def test_a_foreign_token_of_any_shape_is_taken_over(self) -> None:
        row = keys.import_key("letmein-0123456789", self.agent, self.pool, "old", actor="a", managed_by="import")
        self.assertEqual((row.prefix, row.managed_by), ("letmei", "import"))
        self.assertEqual(row.digest, hashlib.sha256(b"letmein-0123456789").hexdigest())

    def test_of_a_short_token_less_is_shown(self) -> None:
        row = keys.import_key("abcdef", self.agent, self.pool, "old", actor="a", managed_by="import")
        self.assertEqual(row.prefix, "ab")

    def test_the_same_token_is_not_taken_over_twice(self) -> None:
        keys.import_key("letmein", self.agent, self.pool, "old", actor="a", managed_by="import")
        with self.assertRaises(ValidationError):
            keys.import_key("letmein", self.agent, self.pool, "old", actor="a", managed_by="import")

    def test_what_cannot_be_a_bearer_token_is_refused(self) -> None:
        for text in ("", "a b", "a\n", "schlüssel", "x" * 513):
            with self.assertRaises(ValidationError):
                keys.check_token(text)

    def test_revoking_is_final_recorded_and_idempotent(self) -> None:
        made, _ = self.create()
        keys.revoke_key(made, actor="bob")
        first = ApiKey.objects.get().revoked_at
        self.assertIsNotNone(first)
        keys.revoke_key(ApiKey.objects.get(), actor="bob")
        self.assertEqual(ApiKey.objects.get().revoked_at, first)
        self.assertEqual(OutboxEntry.objects.filter(action="key.revoked", actor="bob").count(), 1)

    def test_a_key_may_have_a_budget_of_its_own_and_name_further_pools(self) -> None:
        own = access.save_pool(Pool(name="own"), actor="a")
        made, _ = self.create(own_pool=own, pools_allowed=("lab-*", "x"))
        row = ApiKey.objects.get(pk=made.pk)
        self.assertEqual((row.own_pool, row.pools_allowed), (own, "lab-*,x"))
        new, _ = keys.rotate_key(row, actor="a")
        self.assertEqual((new.pool, new.own_pool, new.pools_allowed), (self.pool, own, "lab-*,x"))
        with self.assertRaises(ValidationError):
            self.create(pools_allowed=("a\nb",))

    def test_a_key_may_have_limits_and_rotation_keeps_them(self) -> None:
        made, _ = self.create(limits=(1, None, 3))
        new, _ = keys.rotate_key(ApiKey.objects.get(pk=made.pk), actor="a")
        self.assertEqual([row.limits for row in ApiKey.objects.all()], [(1, None, 3), (1, None, 3)])
        self.assertNotEqual(new.pk, made.pk)
        for wrong in ((0, None, None), (None, 10**9 + 1, None)):
            with self.assertRaises(ValidationError):
                self.create(limits=wrong)

    def test_rotation_keeps_the_rights_and_ends_the_old_key_after_the_overlap(self) -> None:
        made, text = self.create(scopes=("inference", "operator"), models_allowed=("gpt-*",))
        new, new_text = keys.rotate_key(made, actor="a", overlap=dt.timedelta(hours=1))
        self.assertNotEqual(new_text, text)
        self.assertEqual((new.scopes, new.models_allowed, new.expires_at), ("inference,operator", "gpt-*", None))
        old = ApiKey.objects.get(pk=made.pk)
        self.assertAlmostEqual(old.expires_at.timestamp(), timezone.now().timestamp() + 3600, delta=5)

    def test_rotation_never_prolongs_a_key_and_refuses_a_revoked_one(self) -> None:
        soon = timezone.now() + dt.timedelta(minutes=1)
        made, _ = self.create(expires_at=soon)
        keys.rotate_key(made, actor="a")
        self.assertEqual(ApiKey.objects.get(pk=made.pk).expires_at, soon)
        keys.revoke_key(made, actor="a")
        with self.assertRaises(ValidationError):
            keys.rotate_key(made, actor="a")
