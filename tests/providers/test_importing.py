"""hoosh's configuration file: reading it into a plan, and bringing the rows in line with it."""

from __future__ import annotations

import datetime as dt
import os
import tempfile
from decimal import Decimal
from pathlib import Path
from unittest import mock

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.test import TestCase

from audit.models import OutboxEntry
from budgets import access, keys
from budgets.models import ApiKey, Pool
from hoosh_site.importing import ImportFileError, Report, check_file, import_file, import_if_changed
from providers import hoosh_toml, publish, services
from providers.hoosh_keys import KINDS, SECTIONS, UNSUPPORTED
from providers.models import ConfigVersion, Credential, GatewaySettings, Provider, Route

EXAMPLE = """
[server]
bind = "127.0.0.1"
port = 8088
strategy = "round-robin"
health_check_interval_secs = 12

[cache]
enabled = true

[[providers]]
type = "Ollama"
base_url = "http://127.0.0.1:11434"
priority = 1
models = ["llama*", "mistral*"]

[[providers]]
type = "OpenAi"
api_key = "$OPENAI_KEY"
models = ["gpt-*", "o1-*"]
max_tokens_limit = 4096

[[providers]]
type = "Whisper"
api_key = "$WHISPER_KEY"
models = ["whisper-*"]

[[budgets]]
name = "default"
capacity = 100000

[[budgets]]
name = "testing"
capacity = 500

[auth]
tokens = ["plain-token-0123456789", "$TEAM_TOKEN"]

[audit]
enabled = true
signing_key = "very-secret-signing-key"
"""
ENVIRON = {"OPENAI_KEY": "sk-openai-123456", "TEAM_TOKEN": "team-token-0123456789"}


def plan(text: str, environ: dict[str, str] | None = None) -> hoosh_toml.Plan:
    return hoosh_toml.parse(hoosh_toml.load(text.encode()), environ or {})


# Reading: pure


def test_the_example_becomes_providers_routes_pools_and_tokens() -> None:
    found = plan(EXAMPLE, ENVIRON)
    assert [(entry.kind, entry.base_url) for entry in found.providers] == [
        ("ollama", "http://127.0.0.1:11434"),
        ("openai", ""),
    ]
    ollama, openai = found.providers
    assert [(route.pattern, route.priority, route.output_cap) for route in ollama.routes] == [
        ("llama*", 1, None),
        ("mistral*", 1, None),
    ]
    assert [(route.pattern, route.priority, route.output_cap) for route in openai.routes] == [
        ("gpt-*", 10, 4096),
        ("o1-*", 10, 4096),
    ]
    assert openai.secret is not None
    assert openai.secret.text == "sk-openai-123456"
    assert [(pool.name, pool.capacity_tokens) for pool in found.pools] == [("default", 100_000), ("testing", 500)]
    assert [token.text for token in found.tokens] == ["plain-token-0123456789", "team-token-0123456789"]
    assert found.settings == {"strategy": "round_robin", "probe_interval_s": 12.0}
    assert (found.errors, found.unknown, found.warnings) == ([], [], [])


def test_what_has_no_effect_is_listed_with_value_and_reason_and_without_secrets() -> None:
    found = {finding.key: finding for finding in plan(EXAMPLE).unsupported}
    assert set(found) == {
        "server.bind",
        "server.port",
        "providers[3].type",
        "audit.enabled",
        "audit.signing_key",
    }
    assert found["providers[3].type"].value == '"Whisper"'
    assert "PORT" in found["server.port"].why
    assert found["audit.signing_key"].value == "(secret)"
    assert "very-secret" not in str(plan(EXAMPLE).unsupported)


@pytest.mark.parametrize(
    ("table", "seconds", "remarks"),
    [
        ("", None, 0),
        ("[cache]\nenabled = true", 300, 0),
        ("[cache]\nttl_secs = 60", 60, 0),
        ("[cache]\nenabled = false\nttl_secs = 60", 0, 0),
        ("[cache]\nttl_secs = 0", 0, 1),
        ("[cache]\nttl_secs = -1", 0, 1),
        ("[cache]\nttl_secs = 10000000", 7 * 86_400, 1),
    ],
)
def test_how_long_answers_are_kept_is_said_of_every_route(table: str, seconds: int | None, remarks: int) -> None:
    found = plan(table + '\n[[providers]]\ntype = "demo"\nmodels = ["a", "b"]')
    assert [route.cache_s for route in found.providers[0].routes] == [seconds, seconds]
    assert len(found.unsupported) == remarks


