"""The audit log over HTTP: entries in hoosh's shape, checkpoints, and proofs for whoever may have them."""

from __future__ import annotations

import json

import pytest

from audit import checking, merkle, notes
from audit.models import AuditEntry
from budgets import access, keys
from budgets.models import Usage
from budgets.usage_leaf import record_of
from tests.audit.small_log import START, SmallLog
from tests.audit.test_proving import changed, holds
from tests.gateway.test_api import RID, ApiCase

pytestmark = pytest.mark.database

PATH = "/v1/audit"
INCLUSION = "/v1/audit/proof/inclusion"
CONSISTENCY = "/v1/audit/proof/consistency"
CHECKPOINT = "/v1/audit/checkpoint"


def proof_of(response) -> list[dict]:
    """Proof files as a client reads them: numbers are texts there."""
    found = []
    for line in response.content.decode().splitlines():
        proof = json.loads(line)
        proof["index"], proof["size"] = int(proof["index"]), int(proof["size"])
        if "batch" in proof:
            proof["batch"] |= {name: int(proof["batch"][name]) for name in ("index", "count")}
        found.append(proof)
    return found


class AuditCase(ApiCase):
    @classmethod
    def setUpTestData(cls):
        super().setUpTestData()
        cls.foreign_agent = access.agent_named("strangers", "agent", actor="test")
        cls.foreign, cls.foreign_text = keys.create_key(cls.foreign_agent, cls.pool, "foreign", actor="test")
        log = cls.log = SmallLog()
        log.open()
        for number in range(20):
            log.add("route.changed", actor="ada", target=f"r{number}", data={"model": "gpt-4o", "provider": "openai"})
            log.add("key.created", actor="bob", target="app", level="warning")
        log.checkpoint()
        rows = [cls.usage(RID, attempt) for attempt in (0, 1)]
        batch, cls.batch_seq = log.batch([record_of(row) for row in rows])
        Usage.objects.filter(rid=RID).update(batch=batch)
        log.checkpoint()

    @classmethod
    def usage(cls, rid: str, attempt: int = 0) -> Usage:
        row = Usage.objects.create(
            rid=rid,
            attempt=attempt,
            at=START,
            key_id=cls.key.pk,
            agent_id=cls.agent.pk,
            team_id=cls.agent.team_id,
            pool_id=cls.pool.pk,
            endpoint="chat",
            model="m",
            status=200,
        )
        row.refresh_from_db()
        return row


