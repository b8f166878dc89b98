"""Only the browser that opened the link, by the loopback's address, is let in."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from client.review.gate import Gate

PORT = 4711
HERE = f"http://127.0.0.1:{PORT}"


class Browser:
    """Keeps its cookies, and asks the application in this process."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self._cookies = gate, httpx.Cookies()

    def ask(self, method: str, address: str, **options: Any) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(self._gate)
            async with httpx.AsyncClient(
                transport=transport, base_url=HERE, cookies=self._cookies
            ) as client:
                answer = await client.request(method, address, **options)
                self._cookies.update(client.cookies)
                return answer

        return asyncio.run(asked())

    def get(self, address: str, **options: Any) -> httpx.Response:
        return self.ask("GET", address, **options)

    def put(self, address: str, **options: Any) -> httpx.Response:
        return self.ask("PUT", address, **options)


async def inside(_: Request) -> PlainTextResponse:
    return PlainTextResponse("inside")


@pytest.fixture
def gate() -> Gate:
    return Gate(Starlette(routes=[Route("/", inside, methods=["GET", "PUT"])]), port=PORT)


@pytest.fixture
def browser(gate: Gate) -> Browser:
    return Browser(gate)


def test_the_link_opens_once(gate: Gate, browser: Browser) -> None:
    assert browser.get("/").status_code == 403
    opened = browser.get(gate.link)
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert browser.get("/").text == "inside"
    other = Browser(gate)
    again = other.get(gate.link)
    assert (again.status_code, "a new link" in again.text) == (403, True)
    assert other.get("/").status_code == 403


def test_a_wrong_token_and_a_look_ahead_do_not_use_it_up(gate: Gate, browser: Browser) -> None:
    for address in ("/open", "/open?token=x", "/open?token=%C3%BC"):
        assert browser.get(address).status_code == 403
    assert browser.get(gate.link, headers={"Sec-Purpose": "prefetch"}).status_code == 403
    assert browser.get(gate.link).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", f"127.0.0.1:{PORT + 1}", ""])
def test_another_host_is_refused(gate: Gate, browser: Browser, host: str) -> None:
    browser.get(gate.link)
    assert browser.get("/", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:1"])
def test_a_change_from_elsewhere_is_refused(
    gate: Gate, browser: Browser, origin: str | None
) -> None:
    browser.get(gate.link)
    headers = {} if origin is None else {"Origin": origin}
    assert browser.put("/", headers=headers).status_code == 403
    assert browser.put("/", headers={"Origin": HERE}).text == "inside"


def test_every_answer_has_a_strict_policy(gate: Gate, browser: Browser) -> None:
    answers = [browser.get("/"), browser.get(gate.link), browser.get("/")]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self';" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