def test_every_known_key_either_has_an_effect_or_a_reason() -> None:
    effective = {
        "server.strategy",
        "server.health_check_interval_secs",
        *("cache.enabled", "cache.ttl_secs"),
        "budgets.name",
        "budgets.capacity",
        "auth.tokens",
        *(f"providers.{key}" for key in ["type", "base_url", "api_key", "priority", "models", "enabled"]),
        *("providers.rate_limit_rpm", "providers.rate_limit"),
        "providers.max_tokens_limit",
        "providers.tls_pinned_certs",
        *("dlp.enabled", "dlp.default_level", "dlp_pattern.name", "dlp_pattern.pattern", "dlp_pattern.level"),
    }
    known = {f"{section}.{key}" for section, names in SECTIONS.items() for key in names}
    assert known == effective | set(UNSUPPORTED)
    assert not effective & set(UNSUPPORTED)
    assert len(known) == 54


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_both_spellings_of_a_section_are_read(section: str) -> None:
    unsupported = [key for key in sorted(SECTIONS[section]) if f"{section}.{key}" in UNSUPPORTED]
    for opening in (f"[{section}]", f"[[{section}]]"):
        body = "\n".join(f'{key} = "x"' for key in unsupported)
        found = plan(f"{opening}\n{body}\n")
        assert found.unknown == []
        listed = [finding.key.split(".")[1] for finding in found.unsupported if not finding.key.endswith(".type")]
        assert sorted(listed) == unsupported


def test_unknown_sections_and_keys_are_listed() -> None:
    found = plan('top = 1\n[nope]\nx = 1\n[server]\nprot = 1\n[[providers]]\ntype = "ollama"\nmodel = "x"\n')
    assert found.unknown == ["top", "nope", "server.prot", "providers[1].model"]


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("Ollama", "ollama"),
        ("LlamaCpp", "llamacpp"),
        ("llama.cpp", "llamacpp"),
        ("LmStudio", "lmstudio"),
        ("lm-studio", "lmstudio"),
        ("LocalAi", "localai"),
        ("OPENAI", "openai"),
        ("DeepSeek", "deepseek"),
        ("Synapse", "synapse"),
        ("Mistral", "mistral"),
        ("Groq", "groq"),
        ("Grok", "grok"),
        ("xAI", "grok"),
        ("OpenRouter", "openrouter"),
        ("vLLM", "vllm"),
        ("tensorrt", "tensorrt"),
        ("tensorrt-llm", "tensorrt"),
        ("TRTLLM", "tensorrt"),
        ("onnx", "onnx"),
        ("OnnxRuntime", "onnx"),
    ],
)
def test_all_spellings_of_a_type_are_known(written: str, kind: str) -> None:
    assert [entry.kind for entry in plan(f'[[providers]]\ntype = "{written}"\n').providers] == [kind]


def test_types_we_do_not_have_are_listed_and_do_not_stop_the_rest() -> None:
    names = ["Whisper", "nonsense"]
    text = "".join(f'[[providers]]\ntype = "{name}"\n' for name in names) + '[[providers]]\ntype = "ollama"\n'
    found = plan(text)
    assert [finding.key for finding in found.unsupported] == [f"providers[{n}].type" for n in (1, 2)]
    assert "no such type" in found.unsupported[1].why
    assert [entry.kind for entry in found.providers] == ["ollama"]
    assert found.errors == []


def test_every_type_of_both_generations_is_known() -> None:
    generations = (
        "ollama llamacpp synapse lmstudio localai openai anthropic deepseek mistral google groq grok openrouter"
    )
    assert set(f"{generations} whisper vllm tensorrt onnx".split()) <= set(KINDS.values())


