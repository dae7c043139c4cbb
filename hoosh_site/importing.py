"""Importing a configuration file, hoosh's or our own, as a whole: configuration, pools, tokens, prices, publication."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import transaction

from audit.record import record
from budgets import importing as budgets_importing
from budgets.importing import WantedPool, WantedToken
from budgets.members import WantedMember
from budgets.models import Price
from hoosh_site import env
from providers import drafts, hoosh_toml, importing, publish, services, wanted
from providers.models import ImportState
from providers.vault import VaultError
from providers.wanted import ImportRefusedError, Wanted

FORMAT_KEY = "hoosh_configuration"  # the mark of our own file; its value is the format's number
FORMAT = 1
OUR_KEYS = frozenset(
    {
        *(FORMAT_KEY, "settings", "provider", "route", "policy", "data_pattern", "privacy_policy", "card"),
        *("pool", "team", "agent", "price"),
    }
)


last_failure = ""  # why the file that `import_if_changed` looked at last could not be applied; "" = it was


class ImportFileError(Exception):
    """The file was not imported, or what it made cannot be published; the message says which and why."""


@dataclass(slots=True)
class Report:
    """What an import did. Holds no secret."""

    path: str
    version: int = 0  # the configuration version in force afterwards
    changes: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)  # keys we know but do nothing with, and why
    unknown: list[str] = field(default_factory=list)  # keys neither generation of hoosh has
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


@dataclass(slots=True)
class _File:
    wanted: Wanted
    pools: list[WantedPool]
    tokens: list[WantedToken]
    prices: list[Price]
    report: Report
    tokens_known: bool = True
    teams: list[WantedMember] = field(default_factory=list)
    fingerprint: str = ""


def import_file(path: Path | str, actor: str, *, adopt: bool = False) -> Report:
    """Bring the rows in line with a file and publish. All or nothing. Raises `ImportFileError`.

    `adopt` takes over rows of the same names that an operator made.
    """
    return _apply(_read(Path(path)), actor, adopt=adopt)


def import_text(
    data: bytes, actor: str, *, name: str, variables: Mapping[str, str], adopt: bool = False, check: bool = False
) -> Report:
    """As `import_file` (or, to `check`, `check_file`) for a document that came by the network.

    It draws in nothing of this host: `$NAME` is looked up in `variables` alone, and certificates stand in the document
    itself. Where changes wait as a draft, it becomes part of it. Raises `ImportFileError`.
    """
    try:
        tables = hoosh_toml.load(data)
    except hoosh_toml.HooshTomlError as exc:
        raise ImportFileError(f"{name}: {exc}") from exc
    file = _parsed(data, tables, name, variables, directory=None)
    if check:
        return _checked(file, adopt=adopt)
    if not publish.waits():
        return _apply(file, actor, adopt=adopt)
    _store(file, actor, adopt=adopt)
    return _joined(file, actor, f"import of {name.lower()}")


def _joined(file: _File, actor: str, what: str) -> Report:
    """What was imported is part of the draft."""
    if file.report.changes:
        publish.publish_on_commit(actor, what)
    found = publish.latest()
    file.report.version = found[0] if found is not None else 0
    who = "somebody else" if publish.is_reviewed() else "somebody"
    file.report.warnings.append(f"What was imported waits as a draft for {who} to publish it.")
    return file.report


def import_if_changed(path: Path | str, actor: str = "HOOSH_CONFIG") -> Report | None:
    """Import a file unless the last import was of the same content, variables and certificates; None then."""
    global last_failure
    try:
        file = _read(Path(path))
        is_known = ImportState.objects.filter(pk=1, fingerprint=file.fingerprint).exists()
        report = None if is_known else _apply(file, actor, adopt=False)
        last_failure = ""
        return report
    except ImportFileError as exc:
        last_failure = str(exc)
        record(
            "config.import_failed",
            actor=actor,
            target=str(path)[-200:],
            level="error",
            data={"reason": str(exc)[:2000]},
        )
        raise


class _RolledBackError(Exception):
    """Ends the trial of an import."""


def check_file(path: Path | str, *, adopt: bool = False) -> Report:
    """What an import would do and say, without changing anything. Raises `ImportFileError` as the import would.

    The import is really done, in a transaction that is rolled back.
    """
    return _checked(_read(Path(path)), adopt=adopt)


def _checked(file: _File, *, adopt: bool) -> Report:
    report = file.report
    with _refusals(report.path):
        report.warnings += importing.look_up(file.wanted)
        try:
            with publish.held_back(), transaction.atomic():
                _write(file, "check", adopt=adopt)
                publish.draft_digest()
                raise _RolledBackError
        except _RolledBackError:
            pass
        except publish.PublishError as exc:
            raise ImportFileError(f"{report.path} could be imported, but not published. {exc}") from exc
    return report


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as opened:
            data = opened.read(hoosh_toml.MAX_FILE_BYTES + 1)
        tables = hoosh_toml.load(data)
    except OSError as exc:
        raise ImportFileError(f"{path} cannot be read: {exc.strerror}.") from exc
    except hoosh_toml.HooshTomlError as exc:
        raise ImportFileError(f"{path}: {exc}") from exc
    with _refusals(str(path)):
        environ = {name: env.text(name) for name in hoosh_toml.referenced_variables(data)}
    return _parsed(data, tables, str(path), environ, directory=path.parent)


def _parsed(
    data: bytes, tables: Mapping[str, Any], name: str, environ: Mapping[str, str], *, directory: Path | None
) -> _File:
    report = Report(name)
    with _refusals(name):
        file = _ours(tables, environ, report) if FORMAT_KEY in tables else _theirs(tables, environ, report)
        if directory is not None:
            importing.read_certificates(file.wanted, directory=directory)
        elif any(entry.ca_files for entry in file.wanted.providers):
            raise ImportRefusedError(["Files are not read: write certificates into the document, as ca_pem."])
        file.fingerprint = _fingerprint(data, environ, file.wanted)
    return file


def _theirs(tables: Mapping[str, Any], environ: Mapping[str, str], report: Report) -> _File:
    plan = hoosh_toml.parse(tables, environ)
    report.unsupported = [str(finding) for finding in plan.unsupported]
    report.unknown = plan.unknown
    report.warnings = list(plan.warnings)
    if not plan.tokens and plan.tokens_known:
        report.warnings.append("The file names no token. Here every call needs a key: see `manage.py create_key`.")
    pools = [budgets_importing.plain_pool(pool.name, pool.capacity_tokens) for pool in plan.pools]
    tokens = [WantedToken(token.text, token.origin) for token in plan.tokens if token.text is not None]
    return _File(wanted.from_plan(plan), pools, tokens, [], report, plan.tokens_known)


def _ours(tables: Mapping[str, Any], environ: Mapping[str, str], report: Report) -> _File:
    if tables[FORMAT_KEY] != FORMAT:
        raise ImportRefusedError([f"{FORMAT_KEY} must be {FORMAT}; this file is of another version of the gateway."])
    unknown = [f"{key} is not known." for key in tables if key not in OUR_KEYS]
    if unknown:
        raise ImportRefusedError(unknown)
    pools, teams, prices = budgets_importing.from_tables(tables)
    # This format cannot hold keys, so it says nothing about those an import made: they stay.
    asked = wanted.from_tables(tables, environ)
    return _File(asked, pools, [], prices, report, tokens_known=False, teams=teams)


def _fingerprint(data: bytes, environ: Mapping[str, str], asked: Wanted) -> str:
    """Over the file and everything it draws in; keyed, because environment values are secrets."""
    variables = "\0".join(f"{name}={value}" for name, value in sorted(environ.items()))
    certificates = "\0".join(str(entry.values["ca_pem"]) for entry in asked.providers)
    return services.open_vault().fingerprint(b"\0".join((data, variables.encode(), certificates.encode())))


def _apply(file: _File, actor: str, *, adopt: bool) -> Report:
    report, path = file.report, file.report.path
    joins = publish.waits() and drafts.differs()  # with it a draft would be published that nobody has looked at
    _store(file, actor, adopt=adopt)
    if joins:
        return _joined(file, actor, f"import of {Path(path).name}")
    try:
        report.version = publish.publish(actor, f"import of {Path(path).name}").number
    except publish.PublishError as exc:
        raise ImportFileError(f"{path} was imported, but the configuration cannot be published. {exc}") from exc
    return report


def _store(file: _File, actor: str, *, adopt: bool) -> None:
    report, path = file.report, file.report.path
    with _refusals(path):
        report.warnings += importing.look_up(file.wanted)
        with publish.held_back(), transaction.atomic():
            _write(file, actor, adopt=adopt)
            ImportState.objects.update_or_create(
                pk=1, defaults={"fingerprint": file.fingerprint, "source": path[-500:]}
            )
            data = {"changes": report.changes[:100], "warnings": report.warnings[:100]}
            record("config.imported", actor=actor, target=path[-200:], data=data)


def _write(file: _File, actor: str, *, adopt: bool) -> None:
    made = importing.apply(file.wanted, actor=actor, adopt=adopt)
    spent = budgets_importing.apply(
        *(file.pools, file.tokens, file.prices),
        teams=file.teams,
        actor=actor,
        adopt=adopt,
        tokens_known=file.tokens_known,
    )
    importing.retire_privacy(file.wanted, made, actor=actor)
    file.report.changes = made.changes + spent.changes
    file.report.warnings += made.warnings + spent.warnings


@contextmanager
def _refusals(path: str) -> Iterator[None]:
    """Turn what the applications refuse into one error that lists every place."""
    try:
        yield
    except ImportRefusedError as exc:
        raise _not_imported(path, exc.reasons) from exc
    except ValidationError as exc:
        raise _not_imported(path, exc.messages) from exc
    except (ImproperlyConfigured, VaultError) as exc:  # a file with a variable's value, or the vault's key
        raise _not_imported(path, [str(exc)]) from exc


def _not_imported(path: str, reasons: Iterable[str]) -> ImportFileError:
    return ImportFileError("\n".join([f"{path} was not imported:", *(f"  {each}" for each in reasons)]))
