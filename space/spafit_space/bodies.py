"""What a visitor may send: no more than a text or two with what belongs to them."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

LARGEST = 2**18
"""Bytes of a request's body; Gradio would keep any, read or not."""
REFUSED = f"A request here has at most {LARGEST:,} bytes."


class SmallBodies:
    """Answers 413 to a larger body, by the length it declares or as it comes.

    Args:
        app: an ASGI application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        taken = 0

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > LARGEST:
                raise HTTPException(413, REFUSED)
            return message

        declared = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif len(declared) > 9 or int(declared) > LARGEST:
            await PlainTextResponse(REFUSED, 413)(scope, receive, send)
        else:
            await self.app(scope, counted, send)
