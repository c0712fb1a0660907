"""The route of the page at /, and who may see it."""

import ipaddress
from collections.abc import Callable
from time import time

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from adapter.serve.page import COOKIE, HEADERS, About, check_token, form_token, login, page
from adapter.serve.recent import Recent
from grpo.types import UserError

MOST = 4096  # bytes of a form


def is_loopback(host: str) -> bool:
    """Whether an address, or a Host header with its port, is this machine's own."""
    name = host.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0] if name.count(":") == 1 else name
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_open(host: str, token: str | None) -> None:
    """Raises UserError where the page would be open to others: an address that is not loopback needs a token."""
    if token is None and not is_loopback(host):
        raise UserError(f"--host {host}: others can reach that address, and the page shows questions and answers; set a "
                        "token (the environment variable CORRECTOR_TOKEN), or keep 127.0.0.1")
    if token is not None and not (len(token) >= 16 and token.isascii() and token.isprintable() and " " not in token):
        raise UserError("CORRECTOR_TOKEN: expected 16 or more ASCII characters without a space; make one with openssl rand "
                        "-hex 16")


def make_router(recent: Recent, about: Callable[[], About], token: str | None = None) -> APIRouter:
    """GET / shows the page, or asks for the token; POST / takes it, and sets a cookie. about: what runs, asked each time.

    Without a token only who asks for this machine by its own name is answered: a page of another site, whose name leads
    here, is not.
    """
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    def show(request: Request) -> Response:
        if token is None and not is_loopback(request.headers.get("host", "")):
            return HTMLResponse("ask for 127.0.0.1 or localhost, or start the gateway with a token\n", 403, HEADERS)
        if not check_token(request.headers, request.cookies, token):
            return HTMLResponse(login(wrong=False), 401, HEADERS)
        text = page(about(), recent.totals, recent.last, time(), paused="paused" in request.query_params)
        return HTMLResponse(text, 200, HEADERS)

    @router.post("/", include_in_schema=False)
    async def enter(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MOST:
                return HTMLResponse(login(wrong=True), 413, HEADERS)
        text = body.decode("utf-8", "replace")
        if token is None or not check_token({}, {}, token, text):
            return HTMLResponse(login(wrong=True), 401, HEADERS)
        response = RedirectResponse("/", 303, HEADERS)
        response.set_cookie(COOKIE, form_token(text), httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return response

    return router
