"""Signing in by an identity provider: OpenID Connect, authorization code with PKCE (RFC 7636), state and nonce.

The provider's addresses and keys come from its discovery document and are read again when they are an hour old. An ID
token counts only with a signature by one of those keys in an asymmetric algorithm, and with the issuer, audience,
nonce and times OpenID Connect Core 1.0, section 3.1.3.7, asks for. Knows no users: see `oidc_people`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx
from django.conf import settings
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_KEPT_S = 3600.0
_TIMEOUT_S = 5.0
_LEEWAY_S = 60
_BYTES = 512 * 1024


class OidcError(Exception):
    """Nobody is signed in. The message is for the log and the audit entry, and holds no token."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What a browser keeps between leaving for the provider and coming back."""

    state: str
    nonce: str
    verifier: str


@dataclass(slots=True)
class _Provider:
    """What was read of the provider, and when."""

    issuer: str
    metadata: dict[str, Any] = field(default_factory=dict)
    keys: KeySet | None = None
    read_at: float = float("-inf")


_lock = threading.Lock()
_known: list[_Provider] = []


def is_on() -> bool:
    """Whether a provider is set."""
    return bool(settings.HOOSH_OIDC_ISSUER and settings.HOOSH_OIDC_CLIENT_ID)


def name() -> str:
    """What the provider is called on the sign-in page."""
    return str(settings.HOOSH_OIDC_NAME or urlsplit(settings.HOOSH_OIDC_ISSUER).hostname or "")


def is_safe(url: object) -> bool:
    """Whether tokens and secrets may travel there: https, or this host."""
    if not isinstance(url, str):
        return False
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (
            parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        )
    except ValueError:
        return False


def begin(redirect_uri: str) -> tuple[str, Begun]:
    """Where to send the browser, and what it must bring back. Raises `OidcError` when the provider is away."""
    begun = Begun(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48))
    challenge = base64.urlsafe_b64encode(hashlib.sha256(begun.verifier.encode()).digest()).rstrip(b"=").decode()
    query = {
        "response_type": "code",
        "client_id": settings.HOOSH_OIDC_CLIENT_ID,
        "redirect_uri": redirect_uri,
        "scope": " ".join(dict.fromkeys(("openid", *settings.HOOSH_OIDC_SCOPES))),
        "state": begun.state,
        "nonce": begun.nonce,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    address = str(_provider().metadata["authorization_endpoint"])
    return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}", begun


def finish(begun: Begun, answer: Mapping[str, str], redirect_uri: str) -> dict[str, Any]:
    """The claims about who came back with `answer` (the callback's query). Raises `OidcError`."""
    if not secrets.compare_digest(answer.get("state", "").encode(), begun.state.encode()):
        raise OidcError("the state is not the one that was sent")
    if "error" in answer:
        raise OidcError(f"the provider refused: {answer['error'][:100]!r}")
    issuer = answer.get("iss")  # RFC 9207
    if issuer is not None and issuer != settings.HOOSH_OIDC_ISSUER:
        raise OidcError("the answer names another issuer")
    if not answer.get("code"):
        raise OidcError("the answer has no code")
    tokens = _tokens(answer["code"], begun, redirect_uri)
    id_token, access_token = tokens.get("id_token"), tokens.get("access_token")
    if not isinstance(id_token, str):
        raise OidcError("the provider sent no ID token")
    claims = _checked(id_token, begun)
    wanted = {settings.HOOSH_OIDC_GROUPS_CLAIM, "email"}
    if not wanted <= claims.keys() and isinstance(access_token, str):
        claims = _user_info(access_token, claims) | claims
    return claims


def _tokens(code: str, begun: Begun, redirect_uri: str) -> dict[str, Any]:
    """The provider's answer to the code."""
    metadata = _provider().metadata
    client_id, secret = settings.HOOSH_OIDC_CLIENT_ID, settings.HOOSH_OIDC_CLIENT_SECRET
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": begun.verifier,
    }
    headers = {}
    methods = metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
    if secret and "client_secret_basic" in methods:
        pair = f"{quote(client_id, safe='')}:{quote(secret, safe='')}"  # RFC 6749, section 2.3.1
        headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    else:
        form |= {"client_id": client_id} | ({"client_secret": secret} if secret else {})
    return _ask("POST", metadata["token_endpoint"], data=form, headers=headers)


