"""An OpenID Connect provider on loopback: discovery, authorization code with PKCE, signed ID tokens, user information.

It is strict where a real one is (client, redirect address, code once, PKCE), and can be told to be wrong otherwise:
`fault` names what, `claims` and `in_user_info` are what it says about whoever signs in.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

CLIENT, SECRET = "hoosh", "a secret/with+signs"


@functools.cache
def made_key(kid: str) -> RSAKey:
    """A key, made once: that takes a while."""
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig", "alg": "RS256"})


def plain(found: dict[str, Any]) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(found).encode()).rstrip(b"=").decode()


class OidcProvider:
    """Runs from `with` on."""

    def __init__(self) -> None:
        self.key = made_key("one")
        self.claims: dict[str, Any] = {"sub": "u-1", "email": "eve@example.org", "email_verified": True}
        self.in_user_info: dict[str, Any] = {}
        self.fault = ""
        self.asked: list[str] = []
        self._codes: dict[str, dict[str, str]] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider._get(self)

            def do_POST(self) -> None:
                provider._post(self)

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self._server.server_port}/realm"

    def __enter__(self) -> OidcProvider:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def rotate(self) -> None:
        """Sign with a new key from now on."""
        self.key = made_key("two")

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        path = parts.path.removeprefix("/realm")
        self.asked.append(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if path == "/.well-known/openid-configuration":
            self._json(handler, self._metadata())
        elif path == "/jwks":
            self._json(handler, {"keys": [self.key.as_dict(private=False)]})
        elif path == "/authorize":
            self._authorize(handler, query)
        elif path == "/userinfo" and handler.headers["authorization"] == "Bearer access":
            sub = "u-2" if self.fault == "user info of another" else self.claims["sub"]
            self._json(handler, {"sub": sub, **self.in_user_info})
        else:
            self._json(handler, {"error": "not found"}, 404)

    def _metadata(self) -> dict[str, Any]:
        endpoints = {
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
        }
        if self.fault == "token endpoint in clear":
            endpoints["token_endpoint"] = "http://idp.example.org/token"
        issuer = "https://other.example.org" if self.fault == "issuer of another" else self.issuer
        return {"issuer": issuer, "id_token_signing_alg_values_supported": ["RS256"], **endpoints}

    def _authorize(self, handler: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
        assert query["client_id"] == CLIENT
        assert query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        back = {"state": query["state"]}
        if self.fault == "denied":
            back["error"] = "access_denied"
        else:
            code = back["code"] = secrets.token_urlsafe(16)
            self._codes[code] = query
        if self.fault == "state of another":
            back["state"] = "x"
        if self.fault == "iss of another":
            back["iss"] = "https://other.example.org"
        handler.send_response(302)
        handler.send_header("location", f"{query['redirect_uri']}?{urlencode(back)}")
        handler.send_header("content-length", "0")
        handler.end_headers()

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"])).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        self.asked.append("/token")
        _, _, pair = handler.headers.get("authorization", "").partition(" ")
        client, _, secret = base64.b64decode(pair).decode().partition(":")
        begun = self._codes.pop(form.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=")
        if (
            (unquote(client), unquote(secret)) != (CLIENT, SECRET)
            or begun is None
            or form["redirect_uri"] != begun["redirect_uri"]
            or challenge.decode() != begun["code_challenge"]
        ):
            self._json(handler, {"error": "invalid_grant"}, 400)
            return
        self._json(handler, {"access_token": "access", "token_type": "Bearer", "id_token": self._token(begun["nonce"])})

    def _token(self, nonce: str) -> str:
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 60, "nonce": nonce, **self.claims}
        changed: dict[str, dict[str, Any]] = {
            "token of another issuer": {"iss": "https://other.example.org"},
            "token for another client": {"aud": "somebody"},
            "token for several": {"aud": [CLIENT, "somebody"]},
            "token issued to another": {"aud": [CLIENT, "somebody"], "azp": "somebody"},
            "token with another nonce": {"nonce": "x"},
            "token that has expired": {"exp": now - 120},
            "token of the future": {"iat": now + 3600},
        }
        claims |= changed.get(self.fault, {})
        if self.fault == "token without a nonce":
            del claims["nonce"]
        if self.fault == "token without a signature":
            parts = ({"alg": "none"}, claims)
            return (
                ".".join(base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=").decode() for each in parts)
                + "."
            )
        if self.fault == "token signed with the client's secret":
            key = OctKey.import_key(SECRET * 2)
            return jwt.encode({"alg": "HS256", "kid": "one"}, claims, key)
        if self.fault == "token signed by another":
            return jwt.encode({"alg": "RS256", "kid": "one"}, claims, made_key("two"))
        return jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)

    @staticmethod
    def _json(handler: BaseHTTPRequestHandler, found: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(found).encode()
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
