"""One HTTP request as it came, one reply as it goes, and the refusals that clients understand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

if TYPE_CHECKING:
    from hub.accounts import Account


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """As sent: `refs%2Fpr%2F1` stays one segment until a route has matched."""
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    account: Account | None

    def json(self) -> Any:
        return json.loads(self.body) if self.body else {}

    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.decode())

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200, **headers: str) -> Reply:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


class Refused(Exception):
    """Ends a request with an error that huggingface_hub turns into its own exceptions."""

    def __init__(self, status: int, message: str, code: str | None = None, body: Any = None, **headers: str) -> None:
        super().__init__(message)
        known = {"X-Error-Message": message, **headers}
        if code is not None:
            known["X-Error-Code"] = code
        self.reply = Reply.json({"error": message} if body is None else body, status, **known)


def segments(groups: Mapping[str, str | None]) -> dict[str, str]:
    """What a route matched, unquoted; groups that did not take part become ""."""
    return {name: unquote(value) if value else "" for name, value in groups.items()}