def _checked(token: str, begun: Begun) -> dict[str, Any]:
    """The claims of an ID token that is meant for this sign-in."""
    offered = _provider().metadata.get("id_token_signing_alg_values_supported", ["RS256"])
    algorithms = [each for each in _ALGORITHMS if each in offered]
    try:
        try:
            found = jwt.decode(token, _keys(), algorithms=algorithms)
        except InvalidKeyIdError:  # the provider signs with a new key
            found = jwt.decode(token, _keys(again=True), algorithms=algorithms)
        jwt.JWTClaimsRegistry(
            leeway=_LEEWAY_S,
            iss={"essential": True, "value": settings.HOOSH_OIDC_ISSUER},
            aud={"essential": True, "value": settings.HOOSH_OIDC_CLIENT_ID},
            nonce={"essential": True, "value": begun.nonce},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
        ).validate(found.claims)
    except (JoseError, ValueError, TypeError, KeyError) as exc:
        raise OidcError(f"the ID token does not count: {type(exc).__name__} {exc}"[:300]) from exc
    claims: dict[str, Any] = dict(found.claims)
    audiences = claims["aud"]
    several = isinstance(audiences, list) and len(audiences) > 1
    if (several or "azp" in claims) and claims.get("azp") != settings.HOOSH_OIDC_CLIENT_ID:
        raise OidcError("the ID token was issued to somebody else")
    if not claims["sub"] or len(claims["sub"]) > 250:
        raise OidcError("the ID token has no usable subject")
    return claims


def _user_info(access_token: str, claims: dict[str, Any]) -> dict[str, Any]:
    """What the provider says about the user beside the ID token; nothing where it says it about somebody else."""
    address = _provider().metadata.get("userinfo_endpoint")
    if not is_safe(address):
        return {}
    found = _ask("GET", str(address), headers={"authorization": f"Bearer {access_token}"})
    if found.get("sub") != claims["sub"]:
        raise OidcError("the provider's user information is about somebody else")
    return found


def _provider() -> _Provider:
    """The provider's metadata, read when they are missing or old."""
    issuer = str(settings.HOOSH_OIDC_ISSUER)
    with _lock:
        known = next((each for each in _known if each.issuer == issuer), None)
    if known is not None and time.monotonic() - known.read_at < _KEPT_S:
        return known
    try:
        return _read(issuer)
    except OidcError:
        if known is None:
            raise
        return known  # what was true an hour ago is better than nobody signing in


def _read(issuer: str) -> _Provider:
    metadata = _ask("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if metadata.get("issuer") != issuer:
        raise OidcError(f"the provider calls itself {str(metadata.get('issuer'))[:200]!r}, not {issuer!r}")
    for required in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
        if not is_safe(metadata.get(required)):
            raise OidcError(f"the provider's {required} is missing, or is not https")
    provider = _Provider(issuer, metadata, _key_set(metadata["jwks_uri"]), time.monotonic())
    with _lock:
        _known[:] = [provider]
    return provider


def _keys(*, again: bool = False) -> KeySet:
    provider = _provider()
    if again:
        provider = _read(provider.issuer)
    assert provider.keys is not None
    return provider.keys


def _key_set(address: str) -> KeySet:
    found = _ask("GET", address).get("keys")
    keys = [each for each in found if isinstance(each, dict) and each.get("kty") != "oct"] if found else []
    try:
        return KeySet.import_key_set({"keys": keys})
    except (JoseError, ValueError, TypeError, KeyError) as exc:
        raise OidcError(f"the provider's keys cannot be read: {type(exc).__name__}") from exc


@functools.cache
def _client() -> httpx.Client:
    """One for all sign-ins: to read the authorities' certificates takes longer than all the rest."""
    return httpx.Client(timeout=_TIMEOUT_S)


def _ask(method: str, address: str, **more: Any) -> dict[str, Any]:
    """A JSON object from the provider. Redirects are not followed, so that secrets stay with whom they are for."""
    try:
        with _client().stream(method, address, **more) as response:
            body = b""
            for piece in response.iter_bytes():
                body += piece
                if len(body) > _BYTES:
                    raise OidcError("the provider's answer is too long")
        if response.status_code != 200:
            raise OidcError(f"the provider answered {response.status_code} at {urlsplit(address).path}")
        found = httpx.Response(200, content=body).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as exc:
        raise OidcError(f"the provider cannot be reached or read: {type(exc).__name__}") from exc
    if not isinstance(found, dict):
        raise OidcError("the provider's answer is no JSON object")
    return found