@pytest.mark.parametrize(
    ("written", "used", "remarks"),
    [
        ("priority", "priority", 0),
        ("round_robin", "round_robin", 0),
        ("round-robin", "round_robin", 0),
        ("RoundRobin", "round_robin", 0),
        ("lowest-latency", "lowest_latency", 0),
        ("direct", "priority", 1),
        ("magic", None, 1),
    ],
)
def test_strategies_of_both_generations(written: str, used: str | None, remarks: int) -> None:
    found = plan(f'[server]\nstrategy = "{written}"\n')
    assert found.settings.get("strategy") == used
    assert len(found.unsupported) == remarks


def test_defaults_are_those_of_the_second_generation_except_the_priority() -> None:
    entry = plan("[[providers]]\nmodels = []\n").providers[0]
    assert entry.kind == "ollama"
    assert [(r.pattern, r.priority, r.output_cap, r.enabled) for r in entry.routes] == [("*", 10, None, True)]


def test_entries_with_the_same_address_and_secret_are_one_provider() -> None:
    text = """
    [[providers]]
    type = "vllm"
    models = ["a"]
    [[providers]]
    type = "vllm"
    models = ["b"]
    priority = 5
    enabled = false
    [[providers]]
    type = "vllm"
    api_key = "k"
    """
    first, second = plan(text).providers
    assert first.secret is None
    assert [(r.pattern, r.priority, r.enabled) for r in first.routes] == [("a", 10, True), ("b", 5, False)]
    assert first.enabled
    assert second.secret is not None


def test_the_rate_limits_of_both_generations_are_the_providers_and_the_lowest_counts() -> None:
    entry = '[[providers]]\ntype = "openai"\nmodels = ["{}"]\n'
    found = plan(entry.format("a*") + "rate_limit_rpm = 90\n" + entry.format("b*") + "rate_limit = 60\n")
    assert [provider.requests_per_minute for provider in found.providers] == [60]
    assert found.warnings == ["providers[2]: its provider has several rate limits; the lowest counts."]
    for written in ("", "rate_limit = 0\n", "rate_limit_rpm = 0\n"):
        (alone,) = plan(entry.format("*") + written).providers
        assert alone.requests_per_minute is None
    assert plan(entry.format("*") + "rate_limit = -1\n").errors


def test_unset_variables_of_different_names_are_different_secrets() -> None:
    entry = '[[providers]]\ntype = "openai"\napi_key = "{}"\n'
    found = plan("".join(entry.format(key) for key in ("$ONE", "${TWO}", "${ONE}", "sk-literal")))
    assert [each.secret and each.secret.identity for each in found.providers] == [
        ("$", "ONE"),
        ("$", "TWO"),
        ("", "sk-literal"),
    ]


def test_an_unset_variable_is_told_and_means_no_secret() -> None:
    found = plan('[[providers]]\ntype = "openai"\napi_key = "$NOPE"\n[auth]\ntokens = ["${NOPE}", ""]\n')
    assert found.providers[0].secret is not None
    assert found.providers[0].secret.text is None
    assert found.tokens == []
    assert not found.tokens_known
    assert len(found.warnings) == 3
    assert plan('[auth]\ntokens = [""]\n').tokens_known


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nhealth_check_interval_secs = -1",
        "[server]\nstrategy = 5",
        "[[providers]]\ntype = 1",
        '[[providers]]\ntype = "ollama"\nmodels = "llama*"',
        '[[providers]]\ntype = "ollama"\nmodels = [1]',
        '[[providers]]\ntype = "ollama"\npriority = true',
        '[[providers]]\ntype = "ollama"\nenabled = "yes"',
        '[[budgets]]\nname = "x"',
        '[[budgets]]\nname = "x"\ncapacity = "many"',
        '[[budgets]]\nname = "x"\ncapacity = -5',
        '[[budgets]]\nname = "x"\ncapacity = 1\n[[budgets]]\nname = "x"\ncapacity = 2',
        "providers = 3",
        "auth = [1]",
    ],
)
def test_wrong_values_are_errors_not_defaults(text: str) -> None:
    assert plan(text).errors


