"""The gateway's page: what it says, who may see it, and that strangers' text in it does nothing. In a real browser."""

from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from adapter.serve.page import COOKIE, HEADERS, About, check_token, page
from adapter.serve.page_router import check_open, is_loopback, make_router
from adapter.serve.recent import SHOWN, Recent, quantile
from grpo.types import UserError
from tests.exchanges import AT, Served, exchange

TOKEN = "0123456789abcdef0123456789abcdef"
HOSTILE = ("</pre></script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\" onload=alert(1) "
           "\u202e&amp;{{7*7}}")
ABOUT = About("runs/mine", "canary=5%", 40, "https://api.anthropic.com", ("drift: the API's accuracy has left <b>",), 120)


def routes(recent: Recent, token: str | None = None) -> FastAPI:
    app = FastAPI()
    app.include_router(make_router(recent, lambda: ABOUT, token))
    return app


@pytest.fixture
def served(recent) -> Iterator[Served]:
    with Served(routes(recent)) as served:
        yield served


@pytest.fixture
def guarded(recent) -> Iterator[Served]:
    with Served(routes(recent, TOKEN)) as served:
        yield served


@pytest.fixture
def recent() -> Recent:
    """Five requests: a fix, a harm, an agreement, one in shadow, one with tools."""
    recent = Recent()
    recent(exchange(1), "fix", "fix")
    recent(exchange(2, confidence=0.4), "harm", "harm")
    agreed = exchange(3, action="agreed", verdict="correct", completion=r"\boxed{CORRECT}", final="3", cost=None)
    recent(agreed, "both right", "both right")
    recent(exchange(4, action="kept", why="shadow", final="4", seconds=1.3, api_seconds=1.2), "both wrong", "fix")
    recent(exchange(5, action="passed", why="tools", question=None, api_text=None, verdict=None, confidence=None,
                    completion=None, final=None, api_seconds=None, cost=None, status=529))
    return recent


def opened(browser, url: str, width: int = 1280, scheme: str = "light"):
    """A tab, and what its console complains of."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    tab, complaints = context.new_page(), []
    tab.set_default_timeout(60_000)
    tab.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    tab.on("request", lambda request: request.url.split("?")[0] != url.split("?")[0] and complaints.append(request.url))
    tab.goto(url)
    return tab, complaints


# ---- sums


def test_totals(recent):
    totals = recent.totals
    assert totals.actions == {"corrected": 2, "agreed": 1, "kept": 1, "passed": 1}
    assert totals.whys == {"shadow": 1, "tools": 1}
    assert totals.judged == {"fix": 1, "harm": 1, "both right": 1, "both wrong": 1}
    assert totals.proposed == {"fix": 2, "harm": 1, "both right": 1}
    assert totals.api_seconds == [0.3, 0.3, 0.3, 1.2]
    assert totals.added_seconds == pytest.approx([0.1, 0.2, 0.2, 0.2])
    assert (totals.tokens, totals.cost, totals.unpriced) == (125, pytest.approx(0.0003), 1)
    for number in range(SHOWN):
        recent(exchange(number))
    assert [len(recent.last), recent.last[0].exchange.id, recent.totals.actions["corrected"]] == [SHOWN, "x99", SHOWN + 2]


def test_quantiles_by_hand():
    assert [quantile([1, 2, 3, 4], share) for share in (0.0, 0.25, 0.5, 0.51, 0.95, 1.0)] == [1, 1, 2, 3, 4, 4]
    assert quantile([], 0.5) is None


# ---- who may see it


def test_the_token_opens_the_page(guarded):
    with httpx.Client(base_url=guarded.url) as client:
        assert client.get("/").status_code == 401
        assert "What is" not in client.get("/").text
        assert client.get(f"/?token={TOKEN}").status_code == 401  # an address ends up in logs
        assert client.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.get("/", headers={"authorization": f"Basic {TOKEN}"}).status_code == 401
        wrong = client.post("/", content="token=wrong", headers={"content-type": "application/x-www-form-urlencoded"})
        assert (wrong.status_code, "That is another token." in wrong.text, COOKIE in client.cookies) == (401, True, False)
        assert client.post("/", content=b"token=" + b"x" * 10_000).status_code == 413
        assert client.post("/", content=b"&".join(b"a%d=1" % n for n in range(50))).status_code == 401
        right = client.post("/", content=f"token={TOKEN}")
        assert (right.status_code, right.headers["location"]) == (303, "/")
        assert {"HttpOnly", "SameSite=strict"} <= {part.strip() for part in right.headers["set-cookie"].split(";")}
        found = client.get("/")
        assert (found.status_code, "What is 1 + 1?" in found.text, TOKEN in found.text) == (200, True, False)


@pytest.mark.parametrize("given", ["", "x", TOKEN[:-1], TOKEN + "0", TOKEN.upper(), "\udcff"])
def test_other_tokens_do_not(given):
    assert not check_token({"authorization": f"Bearer {given}"}, {COOKIE: given}, TOKEN, f"token={given}")
    assert check_token({}, {}, None)


def test_another_sites_name_that_leads_here_is_not_answered(served):
    """DNS rebinding: the page is open on loopback, but to this machine's own names alone."""
    assert httpx.get(served.url, headers={"host": "evil.example:8080"}).status_code == 403
    assert httpx.get(served.url, headers={"host": "localhost:8080"}).status_code == 200
    assert httpx.post(served.url, content=f"token={TOKEN}").status_code == 401


