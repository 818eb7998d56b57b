"""Accounts and their tokens. A token either reads or writes; nobody writes in another's namespace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hub.wire import Refused


@dataclass(frozen=True)
class Account:
    name: str
    role: str
    """"read" or "write", as the token that was sent."""

    def whoami(self) -> dict[str, Any]:
        return {
            "type": "user",
            "name": self.name,
            "fullname": self.name.title(),
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": self.role}},
        }


class Accounts:
    """Tokens of the form `hf_<name>_<role>...`, made on demand, so that no test shares a token by accident."""

    def __init__(self) -> None:
        self._by_token: dict[str, Account] = {}

    def token(self, name: str, role: str = "write") -> str:
        token = f"hf_{name}{role}" + "x" * 20
        self._by_token[token] = Account(name, role)
        return token

    def known(self, authorization: str | None) -> Account | None:
        """The account behind an Authorization header; None for an anonymous request."""
        if not authorization:
            return None
        account = self._by_token.get(authorization.removeprefix("Bearer ").strip())
        if account is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return account


def must_write(account: Account | None, namespace: str) -> Account:
    if account is None:
        raise Refused(401, "Invalid username or password.")
    if account.role != "write":
        raise Refused(403, "You must use a token with write permission: this one may only read")
    if account.name != namespace:
        raise Refused(403, f"You don't have the rights to create a model under the namespace {namespace!r}")
    return account