@pytest.mark.parametrize("data", [b"= 1", b"\xff\xfe", b"a = [" * 5000, b"a = " + b"9" * 5000, b"[a]\n[a]\n"])
def test_what_is_no_toml_is_refused_without_quoting_it(data: bytes) -> None:
    with pytest.raises(hoosh_toml.HooshTomlError):
        hoosh_toml.load(data)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[[budgets]]\nname = "a\\u0000b"', r"budgets\[1\]\.name holds a NUL"),
        ('[server]\n"a\\u0000b" = 1', r"The key a\?b holds a NUL"),
        ('[auth]\ntokens = ["x", "\\u0000"]', r"auth\.tokens\[2\] holds a NUL"),
        ("[server]\nport = 9223372036854775808", r"server\.port is a number beyond 64 bits"),
        (f"[server]\nport = 0x{'f' * 5000}", r"server\.port is a number beyond 64 bits"),
        (f"[cache]\nenabled{'.a' * 5000} = 1", r"nested more than 32 deep"),
    ],
)
def test_values_no_database_could_hold_are_refused_by_place(text: str, place: str) -> None:
    with pytest.raises(hoosh_toml.HooshTomlError, match=place):
        hoosh_toml.load(text.encode())


def test_a_syntax_error_does_not_show_the_line_that_may_hold_a_secret() -> None:
    with pytest.raises(hoosh_toml.HooshTomlError) as caught:
        hoosh_toml.load(b'[x]\napi_key = "sk-secret" oops\n')
    assert "line 2" in str(caught.value)
    assert "secret" not in str(caught.value)


# Applying


