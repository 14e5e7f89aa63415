"""Who may ask: every request bears a secret, is meant for this machine, and comes from this page or from a program.

Host     127.0.0.1 or localhost, with the port: a name of somebody else's that leads here is refused (DNS rebinding)
Origin   of requests that change something: this page, or none, as programs send
secret   of a visitor: `Authorization: Bearer`, or a cookie that no script reads and no other site sends; the token
         of the server opens the page, and is worth nothing but a new secret
"""

from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autoseg.serve.refusals import Refused, refusal
from autoseg.serve.visitors import Visitor, Visitors

READS = ("GET", "HEAD")
OPEN_AGAIN = "open the address that autoseg serve printed"
POLICY = "; ".join(
    [
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data: blob:",
        "connect-src 'self' data:", "form-action 'none'", "base-uri 'none'", "frame-ancestors 'none'",
    ]
)  # fmt: skip
HEADERS = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin", "Cache-Control": "no-store",
}  # fmt: skip


class Guard:
    """What stands before the application.

    Args:
        port: of the server.
    """

    def __init__(self, app: ASGIApp, visitors: Visitors, port: int) -> None:
        self.app, self.visitors, self.port = app, visitors, port
        self.hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # neither sockets nor a lifespan
        request = Request(scope)
        fresh: Visitor | None = None
        refused: Response | None = None
        try:
            visitor, is_new = self._visitor(request)
            scope.setdefault("state", {})["visitor"] = visitor
            fresh = visitor if is_new else None
        except Refused as error:
            status, document = refusal(error)
            api = request.url.path.startswith("/api/")
            refused = JSONResponse(document, status) if api else PlainTextResponse(f"{error}\n", status)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if fresh:
                    kept = f"{self.cookie}={fresh.secret}; Path=/; HttpOnly; SameSite=Strict"
                    headers.append("Set-Cookie", kept)
            await send(message)

        await (refused or self.app)(scope, receive, send_with_headers)

    @property
    def cookie(self) -> str:
        """Its name: browsers send cookies to every port of a machine."""
        return f"autoseg_{self.port}"

    def _visitor(self, request: Request) -> tuple[Visitor | None, bool]:
        """Who asks, and whether that is somebody new. Raises Refused."""
        if request.headers.get("host", "") not in self.hosts:
            raise Refused(403, "the request is not meant for this machine", remedy=OPEN_AGAIN)
        if request.method not in READS:
            self._require_origin(request)
        bearer = request.headers.get("authorization", "")
        secret = bearer.removeprefix("Bearer ").strip() if bearer.startswith("Bearer ") else ""
        if request.url.path == "/api/session" and request.method == "POST" and self.visitors.may_enter(secret):
            return None, False  # the answer is the new secret
        known = self.visitors.known(secret if bearer else request.cookies.get(self.cookie, ""))
        token: Any = request.query_params.get("token", "")
        if known is None and request.url.path == "/" and token and self.visitors.may_enter(token):
            return self.visitors.enter(), True
        if known is None:
            raise Refused(401, "no valid session: it has ended, or the address lacks its token", remedy=OPEN_AGAIN)
        return known, False

    def _require_origin(self, request: Request) -> None:
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "none")
        by_cookie = "authorization" not in request.headers
        fits = origin in {f"http://{host}" for host in self.hosts} if origin is not None else not by_cookie
        if not fits or site not in ("none", "same-origin"):
            raise Refused(403, "the request comes from another page", remedy=OPEN_AGAIN)
