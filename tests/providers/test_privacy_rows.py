"""Privacy policies and patterns as rows: saved, refused, published, written to a file and read back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import pytest
from django.core.exceptions import ValidationError
from django.test import TestCase

from audit.models import OutboxEntry
from budgets import access
from budgets.models import Team
from hoosh_site.exporting import export_text
from hoosh_site.importing import ImportFileError, Report, import_file
from providers import compile as compiling
from providers import hoosh_toml, publish, services
from providers.config import ConfigDocument, PatternDoc, PrivacyDoc, SettingsDoc, unpack
from providers.models import ConfigVersion, DataPattern, PrivacyPolicy
from providers.privacy.about import ABOUT
from providers.privacy.patterns import BUILT_IN
from providers.privacy.trial import of_pattern, of_policy
from providers.privacy.verdict import Policy, Verdict
from providers.validation import label_name

MAIL, CARD = "alice@example.com", "4111 1111 1111 1111"


def pattern(name: str = "project", source: str = r"bluebird-\d+", **more: object) -> DataPattern:
    return services.save_data_pattern(DataPattern(name=name, source=source, **more), actor="a")


def policy(name: str = "staff", **more: object) -> PrivacyPolicy:
    return services.save_privacy_policy(PrivacyPolicy(name=name, **more), actor="a")


def refusal(error: pytest.ExceptionInfo[ValidationError]) -> dict[str, list[str]]:
    return error.value.message_dict


# --- words and documents --------------------------------------------------------------------------------------------


def test_every_built_in_pattern_is_told_in_words_under_a_name_that_can_be_switched_off() -> None:
    assert list(ABOUT) == [each.name for each in BUILT_IN]
    for name, about in ABOUT.items():
        label_name(name)
        assert about
        assert "|" not in about
    assert sum(len(name) + 1 for name in ABOUT) < 1024  # all of them fit into the field


def test_the_documentation_lists_every_built_in_pattern_in_order() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8").splitlines()
    first = lines.index("| pattern | level | what it is |") + 2
    listed = [line for line in lines[first : first + len(BUILT_IN) + 1] if line]
    assert listed == [f"| `{each.name}` | {each.level} | {ABOUT[each.name]} |" for each in BUILT_IN]


def problems(**fields: object) -> list[str]:
    return [str(problem) for problem in compiling.problems(ConfigDocument(**fields))]


def test_a_good_document_has_no_problems() -> None:
    good = PatternDoc(1, "project", r"bluebird-\d+", "confidential")
    named = PrivacyDoc(3, "staff", disabled=("email", "project"))
    assert problems(patterns=(good,), privacy=(named,), settings=SettingsDoc(privacy_policy_id=3)) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"patterns": (PatternDoc(1, "p", "a(b", "internal"),)}, "RE2 does not accept the pattern: missing )"),
        ({"patterns": (PatternDoc(1, "p", "(?=a)b", "internal", enabled=False),)}, "invalid perl operator: (?="),
        ({"patterns": (PatternDoc(1, "p", "x*", "internal"),)}, "The pattern matches the empty text."),
        ({"patterns": (PatternDoc(1, "email", "x", "internal"),)}, "a built-in pattern has this name"),
        ({"patterns": (PatternDoc(1, "A B", "x", "internal"),)}, "is not a label"),
        ({"patterns": (PatternDoc(1, "p", "x", "public"),)}, "choose one of internal, confidential, restricted"),
        ({"patterns": (PatternDoc(1, "p", "x", "internal"), PatternDoc(2, "p", "y", "internal"))}, "2 rows have this"),
        ({"privacy": (PrivacyDoc(1, "staff", disabled=("emial",)),)}, "there is no pattern named emial"),
        ({"privacy": (PrivacyDoc(1, "staff", internal="burn"),)}, "Invalid enum value 'burn'"),
        ({"privacy": (PrivacyDoc(1, "staff", answer_action="local"),)}, "Invalid enum value 'local'"),
        ({"privacy": (PrivacyDoc(1, "a\nb"),)}, "visible ASCII"),
        ({"privacy": (PrivacyDoc(1, "staff"), PrivacyDoc(2, "staff"))}, "2 rows have this name"),
        ({"settings": SettingsDoc(privacy_policy_id=9)}, "Gateway settings, privacy policy: it does not exist"),
    ],
)
def test_what_may_not_be_published_is_told(fields: dict[str, object], said: str) -> None:
    (problem,) = problems(**fields)
    assert said in problem


# --- trying a text --------------------------------------------------------------------------------------------------


def test_a_text_is_tried_by_a_policy() -> None:
    own = [PatternDoc(1, "project", "bluebird", "internal"), PatternDoc(2, "off", "words", "internal", enabled=False)]
    trial = of_policy(f"ü words {MAIL} of bluebird, {MAIL}", Policy(internal="redact", disabled=("ssn",)), own)
    assert trial.pieces == (
        ("ü words ", ""),
        (MAIL, "email"),
        (" of ", ""),
        ("bluebird", "project"),
        (", ", ""),
        (MAIL, "email"),
    )
    assert [(each.name, each.level, each.count) for each in trial.found] == [
        ("email", "internal", 2),
        ("project", "internal", 1),
    ]
    assert trial.verdict is not None
    assert (trial.verdict.action, trial.verdict.redact) == ("redact", ("email", "project"))
    assert MAIL not in repr(trial)
    off = of_policy(MAIL, Policy(internal="refuse", disabled=("email",)), [])
    assert (off.found, off.pieces) == ((), ((MAIL, ""),))
    assert off.verdict == Verdict()


def test_a_text_is_tried_by_one_pattern_alone() -> None:
    trial = of_pattern(
        f"Bluebird and {MAIL}", PatternDoc(1, "p", "bluebird", "internal", ignore_case=True, enabled=False)
    )
    assert trial.pieces == (("Bluebird", "p"), (f" and {MAIL}", ""))
    assert trial.verdict is None
    with pytest.raises(ValueError, match="missing"):
        of_pattern("x", PatternDoc(1, "p", "a(b", "internal"))


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.database
class RowTests(TestCase):
    databases = "__all__"

    def test_a_policy_and_a_pattern_are_published_and_recorded(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            pattern()
        with self.captureOnCommitCallbacks(execute=True):
            row = policy(disabled=" project, email ,", scan_answers=True)
        assert row.disabled == "project,email"
        assert ConfigVersion.objects.count() == 2
        found = publish.latest()
        assert found is not None
        document = unpack(found[1])
        assert [each.name for each in document.patterns] == ["project"]
        assert document.privacy == (PrivacyDoc(row.pk, "staff", disabled=("project", "email"), scan_answers=True),)
        actions = list(OutboxEntry.objects.order_by("id").values_list("action", flat=True))
        assert [each for each in actions if each.startswith(("data_pattern", "privacy_policy"))] == [
            "data_pattern.created",
            "privacy_policy.created",
        ]
        with self.captureOnCommitCallbacks(execute=True):
            services.save_privacy_policy(row, actor="a")
        assert ConfigVersion.objects.count() == 2

    def test_what_cannot_be_used_is_refused_at_the_save(self) -> None:
        for field, values in (
            ("source", {"source": "blue(bird"}),
            ("source", {"source": r"(?<=a)b"}),
            ("source", {"source": "b*"}),
            ("name", {"name": "email"}),
            ("name", {"name": "My Pattern"}),
            ("level", {"level": "public"}),
        ):
            with pytest.raises(ValidationError) as error:
                pattern(**values)
            assert list(refusal(error)) == [field], values
        with pytest.raises(ValidationError) as error:
            pattern(source="blue(bird")
        assert refusal(error) == {"source": ["RE2 does not accept the pattern: missing ): blue(bird"]}
        for field, values in (
            ("disabled", {"disabled": "emial"}),
            ("internal", {"internal": "burn"}),
            ("default_level", {"default_level": "secret"}),
            ("name", {"name": ""}),
        ):
            with pytest.raises(ValidationError) as error:
                policy(**values)
            assert list(refusal(error)) == [field], values
        assert not DataPattern.objects.exists()
        assert not PrivacyPolicy.objects.exists()

    def test_a_pattern_that_a_policy_switches_off_keeps_its_name(self) -> None:
        row = pattern()
        policy(disabled="project")
        policy("others", disabled="email")
        row.name = "bird"
        with pytest.raises(ValidationError) as error:
            services.save_data_pattern(row, actor="a")
        assert refusal(error) == {"name": ["Privacy policies switch “project” off: staff. Take it out there first."]}
        row.refresh_from_db()
        with pytest.raises(ValidationError):
            services.delete_data_pattern(row, actor="a")
        row.source = "other"
        services.save_data_pattern(row, actor="a")
        staff = PrivacyPolicy.objects.get(name="staff")
        staff.disabled = ""
        services.save_privacy_policy(staff, actor="a")
        services.delete_data_pattern(row, actor="a")
        assert not DataPattern.objects.exists()

    def test_a_policy_in_use_is_not_deleted(self) -> None:
        mine, gateways, free = policy("mine"), policy("gateways"), policy("free")
        access.save_team(Team(name="t", privacy_policy=mine), actor="a")
        row = services.gateway_settings()
        row.privacy_policy = gateways
        services.save_settings(row, actor="a")
        for used in (mine, gateways):
            with pytest.raises(ValidationError, match="a team's or the gateway's"):
                services.delete_privacy_policy(used, actor="a")
        services.delete_privacy_policy(free, actor="a")
        assert list(PrivacyPolicy.objects.values_list("name", flat=True)) == ["gateways", "mine"]
        assert not OutboxEntry.objects.filter(action="privacy_policy.deleted", target="mine").exists()


# --- files ----------------------------------------------------------------------------------------------------------

_FIELDS = {
    "default_level": "internal",
    "internal": "redact",
    "confidential": "refuse",
    "restricted": "allow",
    "disabled": "email,project",
    "redact_local": True,
    "scan_tool_results": False,
    "scan_answers": True,
    "answer_level": "internal",
    "answer_action": "refuse",
    "note": "a note",
}


@pytest.mark.database
class FileTests(TestCase):
    databases = "__all__"

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "hoosh.toml"

    def load(self, text: str, **options: bool) -> Report:
        self.path.write_text(text, encoding="utf-8")
        return import_file(self.path, "t", **options)

    def document(self) -> ConfigDocument:
        publish.publish("t")
        found = publish.latest()
        assert found is not None
        return unpack(found[1])

    def wipe(self) -> None:
        row = services.gateway_settings()
        row.privacy_policy = None
        row.save()
        for model in (Team, PrivacyPolicy, DataPattern):
            model.objects.all().delete()

    def fill(self) -> None:
        pattern(level="restricted", ignore_case=True, enabled=False, note="n")
        odd = r"[\"'\\]é{2}\x{1F600}"
        pattern("odd", odd)
        staff = policy(**_FIELDS)
        access.save_team(Team(name="blue", privacy_policy=staff), actor="a")
        access.save_team(Team(name="red"), actor="a")
        row = services.gateway_settings()
        row.privacy_policy = policy("gateways")
        services.save_settings(row, actor="a")

    def plain(self) -> list[object]:
        document = self.document()
        names = {each.id: each.name for each in document.privacy}
        return [
            sorted((msgspec.structs.replace(each, id=0) for each in document.patterns), key=lambda each: each.name),
            sorted((msgspec.structs.replace(each, id=0) for each in document.privacy), key=lambda each: each.name),
            names.get(document.settings.privacy_policy_id),
            [(team.name, team.privacy_policy and team.privacy_policy.name) for team in Team.objects.order_by("name")],
            list(PrivacyPolicy.objects.order_by("name").values_list("note", flat=True)),
        ]

    def test_export_wipe_import_gives_the_same(self) -> None:
        self.fill()
        before, text = self.plain(), export_text()
        for name, value in _FIELDS.items():
            default = PrivacyPolicy._meta.get_field(name).get_default()
            assert value != default, name
        self.wipe()
        assert self.plain() != before
        self.load(text)
        assert self.plain() == before
        assert export_text() == text
        report = self.load(text)
        assert report.changes == []

    def test_a_file_without_them_takes_back_what_an_import_made(self) -> None:
        self.fill()
        text = export_text()
        self.wipe()
        self.load(text)
        report = self.load('hoosh_configuration = 1\n[settings]\nprivacy_policy = ""\n[[team]]\nname = "blue"\n')
        assert not PrivacyPolicy.objects.exists()
        assert not DataPattern.objects.exists()
        assert "privacy policy “staff” removed" in report.changes
        self.load(text)
        assert PrivacyPolicy.objects.count() == 2
        report = self.load("hoosh_configuration = 1\n")  # says nothing of the teams: they keep theirs
        assert list(PrivacyPolicy.objects.values_list("name", flat=True)) == ["staff"]
        assert services.gateway_settings().privacy_policy is None
        assert any("“staff” stays" in warning for warning in report.warnings)

    def test_an_operators_rows_are_left_alone_unless_adopted(self) -> None:
        policy("staff", internal="refuse")
        pattern("own")
        text = 'hoosh_configuration = 1\n[[privacy_policy]]\nname = "staff"\n'
        text += '[[data_pattern]]\nname = "own"\nsource = "x"\n'
        report = self.load(text)
        assert sum("by an operator" in warning for warning in report.warnings) == 2
        assert PrivacyPolicy.objects.get().internal == "refuse"
        self.load(text, adopt=True)
        assert PrivacyPolicy.objects.get().internal == "allow"
        assert DataPattern.objects.get().source == "x"

    def test_wrong_files_are_refused_whole(self) -> None:
        for text, said in (
            ('[[data_pattern]]\nname = "p"\nsource = "a(b"\n', "source: RE2 does not accept the pattern: missing )"),
            ('[[data_pattern]]\nname = "ssn"\nsource = "x"\n', "A built-in pattern has this name."),
            ('[[privacy_policy]]\nname = "p"\ndisabled = ["nope"]\n', "There is no pattern named nope."),
            ('[[privacy_policy]]\nname = "p"\nlevels = 1\n', "privacy_policy[1].levels is not known."),
            ('[settings]\nprivacy_policy = "nope"\n', "There is no privacy policy named “nope”."),
            ("[settings]\nprivacy_policy = 1\n", "settings.privacy_policy must be the name of a policy."),
            ('[[team]]\nname = "t"\nprivacy_policy = "nope"\n', "there is no privacy policy named “nope”"),
            ('[[agent]]\nteam = "t"\nname = "a"\nprivacy_policy = "p"\n', "privacy_policy"),
        ):
            with pytest.raises(ImportFileError) as error:
                self.load(f"hoosh_configuration = 1\n{text}")
            assert said in str(error.value), text
        assert not DataPattern.objects.exists()
        assert not PrivacyPolicy.objects.exists()
        assert not Team.objects.exists()

    def test_hooshs_scanner_becomes_the_gateways_policy(self) -> None:
        head = '[[providers]]\ntype = "demo"\n'
        dlp = '[dlp]\nenabled = true\ndefault_level = "Internal"\n'
        dlp += '[[dlp_pattern]]\nname = "Project X"\npattern = "Blue (bird) é"\n'
        self.load(head + dlp)
        row = services.gateway_settings().privacy_policy
        assert row is not None
        assert (row.name, row.default_level) == ("hoosh", "internal")
        assert (row.internal, row.confidential, row.restricted) == ("allow", "local", "refuse")
        own = DataPattern.objects.get()
        assert (own.name, own.level, own.ignore_case) == ("project-x", "confidential", True)
        document = self.document()
        assert [each.name for each in of_pattern("a BLUE (BIRD) É b", document.patterns[0]).found] == ["project-x"]
        assert self.load(head + dlp).changes == []
        self.load(head + dlp.replace("true", "false"))
        assert services.gateway_settings().privacy_policy is None
        assert not PrivacyPolicy.objects.exists()
        assert not DataPattern.objects.exists()


# --- hoosh's file ---------------------------------------------------------------------------------------------------


def plan(text: str) -> hoosh_toml.Plan:
    return hoosh_toml.parse(hoosh_toml.load(text.encode()), {})


def test_patterns_of_hooshs_file_are_literals_under_names_of_their_own() -> None:
    found = plan(
        "[dlp]\nenabled = true\n"
        '[[dlp_pattern]]\npattern = "a.b"\n[[dlp_pattern]]\npattern = "c"\nlevel = "RESTRICTED"\n'
        '[[dlp_pattern]]\nname = "email"\npattern = "d"\n[[dlp_pattern]]\nname = "ЖЖ"\npattern = "e"\n'
        '[[dlp_pattern]]\npattern = ""\n[[dlp_pattern]]\npattern = "f"\nlevel = "public"\n'
        '[[dlp_pattern]]\npattern = "g"\nlevel = "odd"\n'
    )
    assert found.errors == []
    told = [(each["name"], each["source"], each["level"]) for each in found.patterns]
    assert told == [
        ("custom", r"a\.b", "confidential"),
        ("custom-2", "c", "restricted"),
        ("email-2", "d", "confidential"),
        ("custom-3", "e", "confidential"),
        ("custom-4", "g", "confidential"),
    ]
    assert [finding.key for finding in found.unsupported] == [
        "dlp_pattern[5].pattern",
        "dlp_pattern[6].pattern",
        "dlp_pattern[7].level",
    ]


def test_a_scanner_that_is_off_is_none() -> None:
    found = plan('[dlp]\ndefault_level = "restricted"\n[[dlp_pattern]]\npattern = "a"\n')
    assert (found.patterns, found.privacy) == ([], {})
    assert [finding.key for finding in found.unsupported] == ["dlp_pattern[1].pattern"]