@pytest.mark.parametrize(("host", "is_so"), [
    ("127.0.0.1", True), ("127.8.8.8:80", True), ("localhost", True), ("LocalHost:8080", True), ("::1", True),
    ("[::1]:80", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("localhost.evil.example", False),
    ("", False), ("[", False)])
def test_loopback(host, is_so):
    assert is_loopback(host) is is_so


def test_an_open_address_needs_a_token():
    check_open("127.0.0.1", None)
    check_open("0.0.0.0", TOKEN)
    with pytest.raises(UserError, match="others can reach that address"):
        check_open("0.0.0.0", None)
    for short in ("short", "x" * 15, "x" * 15 + " ", "ä" * 16):
        with pytest.raises(UserError, match="expected 16 or more"):
            check_open("127.0.0.1", short)


def test_what_is_sent_along(served):
    found = httpx.get(served.url).headers
    assert {name: found[name] for name in HEADERS} == HEADERS
    assert "script-src" not in found["content-security-policy"]
    assert "unsafe" not in found["content-security-policy"]


# ---- in a browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_it_reads_well(served, browser, width, scheme):
    tab, complaints = opened(browser, served.url, width, scheme)
    tiles = {tile.query_selector("h3").inner_text(): tile.query_selector(".value").inner_text()
             for tile in tab.query_selector_all(".tile")}
    assert tiles == {"requests": "5", "fixes": "1", "harms": "1", "API right": "50.0%", "API latency": "300 ms",
                     "added latency": "200 ms", "spend": "$0.0003"}
    assert "canary=5%" in tab.inner_text("h1")
    articles = [article.inner_text() for article in tab.query_selector_all("article")]
    assert len(articles) == 5
    assert articles[0].startswith("passed (tools)")
    assert articles[1].startswith("kept (shadow)")
    assert "would be: fix" in articles[1]
    assert "What is 4 + 1?" in articles[1]
    assert "confidence" in articles[3]
    assert "40%" in articles[3]
    assert tab.inner_text(".notes") == "drift: the API's accuracy has left <b>"
    paper = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")  # the style passes its own policy
    assert paper == {"light": "rgb(251, 251, 250)", "dark": "rgb(21, 23, 26)"}[scheme]
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert complaints == []
    tab.context.close()


def test_it_loads_itself_again_until_it_is_paused(served, recent, browser):
    tab, complaints = opened(browser, served.url)
    assert tab.get_attribute("meta[http-equiv=refresh]", "content") == "10"
    tab.click("text=pause")
    assert tab.query_selector("meta[http-equiv=refresh]") is None
    recent(exchange(77))
    tab.click("text=go on")
    assert "What is 77 + 1?" in tab.inner_text("article")
    assert complaints == []
    tab.context.close()


def test_the_form_takes_the_token(guarded, browser):
    tab, _ = opened(browser, guarded.url)
    tab.fill("input[name=token]", "another")
    tab.click("button")
    assert "That is another token." in tab.inner_text("main")
    tab.fill("input[name=token]", TOKEN)
    tab.click("button")
    tab.wait_for_selector(".tiles")
    assert tab.url == guarded.url
    tab.context.close()


def test_hostile_text_is_inert(browser):
    recent = Recent()
    recent(exchange(1, question=HOSTILE, api_text=HOSTILE + "\n" + HOSTILE, completion=HOSTILE, final=HOSTILE, model=HOSTILE,
                    why=HOSTILE, action="kept", id=HOSTILE))
    with Served(routes(recent)) as served:
        tab, complaints = opened(browser, served.url)
        assert tab.evaluate("window.hacked") is None
        assert (tab.query_selector("article img"), tab.query_selector("script")) == (None, None)
        shown = HOSTILE.replace("\u202e", "\\u202e")  # which would turn the line around
        assert tab.inner_text("dd >> nth=0") == shown
        tab.click("summary >> nth=0")
        assert tab.inner_text("pre >> nth=0") == f"{shown}\n{shown}"
        assert complaints == []
        tab.context.close()


def test_the_policy_lets_no_script_run_even_if_one_got_in(browser):
    """The second wall: the page's headers around a page with a script in it."""
    app, script = FastAPI(), "<script>window.hacked=1</script><p id=x onclick='window.hacked=1'>x</p>"
    text = page(ABOUT, Recent().totals, [], AT).replace("</main>", script + "</main>")
    app.get("/")(lambda: HTMLResponse(text, 200, HEADERS))
    with Served(app) as served:
        tab, complaints = opened(browser, served.url)
        tab.click("#x")
        assert tab.evaluate("window.hacked") is None
        assert any("Content Security Policy" in complaint for complaint in complaints)
        tab.context.close()
