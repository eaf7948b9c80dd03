"""Who may ask the server, and what a browser may do with an answer.

A page of any site can make its visitor's browser ask a server of the visitor's own machine.  Three checks:

    Host          a name of this server, or an address in digits.  A site that lets its own name point to this
                  machine (DNS rebinding) is known by that name
    Origin,       where a browser sends them, say that a page of this server asks: others may only link to
    Sec-Fetch-    the page
    Site

No answer allows another origin to read it (CORS): none has such a header.
"""

import ipaddress
import json
import re
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",  # a port and a row may be those of another gallery tomorrow
}
PORT = re.compile(r":\d+$")


class Json(Response):
    """JSON in ASCII, so that a name that is in no encoding arrives as it is."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")


def refusal(status: int, words: str) -> Json:
    """An answer that says in words why there is no other."""
    return Json({"error": words}, status)


class Guard:
    """An application behind the checks; `names` are the host names of the server."""

    def __init__(self, app: ASGIApp, names: Collection[str]):
        self._app, self._names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        words = self._fault(Headers(scope=scope), scope["path"])
        answer: ASGIApp = refusal(403, words) if words else self._app
        await answer(scope, receive, send_guarded)

    def _fault(self, headers: Headers, path: str) -> str:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return f"Host {', '.join(hosts) or 'missing'}: not this server. Open it by its address."
        origin = headers.get("origin", f"http://{hosts[0]}")
        elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and path != "/"
        if elsewhere or origin.partition("://")[2] != hosts[0]:
            return "Asked by a page of another site. Open the page of this server."
        return ""

    def _is_own(self, host: str) -> bool:
        name = PORT.sub("", host).strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True