class EntriesTest(AuditCase):
    def test_operators_only(self):
        assert self.error(self.ask(PATH), 401)
        assert self.error(self.ask(PATH, self.text), 403)

    def test_a_page_has_the_shapes_of_both_generations_of_hoosh(self):
        told = self.ask(PATH, self.operator_text).json()
        assert (told["total"], told["count"], told["chain_valid"], told["valid"]) == (42, 42, True, True)
        assert (len(told["entries"]), told["next"]) == (42, None)
        entry = told["entries"][2]
        assert (entry["event"], entry["level"], entry["message"]) == ("route.changed", "info", "ada: route.changed r19")
        assert (entry["provider"], entry["model"], entry["actor"]) == ("openai", "gpt-4o", "ada")
        row = AuditEntry.objects.get(seq=entry["seq"])
        assert entry["timestamp"] == int(row.at.timestamp() * 1000)
        assert entry["integrity"] == {
            "version": "2.0.0",
            "leaf": merkle.leaf_hash(row.body.encode()).hex(),
            "log": 1,
            "index": row.seq,
        }
        assert told["verified"]["entries"] == 42

    def test_before_anything_is_logged_it_is_an_empty_page(self):
        changed("audit_entry", "DELETE FROM audit_entry")
        changed("audit_checkpoint", "DELETE FROM audit_checkpoint")
        told = self.ask(PATH, self.operator_text).json()
        assert (told["entries"], told["total"], told["chain_valid"]) == ([], 0, True)

    def test_pages_and_filters(self):
        told = self.ask(f"{PATH}?limit=5&action=key.&actor=bob&level=warning", self.operator_text).json()
        assert [entry["seq"] for entry in told["entries"]] == [40, 38, 36, 34, 32]
        more = self.ask(f"{PATH}?limit=2&action=key.&before={told['next']}", self.operator_text).json()
        assert [entry["seq"] for entry in more["entries"]] == [30, 28]
        assert self.ask(f"{PATH}?from=2026-11-06", self.operator_text).json()["entries"] == []
        assert len(self.ask(f"{PATH}?from=2026-11-05&to=2026-11-05", self.operator_text).json()["entries"]) == 42
        assert len(self.ask(f"{PATH}?to=2026-11-05T09:30:00.3Z", self.operator_text).json()["entries"]) == 3
        assert len(self.ask(f"{PATH}?source=log", self.operator_text).json()["entries"]) == 1
        assert len(self.ask(f"{PATH}?target=r7", self.operator_text).json()["entries"]) == 1

    def test_one_entry_by_its_number_or_by_a_request(self):
        for wanted in (str(self.batch_seq), RID, RID.upper()):
            told = self.ask(f"{PATH}?q={wanted}", self.operator_text).json()
            assert [entry["seq"] for entry in told["entries"]] == [self.batch_seq]
        assert self.ask(f"{PATH}?q={'0' * 32}", self.operator_text).json()["entries"] == []
        assert self.ask(f"{PATH}?q=999999", self.operator_text).json()["entries"] == []

    def test_what_is_no_question_is_a_400_that_names_the_parameter(self):
        for query, param in (
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=x", "limit"),
            ("before=-1", "before"),
            ("before=1&before=2", "before"),
            ("from=yesterday", "from"),
            ("from=0001-01-01", "from"),
            ("to=9999-12-31", "to"),
            ("to=2026-02-31", "to"),
            ("actor=" + "x" * 201, "actor"),
            ("target=%00", "target"),
            ("q=hello", "q"),
        ):
            with self.subTest(query):
                assert self.error(self.ask(f"{PATH}?{query}", self.operator_text), 400)["param"] == param
        for query, words in (("to=9999-12-31", "out of range"), ("from=0001-01-01", "out of range"), ("to=x", "a day")):
            assert words in self.error(self.ask(f"{PATH}?{query}", self.operator_text), 400)["message"]

    def test_a_changed_entry_makes_the_chain_invalid_at_once(self):
        checking.Checker().run(None)
        changed("audit_entry", "UPDATE audit_entry SET body = replace(body, 'r7', 'r8') WHERE target = 'r7'")
        told = self.ask(f"{PATH}?limit=1", self.operator_text).json()
        assert told["chain_valid"] is True  # verified before, and not on this page: the next round finds it
        told = self.ask(PATH, self.operator_text).json()
        assert (told["chain_valid"], told["valid"]) == (False, False)
        assert told["verified"]["fault"]["seq"] == AuditEntry.objects.get(target="r7").seq
        checking.Checker().run(None)
        assert self.ask(f"{PATH}?limit=1", self.operator_text).json()["chain_valid"] is False


class CheckpointTest(AuditCase):
    def test_any_key_gets_the_newest_checkpoint_as_a_signed_note(self):
        response = self.ask(CHECKPOINT, self.text)
        assert response["Content-Type"] == "text/plain; charset=utf-8"
        note = notes.verify(response.content.decode(), [notes.parse_vkey(self.log.vkey)])
        assert note.size == 42
        assert self.error(self.ask(CHECKPOINT), 401)

    def test_a_certain_one_and_its_parts(self):
        told = self.ask(f"{CHECKPOINT}?size=41", self.text, Accept="application/json").json()
        assert (told["log"], told["size"], told["note"]) == ("2026-11", 41, self.log.notes[0])
        assert self.error(self.ask(f"{CHECKPOINT}?size=40", self.text), 404)
        assert self.error(self.ask(f"{CHECKPOINT}?log=2025-01", self.text), 404)
        assert self.error(self.ask(f"{CHECKPOINT}?size=x", self.text), 400)["param"] == "size"


