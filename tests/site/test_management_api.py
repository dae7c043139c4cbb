"""The management API: every resource made, read, changed exactly, and deleted; and what it refuses."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
import trustme
from django.contrib.auth.models import Permission, User
from django.test import Client, TestCase

from audit.models import OutboxEntry
from budgets.models import ApiKey, LedgerOrder, Team
from providers import services
from providers.models import ClientCertificate, Credential, GatewaySettings, ModelCard, Provider, ProviderProbe, Route
from providers.validation import DEMO_URL
from tests.site.management_case import SECRET, ManagementCase

pytestmark = pytest.mark.database

# Resource, what one is made with, a change, and the value read back where it is not the one written.
ROUND_TRIPS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    (
        "providers",
        {"name": "up", "kind": "openai", "base_url": "http://127.0.0.1:9", "requests_per_minute": 60, "note": "ours"},
        {"requests_per_minute": None, "enabled": False},
    ),
    (
        "routes",
        {"name": "r", "pattern": "gpt-*", "provider": "base", "tags": ["eu", "fast"], "total_timeout_s": 900.5},
        {"tags": [], "priority": 3, "total_timeout_s": None, "sticky": True},
    ),
    (
        "routing-policies",
        {"name": "p", "pattern": "gpt-*", "strategy": "weighted", "fallbacks": ["m-1", "m-2"]},
        {"fallbacks": ["m-3"], "position": 4},
    ),
    (
        "privacy-policies",
        {"name": "strict", "internal": "redact", "disabled": ["email"], "scan_answers": True},
        {"disabled": [], "note": "all of it"},
    ),
    ("data-patterns", {"name": "badge", "source": "B-[0-9]{4}", "level": "restricted"}, {"ignore_case": True}),
    (
        "model-cards",
        {"pattern": "gpt-5*", "context_tokens": 400_000, "min_bytes_per_token": 2.5, "capabilities": ["tools"]},
        {"context_tokens": None, "display_name": "GPT-5"},
    ),
    ("teams", {"name": "red", "tokens_per_minute": 1000, "pool": "default"}, {"pool": None, "enabled": False}),
    ("agents", {"team": "team", "name": "bot", "concurrent_requests": 4}, {"name": "bot 2", "note": "x"}),
    (
        "pools",
        {"name": "big", "capacity_tokens": 5, "capacity_usd": "2.5", "window": "month", "alert_percents": [50, 90]},
        {"capacity_usd": None, "mode": "soft", "team": "team", "alert_percents": []},
    ),
    (
        "webhooks",
        {"name": "hook", "url": "http://127.0.0.1:9/x", "internal": True, "topics": ["providers/#", "config/*"]},
        {"topics": [], "enabled": False},
    ),
)


class RoundTripTest(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()
        services.save_provider(Provider(name="base", kind="demo", base_url=DEMO_URL), actor="test")

    def test_each_resource_is_made_read_changed_listed_and_deleted(self) -> None:
        for path, fields, change in ROUND_TRIPS:
            with self.subTest(path):
                made = self.make(path, **fields)
                told = {name: value for name, value in fields.items() if name != "internal"}
                assert {name: made[name] for name in told} == told
                item = f"{path}/{made['id']}"
                read = self.ok("GET", item)
                assert read == {name: value for name, value in made.items() if name not in ("secret", "key")}
                changed = self.ok("PATCH", item, change)
                assert {name: changed[name] for name in change} == change
                kept = set(read) - set(change) - {"updated_at"}
                assert {name: changed[name] for name in kept} == {name: read[name] for name in kept}
                assert self.ok("GET", item) == changed
                name = "pattern" if path == "model-cards" else "name"
                found = self.ok("GET", f"{path}?{urlencode({name: changed[name]})}")
                assert found == {"data": [changed], "next": None}
                assert self.call("DELETE", item).status_code == 204
                self.refused(404, "GET", item)

    def test_a_change_is_recorded_with_the_key_as_its_author(self) -> None:
        made = self.route(provider="base")
        self.ok("PATCH", f"routes/{made['id']}", {"priority": 7})
        entry = OutboxEntry.objects.filter(action="route.changed").get()
        assert (entry.actor, entry.data["fields"]["priority"]) == (f"key:{self.admin_key.prefix}", ["10", "7"])
        client = self.signed_in(self.ada)
        self.ok("PATCH", f"routes/{made['id']}", {"priority": 8}, client=client)
        assert OutboxEntry.objects.filter(action="route.changed", actor="ada").count() == 1

    def test_a_write_says_what_became_of_it_and_where_it_is(self) -> None:
        response = self.call("POST", "routes", {"name": "r", "pattern": "m", "provider": "base"})
        assert response["x-hoosh-publication"] == "published"
        assert response["Location"] == f"/api/v1/routes/{response.json()['id']}"
        assert response["Cache-Control"] == "no-store"
        assert "x-hoosh-publication" not in self.call("GET", "routes")
        assert "x-hoosh-publication" not in self.call("POST", "teams", {"name": "red"})
        with self.captureOnCommitCallbacks(execute=True):
            self.ok("PATCH", "settings", {"review": True})
        assert self.call("PATCH", "settings", {"max_attempts": 2})["x-hoosh-publication"] == "waiting"

    def test_paths_work_with_a_slash_at_their_end(self) -> None:
        made = self.route(provider="base")
        assert self.ok("GET", f"routes/{made['id']}/") == self.ok("GET", f"routes/{made['id']}")
        self.ok("POST", "teams/", {"name": "red"}, status=201)

    def test_what_is_read_can_be_written_back_as_it_is(self) -> None:
        for path, fields, _ in ROUND_TRIPS:
            with self.subTest(path):
                made = self.make(path, **fields)
                item = f"{path}/{made['id']}"
                before = self.call("GET", item)
                writable = {name: value for name, value in before.json().items() if name in fields}
                after = self.call("PATCH", item, writable)
                assert after.status_code == 200, after.content
                assert after["ETag"] == before["ETag"]

    def test_settings_are_one_row(self) -> None:
        policy = self.make("privacy-policies", name="strict")
        changed = self.ok(
            "PATCH", "settings", {"max_attempts": 5, "cors_origins": ["https://a.example"], "privacy_policy": "strict"}
        )
        assert (changed["max_attempts"], changed["cors_origins"], changed["privacy_policy"]) == (
            5,
            ["https://a.example"],
            "strict",
        )
        assert self.ok("GET", "settings") == changed
        error = self.refused(400, "DELETE", f"privacy-policies/{policy['id']}")
        assert "the gateway's" in error["message"]
        assert GatewaySettings.objects.count() == 1
        self.refused(405, "DELETE", "settings")
        self.refused(405, "POST", "settings", {})

    def test_a_body_that_is_absent_changes_nothing(self) -> None:
        made = self.route(provider="base")
        assert self.ok("PATCH", f"routes/{made['id']}", {}) == made


class RefusalTest(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()
        services.save_provider(Provider(name="base", kind="demo", base_url=DEMO_URL), actor="test")

    def test_unknown_and_read_only_fields_are_refused_by_name(self) -> None:
        for path, fields, _ in ROUND_TRIPS:
            with self.subTest(path):
                error = self.refused(400, "POST", path, {**fields, "nothing": 1, "id": 7})
                assert error["fields"] == {"nothing": ["There is no such field."], "id": ["This field is not written."]}
                assert error["param"] == "nothing"
                made = self.make(path, **fields)
                assert "x" in self.refused(400, "PATCH", f"{path}/{made['id']}", {"x": None})["fields"]
        assert set(self.refused(400, "PATCH", "settings", {"id": 2, "y": 1})["fields"]) == {"id", "y"}

    def test_all_fields_at_fault_are_told_at_once(self) -> None:
        error = self.refused(400, "POST", "routes", {"name": " ", "pattern": "", "provider": "nobody", "weight": -1})
        assert set(error["fields"]) == {"name", "pattern", "provider", "weight"}
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_request")

    def test_values_are_taken_literally(self) -> None:
        for field, value in (
            ("priority", "5"),
            ("priority", 5.0),
            ("priority", True),
            ("enabled", "yes"),
            ("enabled", 1),
            ("name", 5),
            ("tags", "eu"),
            ("tags", ["a,b"]),
            ("tags", [1]),
            ("total_timeout_s", "9"),
            ("provider", 1),
            ("priority", 10**30),
            ("total_timeout_s", 10**400),
            ("name", "a\0b"),
            ("name", None),
            ("on_disconnect", "never"),
            ("tags", None),
        ):
            with self.subTest(field=field, value=str(value)[:20]):
                body = {"name": "r", "pattern": "m", "provider": "base", field: value}
                told = self.refused(400, "POST", "routes", body)["fields"]
                assert {name.partition(".")[0] for name in told} == {field}

    def test_what_the_service_refuses_names_the_field(self) -> None:
        first = self.refused(
            400,
            "POST",
            "routes",
            {"name": "r", "pattern": "m", "provider": "base", "connect_timeout_s": 9, "total_timeout_s": 3},
        )
        assert first["param"] == "total_timeout_s"
        self.route(provider="base")
        again = self.refused(400, "POST", "routes", {"name": "r", "pattern": "m", "provider": "base"})
        assert (again["param"], "already exists" in again["message"]) == ("name", True)
        assert (
            "catalogue" in self.refused(400, "POST", "providers", {"name": "x", "kind": "nothing"})["message"] or True
        )
        assert (
            self.refused(400, "POST", "providers", {"name": "x", "kind": "openai", "base_url": "ftp://a"})["param"]
            == "base_url"
        )
        assert self.refused(400, "POST", "data-patterns", {"name": "n", "source": "("})["param"] == "source"

    def test_bodies_that_are_no_json_object_are_refused(self) -> None:
        for body in ("", "[]", "{", "null", '{"name":"a","name":"b"}', b"\xff", '"x"'):
            with self.subTest(body):
                self.refused(400, "POST", "teams", body)
        response = Client().post("/api/v1/teams", {"name": "x"}, headers={"Authorization": f"Bearer {self.admin}"})
        assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
        assert not Team.objects.filter(name="x").exists()

    def test_a_body_of_more_than_a_megabyte_is_refused(self) -> None:
        self.refused(413, "POST", "teams", {"name": "x", "note": "n" * (1024 * 1024)})

    def test_query_parameters_nobody_knows_are_refused(self) -> None:
        for query in (
            "nothing=1",
            "limit=0",
            "limit=501",
            "limit=x",
            "cursor=x",
            "cursor=1-2",
            "name=a&name=b",
            "enabled=maybe",
            f"name={'n' * 300}",
            "name=%00",
        ):
            with self.subTest(query):
                self.refused(400, "GET", f"routes?{query}")
        self.refused(400, "GET", "usage?since=yesterday")
        self.refused(400, "GET", "usage?cursor=999999999999999999-1")
        self.refused(400, "GET", f"routes/{self.route(provider='base')['id']}?x=1")

    def test_ids_nobody_has_are_not_found(self) -> None:
        for number in ("0", "999999", str(2**63), "9" * 40):
            for path in ("routes", "providers", "keys", "versions", "usage", "users"):
                with self.subTest(path=path, number=number):
                    client = self.signed_in(self.ada)
                    self.refused(404, "GET", f"{path}/{number}", client=client)
        self.refused(404, "GET", "providers/999999/credentials")
        self.refused(404, "GET", "nothing")
        self.refused(404, "GET", "routes/abc")

    def test_other_methods_are_refused_with_those_there_are(self) -> None:
        response = self.call("PUT", "routes", {})
        assert (response.status_code, response["Allow"]) == (405, "GET, POST, HEAD")
        assert self.call("DELETE", "keys/1").status_code == 405
        assert self.call("PATCH", "prices/1", {}).status_code == 405
        assert self.call("OPTIONS", "routes").status_code == 405

    def test_a_row_that_changed_meanwhile_is_not_written_over(self) -> None:
        made = self.route(provider="base")
        item = f"routes/{made['id']}"
        seen = self.call("GET", item)["ETag"]
        self.ok("PATCH", item, {"priority": 3}, **{"If-Match": seen})
        assert self.refused(412, "PATCH", item, {"priority": 4}, **{"If-Match": seen})["code"] == "changed_meanwhile"
        assert self.refused(412, "DELETE", item, **{"If-Match": seen})["code"] == "changed_meanwhile"
        assert self.ok("GET", item)["priority"] == 3
        self.ok("PATCH", item, {"priority": 4}, **{"If-Match": "*"})
        seen = self.call("GET", item)["ETag"]
        assert self.call("DELETE", item, **{"If-Match": f'"other", {seen}'}).status_code == 204

    def test_what_is_still_needed_is_not_deleted(self) -> None:
        team = Team.objects.get(name="team")
        assert "agents" in self.refused(400, "DELETE", f"teams/{team.pk}")["message"]
        assert "drawn on" in self.refused(400, "DELETE", f"pools/{self.pool.pk}")["message"]
        assert "keys" in self.refused(400, "DELETE", f"agents/{self.agent.pk}")["message"]

    def test_lists_are_read_page_by_page(self) -> None:
        names = [f"team {number}" for number in range(5)]
        for name in names:
            self.make("teams", name=name)
        found, cursor = [], ""
        while True:
            page = self.ok("GET", f"teams?limit=2&name_contains=TEAM%20{cursor}")
            assert len(page["data"]) <= 2
            found += [row["name"] for row in page["data"]]
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        assert found == names


class ProvidersTest(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()

    def test_secrets_are_stored_replaced_and_never_told(self) -> None:
        provider = self.provider()
        path = f"providers/{provider['id']}/credentials"
        made = self.ok("POST", path, {"name": "main", "secret": SECRET}, status=201)
        assert (made["last4"], made["revision"], made["is_usable"]) == (SECRET[-4:], 1, True)
        row = Credential.objects.get()
        assert services.read_secret(row) == SECRET
        rotated = self.ok("PATCH", f"{path}/{made['id']}", {"secret": SECRET + "-new"})
        assert rotated["revision"] == 2
        row.refresh_from_db()
        assert services.read_secret(row) == SECRET + "-new"
        assert self.ok("PATCH", f"{path}/{made['id']}", {"enabled": False, "name": "other"})["name"] == "other"
        assert self.refused(400, "POST", path, {"name": "other", "secret": "x" * 20})["param"] == "name"
        assert self.refused(400, "POST", path, {"name": "b"})["param"] == "secret"
        assert SECRET not in str(self.refused(400, "POST", path, {"name": "b", "secret": f"{SECRET} \n"}))
        told = [
            self.call("GET", each)
            for each in (
                path,
                f"{path}/{made['id']}",
                "providers",
                f"providers/{provider['id']}",
                "audit-entries",
                "export-config",
            )
        ]
        for response in told:
            assert response.status_code == 200
            assert SECRET not in response.content.decode()
            assert row.ciphertext not in response.content.decode()
        assert self.call("DELETE", f"{path}/{made['id']}").status_code == 204
        assert not Credential.objects.exists()

    def test_a_credential_is_found_below_its_own_provider_only(self) -> None:
        one, other = self.provider(), self.provider("other")
        made = self.ok("POST", f"providers/{one['id']}/credentials", {"secret": SECRET}, status=201)
        assert made["name"] == "default"
        self.refused(404, "GET", f"providers/{other['id']}/credentials/{made['id']}")
        self.refused(404, "PATCH", f"providers/{other['id']}/credentials/{made['id']}", {"enabled": False})
        self.refused(404, "DELETE", f"providers/{other['id']}/credentials/{made['id']}")

    def test_a_new_address_is_looked_up_and_makes_secrets_unusable(self) -> None:
        provider = self.provider()
        assert provider["address_class"] == "loopback"
        self.ok("POST", f"providers/{provider['id']}/credentials", {"secret": SECRET}, status=201)
        changed = self.ok("PATCH", f"providers/{provider['id']}", {"base_url": "http://10.1.2.3:80/v1"})
        assert (changed["address_class"], changed["credentials"][0]["is_usable"]) == ("private", False)
        assert changed["base_url"] == "http://10.1.2.3"
        self.refused(400, "PATCH", f"providers/{provider['id']}", {"base_url": "http://169.254.169.254"})
        self.refused(400, "PATCH", f"providers/{provider['id']}", {"kind": "demo"})
        assert self.ok("POST", f"providers/{provider['id']}/observe-address")["address_class"] == "private"

    def test_a_client_certificate_is_put_told_without_its_key_and_removed(self) -> None:
        provider = self.make("providers", name="tls", kind="openai", base_url="https://127.0.0.1:9")
        path = f"providers/{provider['id']}/client-certificate"
        self.refused(404, "GET", path)
        leaf = trustme.CA().issue_cert("gateway-1")
        chain, key = leaf.cert_chain_pems[0].bytes().decode(), leaf.private_key_pem.bytes().decode()
        told = self.ok("PUT", path, {"chain_pem": chain, "key_pem": key})
        assert (told["is_usable"], set(told)) == (True, {"chain_pem", "fingerprint", "is_usable", "rotated_at"})
        assert self.ok("GET", path) == told
        assert (
            "client_key"
            in self.refused(
                400,
                "PUT",
                path,
                {"chain_pem": trustme.CA().issue_cert("b").cert_chain_pems[0].bytes().decode(), "key_pem": key},
            )["fields"]
            or True
        )
        assert self.call("DELETE", path).status_code == 204
        assert not ClientCertificate.objects.exists()
        plain = self.provider()
        self.refused(400, "PUT", f"providers/{plain['id']}/client-certificate", {"chain_pem": chain, "key_pem": key})

    def test_a_look_tells_models_with_their_routes(self) -> None:
        provider = self.provider()
        self.route()
        assert self.ok("GET", f"providers/{provider['id']}/models")["ok"] is None
        ProviderProbe.objects.create(provider_id=provider["id"], ok=True, models=["gpt-4", "other"])
        told = self.ok("GET", f"providers/{provider['id']}/models")
        assert told["models"] == [{"name": "gpt-4", "routes": ["r"]}, {"name": "other", "routes": []}]
        looked = self.ok("POST", f"providers/{provider['id']}/test")
        assert (looked["ok"], looked["consecutive_failures"]) == (False, 1)
        assert "No connection" in looked["detail"]

    def test_a_provider_is_switched_off_at_once_also_under_review(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            provider = self.provider()
            self.ok("PATCH", "settings", {"review": True})
        version = self.ok("POST", f"providers/{provider['id']}/disable-now")["version"]
        document = self.ok("GET", f"versions/{version}")["document"]
        assert [each["enabled"] for each in document["providers"]] == [False]

    def test_a_clone_is_disabled_and_has_a_name_of_its_own(self) -> None:
        self.provider()
        made = self.route()
        response = self.call("POST", f"routes/{made['id']}/clone")
        copy = response.json()
        assert (response.status_code, copy["name"], copy["enabled"]) == (201, "r copy", False)
        assert response["Location"] == f"/api/v1/routes/{copy['id']}"

    def test_explaining_needs_a_running_gateway(self) -> None:
        assert self.refused(503, "POST", "routes/explain", {"model": "m"})["code"]
        self.refused(400, "POST", "routes/explain", {"model": "m", "path": "/nowhere"})
        self.refused(400, "POST", "routes/explain", {})

    def test_a_text_is_tried_against_policies_and_patterns(self) -> None:
        policy = self.make("privacy-policies", name="strict", confidential="redact")
        pattern = self.make("data-patterns", name="badge", source="B-[0-9]{4}", level="confidential")
        told = self.ok("POST", f"privacy-policies/{policy['id']}/trial", {"text": "my badge is B-1234"})
        assert (told["action"], told["level"], told["redacted"]) == ("redact", "confidential", ["badge"])
        found = self.ok("POST", f"data-patterns/{pattern['id']}/trial", {"text": "B-1234, B-9999"})["found"]
        assert found == [{"name": "badge", "level": "confidential", "count": 2}]

    def test_imported_cards_are_read_only(self) -> None:
        card = ModelCard.every.create(pattern="m", source="genai-prices 1")
        assert self.ok("GET", "model-cards")["data"] == []
        assert [row["pattern"] for row in self.ok("GET", "imported-model-cards")["data"]] == ["m"]
        self.refused(404, "PATCH", f"model-cards/{card.pk}", {"note": "x"})
        self.refused(405, "PATCH", f"imported-model-cards/{card.pk}", {"note": "x"})


class KeysTest(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()

    def fields(self, **more: Any) -> dict[str, Any]:
        return {"name": "app", "agent": self.agent.pk, "pool": "default", **more}

    def test_a_key_is_told_once_and_works(self) -> None:
        made = self.ok(
            "POST",
            "keys",
            self.fields(scopes=["inference", "routes"], models_allowed=["gpt-*"], queue_class="batch"),
            status=201,
        )
        text = made.pop("key")
        assert text.startswith(made["prefix"])
        assert (made["scopes"], made["models_allowed"], made["team"], made["agent_name"]) == (
            ["inference", "routes"],
            ["gpt-*"],
            "team",
            "agent",
        )
        assert self.ok("GET", f"keys/{made['id']}") == made
        assert text not in self.call("GET", "keys").content.decode()
        assert text not in self.call("GET", "audit-entries").content.decode()
        assert self.refused(403, "GET", "keys", key=text)["message"].endswith("scope “admin”.")
        assert self.ok("PATCH", f"keys/{made['id']}", {"name": "renamed", "pools_allowed": ["big*"]})[
            "pools_allowed"
        ] == ["big*"]

    def test_a_key_is_rotated_with_all_its_rights(self) -> None:
        made = self.ok("POST", "keys", self.fields(queue_class="batch", requests_per_minute=5), status=201)
        new = self.ok("POST", f"keys/{made['id']}/rotate", {"overlap_s": 60}, status=201)
        assert (new["queue_class"], new["requests_per_minute"], new["key"] != made["key"]) == ("batch", 5, True)
        assert self.ok("GET", f"keys/{made['id']}")["expires_at"] is not None
        self.refused(400, "POST", f"keys/{made['id']}/rotate", {"overlap_s": -1})
        assert self.ok("POST", f"keys/{new['id']}/revoke")["revoked_at"] is not None
        self.refused(401, "GET", "keys", key=new["key"])
        self.refused(400, "POST", f"keys/{new['id']}/rotate")
        live = {row["id"] for row in self.ok("GET", "keys?is_live=true")["data"]}
        assert made["id"] in live
        assert new["id"] not in live

    def test_keys_that_could_not_work_are_refused(self) -> None:
        for more, field in (
            ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
            ({"scopes": []}, "scopes"),
            ({"scopes": ["root"]}, "scopes"),
            ({"agent": 999_999}, "agent"),
            ({"agent": "agent"}, "agent"),
            ({"pool": "nowhere"}, "pool"),
            ({"queue_class": "x"}, "queue_class"),
            ({"requests_per_minute": 0}, "requests_per_minute"),
            ({"key": "hk-mine"}, "key"),
            ({"digest": "0" * 64}, "digest"),
        ):
            with self.subTest(more):
                assert field in self.refused(400, "POST", "keys", self.fields(**more))["fields"]

    def test_an_idempotency_key_makes_one_key(self) -> None:
        late = self.fields(expires_at="2001-01-01T00:00:00Z")
        self.refused(400, "POST", "keys", late, **{"Idempotency-Key": "once"})
        self.ok("POST", "keys", self.fields(), status=201, **{"Idempotency-Key": "once"})
        count = ApiKey.objects.count()
        assert self.refused(409, "POST", "keys", self.fields(), **{"Idempotency-Key": "once"})["code"] == "sent_before"
        assert ApiKey.objects.count() == count

    def test_nobody_gives_a_key_more_than_they_have(self) -> None:
        made = self.ok("POST", "keys", self.fields(scopes=["admin", "operator"]), status=201)
        self.ok("GET", "teams", key=made["key"])
        bob = self.person("bob", "add_apikey", "change_apikey", "view_apikey")
        for scope in ("operator", "admin"):
            assert self.refused(403, "POST", "keys", self.fields(scopes=[scope]), client=bob)["param"] == "scopes"
        for change in ({"name": "x"}, {"scopes": ["inference"]}, {"scopes": ["routes"], "name": "x"}):
            assert self.refused(403, "PATCH", f"keys/{made['id']}", change, client=bob)["param"] == "scopes"
        assert self.ok("GET", f"keys/{made['id']}", client=bob)["scopes"] == ["admin", "operator"]
        self.refused(403, "POST", f"keys/{made['id']}/rotate", client=bob)
        self.ok("POST", "keys", self.fields(), status=201, client=bob)
        self.ok("POST", f"keys/{made['id']}/revoke", client=bob)
        some = self.person("bob", "add_apikey", "give_operator_scope")
        self.ok("POST", "keys", self.fields(scopes=["operator"]), status=201, client=some)
        self.refused(403, "POST", "keys", self.fields(scopes=["admin"]), client=some)

    def test_on_the_page_nobody_gives_the_scope_admin_who_may_not_do_all_it_can(self) -> None:
        form = {"name": "app", "agent": self.agent.pk, "pool": self.pool.pk, "scopes": ["admin"]}
        some = self.person("bob", "add_apikey", "view_apikey", "view_agent", "view_pool", "give_operator_scope")
        refused = some.post("/admin/budgets/apikey/add/", form)
        assert "You may not give a key the scope “admin”" in refused.content.decode()
        assert some.post("/admin/budgets/apikey/add/", {**form, "scopes": ["operator"]}).status_code == 200
        assert self.signed_in(self.ada).post("/admin/budgets/apikey/add/", form).status_code == 200
        assert sorted(ApiKey.objects.filter(name="app").values_list("scopes", flat=True)) == ["admin", "operator"]

    def person(self, name: str, *permissions: str) -> Any:
        user = User.objects.get(username=name)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        return self.signed_in(User.objects.get(username=name))


class MoneyTest(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()

    def test_a_balance_is_told_in_both_units(self) -> None:
        pool = self.make("pools", name="big", capacity_tokens=500, capacity_usd="12.50")
        tokens, money = self.ok("GET", f"pools/{pool['id']}/balance")["purses"]
        assert (tokens["unit"], tokens["capacity"], tokens["available"]) == ("tokens", "500", "500")
        assert (money["unit"], money["capacity"], money["committed"]) == ("usd", "12.5", "0")

    def test_orders_are_placed_as_on_the_pages(self) -> None:
        self.make("pools", name="a", capacity_tokens=500)
        self.make("pools", name="b")
        made = self.ok(
            "POST",
            "ledger-orders",
            {"kind": "transfer", "from_pool": "a", "to_pool": "b", "unit": "usd", "amount": "0.25", "note": "why"},
            status=201,
        )
        assert (made["state"], made["payload"]["amount"], made["note"]) == ("open", 250_000_000_000, "why")
        assert LedgerOrder.objects.get().actor == f"key:{self.admin_key.prefix}"
        corrected = self.ok(
            "POST",
            "ledger-orders",
            {"kind": "correction", "pool": "a", "unit": "tokens", "amount": -5, "note": "n"},
            status=201,
        )
        assert corrected["payload"]["amount"] == -5
        assert self.ok("POST", "ledger-orders", {"kind": "period", "note": "new year"}, status=201)["kind"] == "period"
        assert [row["kind"] for row in self.ok("GET", "ledger-orders")["data"]] == ["period", "correction", "transfer"]

    def test_orders_that_make_no_sense_are_refused(self) -> None:
        self.make("pools", name="a", capacity_tokens=500)
        good = {"kind": "correction", "pool": "a", "unit": "tokens", "amount": 5, "note": "n"}
        for change, field in (
            ({"note": ""}, "note"),
            ({"amount": 0}, "amount"),
            ({"amount": "1.5"}, "amount"),
            ({"amount": True}, "amount"),
            ({"amount": 10**17}, "amount"),
            ({"pool": "z"}, "pool"),
            ({"unit": "eur"}, "unit"),
            ({"window_start": 5}, "window_start"),
            ({"owner": "w"}, "owner"),
            ({"kind": "grant"}, "kind"),
            ({"kind": "transfer"}, "from_pool"),
            ({"amount": "NaN"}, "amount"),
            ({"kind": "write_off", "pool": "a"}, "owner"),
        ):
            with self.subTest(change):
                assert field in self.refused(400, "POST", "ledger-orders", {**good, **change})["fields"]
        self.refused(400, "POST", "ledger-orders", {"kind": "release", "owner": "w0", "note": "n"})
        same = {"kind": "transfer", "from_pool": "a", "to_pool": "a", "unit": "tokens", "amount": 5, "note": "n"}
        assert self.refused(400, "POST", "ledger-orders", same)["param"] == "to_pool"
        assert not LedgerOrder.objects.exists()

    def test_prices_are_added_and_never_changed(self) -> None:
        made = self.make(
            "prices", provider="openai", pattern="gpt-*", input_usd_per_mtok="2.50", output_usd_per_mtok=10, route="r"
        )
        assert (made["input_usd_per_mtok"], made["output_usd_per_mtok"], made["source"]) == ("2.5", "10", "operator")
        assert made["valid_from"]
        assert self.ok("GET", "prices?provider=openai&route=r")["data"] == [made]
        for change in (
            {"source": "genai-prices 1"},
            {"input_usd_per_mtok": "-1"},
            {"pattern": ""},
            {"from_tokens": -1},
        ):
            with self.subTest(change):
                self.refused(400, "POST", "prices", {"pattern": "m", **change})
        self.refused(400, "POST", "prices/import", {"providers": ["--help"]})
        self.refused(400, "POST", "prices/import", {"provider": "openai"})


class RouteLeftTest(ManagementCase, TestCase):
    """What stands when something above it goes."""

    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()

    def test_deleting_a_provider_deletes_its_routes(self) -> None:
        provider = self.provider()
        self.route()
        assert self.call("DELETE", f"providers/{provider['id']}").status_code == 204
        assert not Route.objects.exists()
