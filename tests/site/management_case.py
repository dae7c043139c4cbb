"""What the tests of the management API share: callers of every kind, and a client that speaks JSON."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.auth.models import Permission, User
from django.test import Client

from budgets import access, keys

V1 = "/api/v1/"
SECRET = "sk-very-secret-text-0123456789"


class ManagementCase:
    """`admin` is a key with the scope "admin"; `ada` a superuser, `vera` staff who may only look, `bob` staff who may
    do nothing."""

    databases = "__all__"

    @classmethod
    def make_world(cls) -> None:
        cls.agent = access.agent_named("team", "agent", actor="test")
        cls.pool = access.default_pool("test")
        cls.admin_key, cls.admin = cls.make_key("admin")
        cls.operator_key, cls.operator = cls.make_key("inference", "operator")
        cls.plain_key, cls.plain = cls.make_key("inference")
        cls.ada = User.objects.create_superuser("ada", "", "pw")
        cls.bob = User.objects.create_user("bob", "", "pw", is_staff=True)
        cls.vera = User.objects.create_user("vera", "", "pw", is_staff=True)
        cls.vera.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))

    @classmethod
    def make_key(cls, *scopes: str) -> Any:
        return keys.create_key(cls.agent, cls.pool, f"key {'-'.join(scopes)}", scopes, actor="test")

    def call(
        self,
        method: str,
        path: str,
        data: Any = None,
        *,
        key: str | None = None,
        client: Client | None = None,
        **headers: str,
    ) -> Any:
        """Ask with the admin key, another one ("" = none), or the session of a client."""
        if client is None and key != "":
            headers["Authorization"] = f"Bearer {self.admin if key is None else key}"
        body = data if isinstance(data, str | bytes) else "" if data is None else json.dumps(data)
        kind = "" if data is None else "application/json"
        return (client or Client()).generic(method, V1 + path, body, kind, headers=headers)

    def ok(self, method: str, path: str, data: Any = None, *, status: int = 200, **more: Any) -> Any:
        """What a request that works is answered."""
        response = self.call(method, path, data, **more)
        assert response.status_code == status, (method, path, response.status_code, response.content[:2000])
        return response.json() if response.content else None

    def refused(self, status: int, method: str, path: str, data: Any = None, **more: Any) -> dict[str, Any]:
        """The error of a request that is refused, in the one shape."""
        response = self.call(method, path, data, **more)
        assert response.status_code == status, (method, path, response.status_code, response.content[:2000])
        told: dict[str, Any] = response.json()
        assert set(told) == {"error"}
        error: dict[str, Any] = told["error"]
        assert (
            {"message", "type", "param", "code"}
            <= set(error)
            <= {"message", "type", "param", "code", "fields", "problems"}
        )
        assert error["message"]
        return error

    def make(self, path: str, **fields: Any) -> Any:
        """A new row."""
        return self.ok("POST", path, fields, status=201)

    def signed_in(self, user: User) -> Client:
        """A client with that person's session."""
        client = Client()
        client.force_login(user)
        return client

    def provider(self, name: str = "up", **fields: Any) -> Any:
        """A provider on this host."""
        return self.make("providers", name=name, kind="openai", base_url="http://127.0.0.1:9", **fields)

    def route(self, name: str = "r", provider: str = "up", **fields: Any) -> Any:
        """A route to it."""
        return self.make("routes", **{"name": name, "pattern": "gpt-*", "provider": provider, **fields})