class InclusionTest(AuditCase):
    def test_operators_have_any_entry_proven(self):
        (proof,) = proof_of(self.ask(f"{INCLUSION}?seq=7", self.operator_text))
        assert holds(proof, self.log.vkey)
        assert proof["size"] == 42
        (proof,) = proof_of(self.ask(f"{INCLUSION}?seq=7&size=41", self.operator_text))
        assert proof["size"] == 41
        assert self.error(self.ask(f"{INCLUSION}?seq=7", self.text), 403)

    def test_a_team_has_its_own_requests_proven_attempt_by_attempt(self):
        response = self.ask(f"{INCLUSION}?request_id={RID}", self.other_text)
        assert response["Content-Type"] == "application/x-ndjson"
        proofs = proof_of(response)
        assert [json.loads(proof["usage"])["attempt"] for proof in proofs] == ["0", "1"]
        assert all(holds(proof, self.log.vkey) for proof in proofs)
        response = self.ask(f"{INCLUSION}?request_id={RID}&attempt=1", self.text)
        assert response["Content-Type"] == "application/json"
        assert len(proof_of(response)) == 1

    def test_another_team_learns_nothing_of_a_request(self):
        unknown = self.ask(f"{INCLUSION}?request_id={'0' * 32}", self.foreign_text)
        foreign = self.ask(f"{INCLUSION}?request_id={RID}", self.foreign_text)
        assert unknown.content == foreign.content
        assert self.error(foreign, 404)["code"] == "not_settled"
        assert foreign["Retry-After"] == "1"

    def test_what_is_on_its_way_is_a_404_that_says_when_to_come_back(self):
        self.usage("0198c0ffee01" + "0" * 20)
        told = self.ask(f"{INCLUSION}?request_id=0198c0ffee01{'0' * 20}", self.text)
        assert self.error(told, 404)["code"] == "not_found"  # booked before the log began
        seq = self.log.add("c.d")
        self.log.flush()
        told = self.ask(f"{INCLUSION}?seq={seq}", self.operator_text)
        assert self.error(told, 404)["code"] == "not_settled"
        assert told["Retry-After"] == "1"
        assert self.error(self.ask(f"{INCLUSION}?seq={seq + 1}", self.operator_text), 404)["code"] == "not_found"

    def test_what_is_no_question_is_a_400(self):
        for query in (
            "",
            "?seq=1&request_id=" + RID,
            "?seq=x",
            "?request_id=x",
            "?seq=1&size=-1",
            "?seq=99999999999999999999",
        ):
            with self.subTest(query):
                self.error(self.ask(INCLUSION + query, self.operator_text), 400)

    def test_what_somebody_changed_is_not_proven(self):
        changed("audit_entry", "UPDATE audit_entry SET body = replace(body, 'r7', 'r8') WHERE target = 'r7'")
        seq = AuditEntry.objects.get(target="r7").seq
        assert self.error(self.ask(f"{INCLUSION}?seq={seq}", self.operator_text), 500)["code"] == "audit_log_broken"


class ConsistencyTest(AuditCase):
    def test_whoever_kept_a_checkpoint_can_have_it_continued(self):
        for query in ("from=41&to=42", "from=41", "from=42&log=2026-11"):
            told = self.ask(f"{CONSISTENCY}?{query}", self.text).json()
            old, new = (notes.parse(told[name]) for name in ("first", "second"))
            path = [bytes.fromhex(each) for each in told["path"]]
            assert merkle.verify_consistency(old.size, new.size, old.root, new.root, path)

    def test_sizes_without_a_checkpoint_and_nonsense(self):
        assert self.error(self.ask(f"{CONSISTENCY}?from=40", self.text), 404)
        assert self.error(self.ask(f"{CONSISTENCY}?from=42&to=41", self.text), 404)
        assert self.error(self.ask(f"{CONSISTENCY}?from=0&to=41", self.text), 404)
        assert self.error(self.ask(CONSISTENCY, self.text), 400)["param"] == "from"
        assert self.error(self.ask(f"{CONSISTENCY}?from=a", self.text), 400)["param"] == "from"