@pytest.mark.database
class ImportTests(TestCase):
    databases = "__all__"

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "hoosh.toml"
        environ = mock.patch.dict(os.environ, ENVIRON)
        environ.start()
        self.addCleanup(environ.stop)

    def load(self, text: str = EXAMPLE, **options: bool) -> Report:
        self.path.write_text(text, encoding="utf-8")
        return import_file(self.path, "tester", **options)

    def names(self) -> list[str]:
        return list(Route.objects.order_by("name").values_list("name", flat=True))

    def test_the_example_is_imported_and_published_once(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            report = self.load()
        self.assertEqual(ConfigVersion.objects.count(), 1)
        self.assertEqual(report.version, ConfigVersion.objects.get().number)
        self.assertEqual(self.names(), ["ollama:llama*", "ollama:mistral*", "openai:gpt-*", "openai:o1-*"])
        self.assertEqual(Provider.objects.get(name="openai").base_url, "https://api.openai.com")
        credential = Credential.objects.get()
        self.assertEqual(services.read_secret(credential), ENVIRON["OPENAI_KEY"])
        self.assertEqual(
            dict(Pool.objects.values_list("name", "capacity_tokens")), {"default": 100_000, "testing": 500}
        )
        digests = {keys.digest_of("plain-token-0123456789"), keys.digest_of(ENVIRON["TEAM_TOKEN"])}
        self.assertEqual(set(ApiKey.objects.values_list("digest", flat=True)), digests)
        self.assertEqual(set(ApiKey.objects.values_list("pool__name", flat=True)), {"default"})
        row = GatewaySettings.objects.get()
        self.assertEqual((row.strategy, row.probe_interval_s), ("round_robin", 12.0))
        self.assertTrue(any("Whisper" in line for line in report.unsupported))

    def test_a_check_says_what_an_import_would_do_and_does_nothing(self) -> None:
        self.path.write_text(EXAMPLE, encoding="utf-8")
        said = check_file(self.path).changes
        self.assertEqual((Route.objects.count(), Pool.objects.count(), ApiKey.objects.count()), (0, 0, 0))
        self.assertEqual((ConfigVersion.objects.count(), OutboxEntry.objects.count()), (0, 0))
        self.assertEqual(self.load().changes, said)
        self.assertTrue(any("testing" in line for line in said))

    def test_a_check_refuses_what_the_import_refuses(self) -> None:
        for text in (
            "hoosh_configuration = 1\n[settings]\nmax_attempts = 99\n",
            'hoosh_configuration = 1\n[settings]\nstrategy = "bogus"\n',
            'hoosh_configuration = 1\n[[pool]]\nname = "p"\ncapacity_tokens = -1\n',
        ):
            self.path.write_text(text, encoding="utf-8")
            with self.assertRaises(ImportFileError) as checked:
                check_file(self.path)
            with self.assertRaises(ImportFileError) as imported:
                self.load(text)
            self.assertEqual(str(checked.exception), str(imported.exception))

    def test_our_own_format_says_nothing_about_keys_so_they_stay(self) -> None:
        self.load()
        self.load("hoosh_configuration = 1\n")
        self.assertEqual(ApiKey.objects.filter(revoked_at__isnull=True).count(), 2)

    def test_no_secret_is_recorded_or_reported(self) -> None:
        report = self.load()
        seen = str(report.as_dict()) + str(list(OutboxEntry.objects.values_list("target", "data")))
        for secret in (*ENVIRON.values(), "very-secret-signing-key", "plain-token-0123456789"):
            self.assertNotIn(secret, seen)

    def test_importing_again_changes_nothing(self) -> None:
        self.load()
        before = (
            list(Provider.objects.values()),
            list(Route.objects.values()),
            list(Credential.objects.values()),
            list(ApiKey.objects.values()),
            list(Pool.objects.values()),
            access.sequences(),
        )
        report = self.load()
        self.assertEqual(report.changes, [])
        after = (
            list(Provider.objects.values()),
            list(Route.objects.values()),
            list(Credential.objects.values()),
            list(ApiKey.objects.values()),
            list(Pool.objects.values()),
            access.sequences(),
        )
        self.assertEqual(after, before)
        self.assertEqual(ConfigVersion.objects.count(), 1)

    def test_an_unchanged_file_is_not_imported_again_but_a_changed_variable_counts(self) -> None:
        self.path.write_text(EXAMPLE)
        self.assertIsNotNone(import_if_changed(self.path))
        self.assertIsNone(import_if_changed(self.path))
        with mock.patch.dict(os.environ, {"OPENAI_KEY": "sk-openai-rotated"}):
            report = import_if_changed(self.path)
            self.assertIsNotNone(report)
            self.assertEqual(services.read_secret(Credential.objects.get()), "sk-openai-rotated")
        self.path.write_text(EXAMPLE + "\n# a comment\n")
        self.assertIsNotNone(import_if_changed(self.path))

    def test_a_failed_import_at_start_is_recorded(self) -> None:
        self.path.write_text("not toml")
        with self.assertRaises(ImportFileError):
            import_if_changed(self.path)
        entry = OutboxEntry.objects.get(action="config.import_failed")
        self.assertEqual((entry.level, entry.target), ("error", str(self.path)))

    def test_what_the_file_no_longer_names_is_removed_and_comes_back_with_it(self) -> None:
        self.load()
        report = self.load('[[providers]]\ntype = "ollama"\nmodels = ["phi*"]\n')
        self.assertEqual(self.names(), ["ollama:phi*"])
        self.assertEqual(list(Provider.objects.values_list("name", flat=True)), ["ollama"])
        self.assertEqual(Credential.objects.count(), 0)
        self.assertEqual(dict(Pool.objects.values_list("name", "capacity_tokens")), {"default": 10_000_000})
        self.assertFalse(ApiKey.objects.filter(revoked_at=None).exists())
        self.assertTrue(any("create_key" in line for line in report.warnings))
        self.load()
        self.assertEqual(ApiKey.objects.filter(revoked_at=None).count(), 2)
        self.assertEqual(Pool.objects.get(name="default").capacity_tokens, 100_000)

    def test_what_hooshs_file_cannot_say_of_a_pool_is_left_as_it_is(self) -> None:
        self.load()
        pool = Pool.objects.get(name="testing")
        pool.window, pool.capacity_usd, pool.mode = "day", Decimal(3), "soft"
        access.save_pool(pool, actor="op")
        since = Pool.objects.get(name="testing").window_since
        self.load(EXAMPLE + "\n# again\n")
        pool = Pool.objects.get(name="testing")
        self.assertEqual((pool.window, pool.capacity_usd, pool.mode), ("day", Decimal(3), "soft"))
        self.assertEqual((pool.capacity_tokens, pool.window_since), (500, since))

    def test_rows_of_operators_are_neither_changed_nor_removed(self) -> None:
        mine = services.save_provider(Provider(name="ollama", kind="ollama"), actor="op")
        services.save_route(Route(name="ollama:llama*", pattern="x", provider=mine), actor="op")
        access.save_pool(Pool(name="testing", capacity_tokens=7), actor="op")
        report = self.load()
        self.assertEqual(Provider.objects.get(name="ollama").managed_by, "")
        self.assertEqual(Route.objects.get(name="ollama:llama*").pattern, "x")
        self.assertEqual(Route.objects.get(name="ollama-2:llama*").provider.name, "ollama-2")
        self.assertEqual(Pool.objects.get(name="testing").capacity_tokens, 7)
        self.assertTrue(any("testing" in line for line in report.warnings))
        self.load("")
        self.assertEqual(self.names(), ["ollama:llama*"])

    def test_an_imported_provider_an_operator_routes_to_is_only_disabled(self) -> None:
        self.load()
        provider = Provider.objects.get(name="ollama")
        services.save_route(Route(name="mine", pattern="x", provider=provider), actor="op")
        self.load("")
        self.assertEqual(self.names(), ["mine"])
        self.assertFalse(Provider.objects.get(name="ollama").enabled)

    def test_a_key_an_operator_revoked_stays_revoked(self) -> None:
        self.load()
        row = ApiKey.objects.get(digest=keys.digest_of("plain-token-0123456789"))
        keys.revoke_key(row, actor="op")
        report = self.load(EXAMPLE + "\n#\n")
        self.assertIsNotNone(ApiKey.objects.get(pk=row.pk).revoked_at)
        self.assertTrue(any("stays so" in line for line in report.warnings))

    def test_a_credential_typed_by_an_operator_stays(self) -> None:
        text = '[[providers]]\ntype = "openai"\n'
        self.load(text)
        services.set_credential(Provider.objects.get(), "mine", "sk-typed-by-hand", actor="op")
        self.load(text + "# again\n")
        self.assertEqual(Credential.objects.get().name, "mine")

    def test_an_unset_variable_keeps_the_stored_secret(self) -> None:
        self.load()
        with mock.patch.dict(os.environ, {"OPENAI_KEY": ""}):
            report = self.load()
        self.assertEqual(services.read_secret(Credential.objects.get()), ENVIRON["OPENAI_KEY"])
        self.assertTrue(any("stays in use" in line for line in report.warnings))

    def test_unset_variables_merge_and_remove_no_provider(self) -> None:
        entry = '[[providers]]\ntype = "openai"\napi_key = "${}"\nmodels = ["{}"]\n'
        text = entry.format("OPENAI_KEY", "a") + entry.format("TEAM_TOKEN", "b")
        self.load(text)
        with mock.patch.dict(os.environ, {"OPENAI_KEY": "", "TEAM_TOKEN": ""}):
            self.assertEqual(self.load(text).changes, [])
        found = {each.provider.name: services.read_secret(each) for each in Credential.objects.all()}
        self.assertEqual(found, {"openai": ENVIRON["OPENAI_KEY"], "openai-2": ENVIRON["TEAM_TOKEN"]})

    def test_while_a_token_is_not_known_none_is_revoked(self) -> None:
        self.load()
        with mock.patch.dict(os.environ, {"TEAM_TOKEN": ""}):
            report = self.load(EXAMPLE.replace("plain-token", "other-token"))
        self.assertEqual(ApiKey.objects.filter(revoked_at=None).count(), 3)
        self.assertIn("Not all tokens are known; none was revoked.", report.warnings)
        self.assertFalse(any("create_key" in line for line in report.warnings))
        self.load(EXAMPLE.replace("plain-token", "other-token"))
        self.assertEqual(ApiKey.objects.filter(revoked_at=None).count(), 2)

    def test_what_would_end_in_a_traceback_is_refused_and_recorded(self) -> None:
        ours = "hoosh_configuration = 1\n"
        price = ours + '[[price]]\nprovider = "*"\npattern = "*"\n'
        for bad, words in (
            ('[[budgets]]\nname = "a\\u0000b"\ncapacity = 5\n', "NUL"),
            (ours + '[[provider]]\nname = "a\\u0000b"\nkind = "vllm"\n', "NUL"),
            (ours + f"[settings]\nconnect_timeout_s = 1{'0' * 400}\n", "64 bits"),
            (price + "valid_from = 0001-01-01T00:00:00+10:00\n", "price[1].valid_from"),
            (price + "valid_from = 9999-12-31T23:59:59-10:00\n", "price[1].valid_from"),
            (price + 'valid_from = 2026-01-01T00:00:00Z\ninput_usd_per_mtok = "1e30"\n', "price of * *"),
            ('[[providers]]\ntype = "openai"\napi_key = "$AWAY"\n', "AWAY_FILE"),
        ):
            self.path.write_text(bad, encoding="utf-8")
            away = mock.patch.dict(os.environ, {"AWAY_FILE": "/nowhere/at/all"})
            with away, self.assertRaises(ImportFileError) as caught:
                import_if_changed(self.path)
            self.assertIn(words, str(caught.exception))
            entry = OutboxEntry.objects.filter(action="config.import_failed").latest("id")
            self.assertIn(words, entry.data["reason"])
        self.assertEqual(OutboxEntry.objects.filter(action="config.import_failed").count(), 7)

    def test_a_refused_file_changes_nothing(self) -> None:
        self.load()
        before = publish.latest()
        for bad in (
            EXAMPLE.replace("capacity = 500", 'capacity = "x"'),
            EXAMPLE.replace('"mistral*"', '""'),
            EXAMPLE.replace("http://127.0.0.1:11434", "http://169.254.169.254"),
            EXAMPLE.replace("http://127.0.0.1:11434", "ftp://x"),
            EXAMPLE.replace("plain-token-0123456789", "with blank"),
            EXAMPLE.replace('type = "Ollama"', 'type = "Ollama"\ntls_pinned_certs = ["missing.pem"]'),
            "not toml",
        ):
            with self.assertRaises(ImportFileError):
                self.load(bad)
        self.assertEqual(publish.latest(), before)
        self.assertEqual(len(self.names()), 4)
        self.assertEqual(OutboxEntry.objects.filter(action="config.imported").count(), 1)

    def test_a_missing_file_is_refused(self) -> None:
        with self.assertRaises(ImportFileError):
            import_file(self.path / "nope", "tester")

    def test_a_check_changes_nothing(self) -> None:
        self.path.write_text(EXAMPLE)
        report = check_file(self.path)
        self.assertTrue(report.unsupported)
        self.assertEqual((Provider.objects.count(), ApiKey.objects.count()), (0, 0))

    def test_a_name_that_does_not_resolve_now_does_not_stop_the_import(self) -> None:
        report = self.load(
            '[[providers]]\ntype = "ollama"\nbase_url = "http://ollama.invalid:11434"\n'
            '[[providers]]\ntype = "openai"\nbase_url = "https://gateway.invalid/v1"\n'
        )
        self.assertEqual(
            dict(Provider.objects.values_list("base_url", "address_class")),
            {"http://ollama.invalid:11434": "private", "https://gateway.invalid": "public"},
        )
        self.assertEqual(len([line for line in report.warnings if "cannot be resolved" in line]), 2)

    def test_pinned_certificates_become_the_only_trusted_ones(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now)
        pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        (self.path.parent / "ca.pem").write_text(pem)
        text = '[[providers]]\ntype = "vllm"\ntls_pinned_certs = ["ca.pem"]\n'
        self.load(text)
        self.assertEqual(Provider.objects.get().ca_pem, pem.strip())
        self.assertEqual(self.load(text).changes, [])

    def test_two_secrets_for_one_address_are_two_providers(self) -> None:
        text = '[[providers]]\ntype = "openai"\napi_key = "{}"\nmodels = ["{}"]\n'
        both = text.format("sk-one", "a") + text.format("sk-two", "b")
        self.load(both)
        found = {each.provider.name: services.read_secret(each) for each in Credential.objects.all()}
        self.assertEqual(found, {"openai": "sk-one", "openai-2": "sk-two"})
        self.assertEqual(self.load(both).changes, [])
