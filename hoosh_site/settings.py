"""Django settings of every process. Behaviour of the gateway itself is a GatewaySettings row, not a setting here.

All environment variables are listed in docs/configuration.md.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import secrets
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import dj_database_url
from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from hoosh_site import __version__, env
from hoosh_site.people.roles import ROLES

BASE_DIR = env.PROJECT_DIR
HOOSH_VERSION = __version__

# --- where things are -------------------------------------------------------------------------------------------
HOOSH_DATA_DIR = env.data_dir()
HOOSH_KEYS_DIR = HOOSH_DATA_DIR / "keys"
HOOSH_JOURNAL_DIR = HOOSH_DATA_DIR / "journal"
HOOSH_LOG_DIR = HOOSH_DATA_DIR / "log"


def _run_dir() -> Path:
    """Sockets and status files. A Unix socket's path may have 107 bytes, so a long data directory gets a short twin."""
    chosen = HOOSH_DATA_DIR / "run"
    if len(os.fsencode(chosen / "control.sock")) <= 100:
        return chosen
    name = hashlib.sha256(os.fsencode(HOOSH_DATA_DIR)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"hoosh-{os.getuid()}-{name}"


HOOSH_RUN_DIR = _run_dir()
HOOSH_CONTROL_SOCKET = HOOSH_RUN_DIR / "control.sock"  # HTTP, hardened Daphne
HOOSH_LINK_SOCKET = HOOSH_RUN_DIR / "link.sock"  # grants, configuration, access: control <-> workers
HOOSH_METRICS_DIR = HOOSH_RUN_DIR / "metrics"  # prometheus_client multiprocess files
HOOSH_FIRST_RUN_FILE = HOOSH_DATA_DIR / "first-run.txt"

# --- the process and the host -----------------------------------------------------------------------------------
HOOSH_ROLE = env.text("HOOSH_ROLE", "all")  # "control" and "worker" are set by the supervisor
HOOSH_BIND = env.text("HOOSH_BIND", "127.0.0.1")
HOOSH_PORT = env.integer("PORT", 8088, minimum=1, maximum=65535)
HOOSH_WORKERS = env.integer("HOOSH_WORKERS", 1, minimum=1, maximum=256)
HOOSH_DRAIN_S = env.integer("HOOSH_DRAIN_S", 30, minimum=1, maximum=3600)  # how long running streams may take at a stop
HOOSH_CONFIG = env.text("HOOSH_CONFIG")
HOOSH_CONFIG_IMPORTER = "hoosh_site.importing.import_if_changed"  # for the API, which must not import this package
HOOSH_EMBEDDER = Path(_folder) if (_folder := env.text("HOOSH_EMBEDDER")) else None  # a model2vec folder
HOOSH_PUBLIC_URL = env.text("HOOSH_PUBLIC_URL").rstrip("/")
HOOSH_TRUSTED_PROXIES = env.items("HOOSH_TRUSTED_PROXIES")  # addresses or networks whose X-Forwarded-* are believed
HOOSH_ACCESS_LOG = env.text("HOOSH_ACCESS_LOG", str(HOOSH_LOG_DIR / "access.jsonl"))  # path, "-" or "off"
HOOSH_JOURNAL_SYNC = env.text("HOOSH_JOURNAL_SYNC", "process")  # "process" (survives kill -9) or "host" (fdatasync)

DEBUG = env.boolean("HOOSH_DEBUG", default=False)
TESTING = "pytest" in sys.modules or env.boolean("HOOSH_TESTING", default=False)


def _session_key() -> str:
    """The secret made by `manage.py init`. Commands that need none (check, tests, init) get one for this process.

    `serve` refuses a file that cannot be used, see `hoosh_site.checks`.
    """
    path = HOOSH_KEYS_DIR / "session.key"
    try:
        found = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        found = ""
    return found or secrets.token_urlsafe(48)


SECRET_KEY = env.text("HOOSH_SECRET_KEY") or _session_key()


def _allowed_hosts() -> list[str]:
    hosts = ["localhost", "127.0.0.1", "[::1]", *env.items("HOOSH_ALLOWED_HOSTS")]
    if HOOSH_BIND not in ("127.0.0.1", "0.0.0.0", "::", "localhost"):  # noqa: S104 - compared, not bound
        hosts.append(HOOSH_BIND)
    try:
        hosts.append(urlsplit(HOOSH_PUBLIC_URL).hostname or "")
    except ValueError as exc:  # a bracket that is not closed
        form = "https://name[:port], without a path"
        raise ImproperlyConfigured(f"HOOSH_PUBLIC_URL is {HOOSH_PUBLIC_URL!r}. Write it as {form}.") from exc
    return list(dict.fromkeys(_as_in_host_header(host) for host in hosts if host))


def _as_in_host_header(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return f"[{address}]" if address.version == 6 else str(address)


ALLOWED_HOSTS = _allowed_hosts()
CSRF_TRUSTED_ORIGINS = [HOOSH_PUBLIC_URL] if HOOSH_PUBLIC_URL else []

# --- applications -----------------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "daphne",  # first: gives runserver the ASGI server
    "hoosh_site.apps.HooshSiteConfig",
    "hoosh_site.admin_site.HooshAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.forms",  # its templates, for the renderer below
    "channels",
    "csp",
    "rest_framework",
    "drf_spectacular",
    "django_prometheus",
    "audit.apps.AuditConfig",
    "events.apps.EventsConfig",
    "providers.apps.ProvidersConfig",
    "budgets.apps.BudgetsConfig",
    "gateway.apps.GatewayConfig",
    "hoosh_site.people.apps.PeopleConfig",
]
MIDDLEWARE = [
    "gateway.page_metrics.BeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "hoosh_site.people.middleware.SecondFactorMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "gateway.page_metrics.AfterMiddleware",
]
ROOT_URLCONF = "hoosh_site.urls"
ASGI_APPLICATION = "hoosh_site.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
FORM_RENDERER = "django.forms.renderers.TemplatesSetting"  # fields may have templates of ours
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- databases: site and ledger are two files on SQLite, one database on PostgreSQL ------------------------------
_SQLITE_INIT = "PRAGMA journal_mode=WAL;PRAGMA synchronous=FULL;"
_SQLITE_OPTIONS = {"timeout": 20, "transaction_mode": "IMMEDIATE"}
# What is deleted is overwritten: the audit log promises it of people who are erased. The ledger, which deletes much,
# overwrites only pages that are written anyway, and all of them while somebody is erased.
_SITE_OPTIONS = {**_SQLITE_OPTIONS, "init_command": f"{_SQLITE_INIT}PRAGMA secure_delete=ON;"}
# In a file made with auto_vacuum, the room of deleted rows can be given back to the file system.
_LEDGER_INIT = f"PRAGMA auto_vacuum=INCREMENTAL;{_SQLITE_INIT}PRAGMA secure_delete=FAST;"
_LEDGER_OPTIONS = {**_SQLITE_OPTIONS, "init_command": _LEDGER_INIT}


def _databases() -> dict[str, dict[str, object]]:
    url = env.text("DATABASE_URL")
    if url:
        form = "postgres://user:password@host:5432/name"
        try:
            # Each request of control runs in a thread of its own: a connection kept for later is never found again.
            database = {**dj_database_url.parse(url, conn_max_age=0)}
        except (ValueError, KeyError):  # the message would quote the password
            raise ImproperlyConfigured(f"DATABASE_URL cannot be read. Write it as {form}.") from None
        if database["ENGINE"] != "django.db.backends.postgresql":
            raise ImproperlyConfigured(
                f"DATABASE_URL must name a PostgreSQL database: {form}. Leave it unset for SQLite, whose files lie in "
                "the data directory."
            )
        return {"default": database}
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": _SITE_OPTIONS}
    # Tests use real files: the ledger's writer is a thread with a connection of its own.
    return {
        "default": {
            **sqlite,
            "NAME": HOOSH_DATA_DIR / "site.sqlite3",
            "TEST": {"NAME": HOOSH_DATA_DIR / "test-site.sqlite3"},
        },
        "ledger": {
            **sqlite,
            "OPTIONS": _LEDGER_OPTIONS,
            "NAME": HOOSH_DATA_DIR / "ledger.sqlite3",
            "TEST": {"NAME": HOOSH_DATA_DIR / "test-ledger.sqlite3"},
        },
    }


DATABASES = _databases()
HOOSH_LEDGER_DB = "ledger" if "ledger" in DATABASES else "default"
# How long usage rows are kept, and how many at most (0 = no such limit): a SQLite file is to stay below 10 GB.
HOOSH_USAGE_DAYS = env.integer("HOOSH_USAGE_DAYS", 30, minimum=1, maximum=3650)
_USAGE_ROWS = 20_000_000 if HOOSH_LEDGER_DB == "ledger" else 0
HOOSH_USAGE_ROWS = env.integer("HOOSH_USAGE_ROWS", _USAGE_ROWS, minimum=0, maximum=10**12)
HOOSH_DISK_FREE_MB = env.integer("HOOSH_DISK_FREE_MB", 512, minimum=0, maximum=10**9)  # less free: less is kept
HOOSH_EVENTS_DAYS = env.integer("HOOSH_EVENTS_DAYS", 30, minimum=1, maximum=3650)  # how long events are kept
HOOSH_ANOMALY_DAYS = env.integer("HOOSH_ANOMALY_DAYS", 180, minimum=1, maximum=3650)  # likewise anomalies


def _events_sample() -> float:
    raw = env.text("HOOSH_EVENTS_SAMPLE", "0")
    try:
        value = float(raw)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:  # also what is no number at all
        raise ImproperlyConfigured(f"HOOSH_EVENTS_SAMPLE must be a number from 0 to 1, not {raw!r}.")
    return value


HOOSH_EVENTS_SAMPLE = _events_sample()  # of the finished calls, how many become events
DATABASE_ROUTERS = ["budgets.router.LedgerRouter"]

# --- the audit log ----------------------------------------------------------------------------------------------
HOOSH_SIGNING_KEY = env.text("HOOSH_SIGNING_KEY")  # PEM, or base64 of the seed; otherwise keys/signing.key
HOOSH_SIGNING_KEY_NEXT = env.text("HOOSH_SIGNING_KEY_NEXT")  # the one to hand over to
HOOSH_AUDIT_MONTHS = env.integer("HOOSH_AUDIT_MONTHS", 0, minimum=0, maximum=1200)  # whole months kept; 0 = all
HOOSH_AUDIT_ANCHOR_FILE = env.text("HOOSH_AUDIT_ANCHOR_FILE")
HOOSH_AUDIT_ANCHOR_SYSLOG = env.text("HOOSH_AUDIT_ANCHOR_SYSLOG")  # path of a Unix socket, or host:port (UDP)
HOOSH_AUDIT_ANCHOR_S = env.integer("HOOSH_AUDIT_ANCHOR_S", 60, minimum=1, maximum=86_400)

# --- sign-in, cookies, headers ----------------------------------------------------------------------------------
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"  # when no usable address was asked for; from there team leads get to their page
HOOSH_REQUIRE_SECOND_FACTOR = env.boolean("HOOSH_REQUIRE_SECOND_FACTOR", default=False)
HOOSH_SIGN_IN_ATTEMPTS = env.integer("HOOSH_SIGN_IN_ATTEMPTS", 5, minimum=0, maximum=1000)  # 0: never locked out
HOOSH_SIGN_IN_LOCK_MINUTES = env.integer("HOOSH_SIGN_IN_LOCK_MINUTES", 15, minimum=1, maximum=1440)
HOOSH_OIDC_ISSUER = env.text("HOOSH_OIDC_ISSUER")
HOOSH_OIDC_CLIENT_ID = env.text("HOOSH_OIDC_CLIENT_ID")
HOOSH_OIDC_CLIENT_SECRET = env.text("HOOSH_OIDC_CLIENT_SECRET")
HOOSH_OIDC_NAME = env.text("HOOSH_OIDC_NAME")
HOOSH_OIDC_SCOPES = env.items("HOOSH_OIDC_SCOPES", "email,profile")
HOOSH_OIDC_DOMAINS = env.items("HOOSH_OIDC_DOMAINS")
HOOSH_OIDC_GROUPS_CLAIM = env.text("HOOSH_OIDC_GROUPS_CLAIM", "groups")


def _oidc_groups() -> list[tuple[str, str]]:
    """(role, group of the identity provider)."""
    found = []
    for entry in env.items("HOOSH_OIDC_GROUPS"):
        role, equals, group = entry.partition("=")
        if not (equals and group.strip() and role.strip() in ROLES):
            form = "role=group, comma-separated, with the roles " + ", ".join(ROLES)
            raise ImproperlyConfigured(f"HOOSH_OIDC_GROUPS contains {entry!r}. Write {form}.")
        found.append((role.strip(), group.strip()))
    return found


HOOSH_OIDC_GROUPS = _oidc_groups()
_HTTPS = HOOSH_PUBLIC_URL.startswith("https://")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _HTTPS
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_NAME = "hoosh_session"
CSRF_COOKIE_NAME = "hoosh_csrf"
SECURE_HSTS_SECONDS = 31_536_000 if _HTTPS else 0
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "img-src": [SELF, "data:"],
        "object-src": [NONE],
        "base-uri": [SELF],
        "frame-ancestors": [NONE],
        "form-action": [SELF],
    }
}
SILENCED_SYSTEM_CHECKS = [
    "security.W005",  # HSTS for all subdomains binds names that are not ours: the domain owner's decision
    "security.W008",  # redirecting to https is the front proxy's; loopback is served in clear
    "security.W021",  # the browsers' preload list binds the whole domain for years: the domain owner's decision
    *([] if _HTTPS else ["security.W004", "security.W012", "security.W016"]),  # no TLS in front: cookies go in clear
]
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024

# --- the rest ---------------------------------------------------------------------------------------------------
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True
FORMAT_MODULE_PATH = ["hoosh_site.formats"]
STATIC_URL = "/static/"
STATIC_ROOT = HOOSH_DATA_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["gateway.api.authentication.ApiKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["gateway.api.authentication.HasKey"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["gateway.api.parsers.StrictJSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "gateway.api.errors.exception_handler",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Hoosh control API",
    "VERSION": __version__,
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "POSTPROCESSING_HOOKS": [],  # choices stand where they are used
    "PREPROCESSING_HOOKS": ["hoosh_site.management_api.schema.without_twins"],
}
PROMETHEUS_EXPORT_MIGRATIONS = False


def _log_level() -> str:
    level, known = env.text("HOOSH_LOG_LEVEL", "INFO").upper(), logging.getLevelNamesMapping()
    if level not in known:
        raise ImproperlyConfigured(f"HOOSH_LOG_LEVEL must be one of {', '.join(known)}, not {level!r}.")
    return level


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "gateway.logs.JsonFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": _log_level()},
    "loggers": {"httpx": {"level": "WARNING"}},  # otherwise each probe of a provider is a line
}
