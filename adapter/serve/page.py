"""The page at /: what was answered, what came of it, what it costs. One HTML file, without a script.

Questions and answers are strangers' text: each is escaped, what a browser would obey in it is written out, and the policy
that is sent along (HEADERS) lets the page run, load and send nothing.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from urllib.parse import parse_qs

from adapter.serve.recent import Shown, Totals, quantile
from grpo.run.files import printable

EVERY = 10  # seconds between two loads
BRIEF, LONGEST = 160, 4000  # characters of a text: in a line, and in full
COOKIE = "corrector_token"
CSS = (files("adapter.serve") / "page.css").read_text(encoding="utf-8")
STYLE_HASH = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; form-action 'self'; base-uri 'none'; "
                               "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
VERDICTS = {"correct": "CORRECT", "override": "override", "unparsed": "no answer"}
ACTIONS = ("corrected", "agreed", "kept", "passed")


@dataclass(frozen=True)
class About:
    """What runs."""

    run: str  # the run's folder
    mode: str  # as given, such as "canary=5%"
    step: int | None  # of the LoRA
    api: str  # its address
    notes: Sequence[str] = ()  # what is wrong now: alarms, lost lines of the capture
    truths: int = 0  # questions whose answers are known


def page(about: About, totals: Totals, last: Sequence[Shown], now: float, paused: bool = False) -> str:
    """The page. now: seconds since 1970. paused: it does not load itself again."""
    refresh = "" if paused else f'<meta http-equiv="refresh" content="{EVERY}">'
    state = f'<a href="/">go on</a> loaded at {_clock(now)}, paused' if paused else \
        f'<a href="/?paused=1">pause</a> loaded at {_clock(now)}, again every {EVERY} s'
    notes = "".join(f"<li>{_text(note, 300)}</li>" for note in about.notes)
    step = "" if about.step is None else f", LoRA of step {about.step}"
    return _document(refresh, f"""<header><h1>Corrector <span class="mode">{_text(about.mode, 40)}</span></h1>
<p>{_text(about.run, 200)}{step}, behind {_text(about.api, 200)}</p><p class="state">{state}</p></header>
{f'<ul class="notes" role="alert">{notes}</ul>' if notes else ''}
<main><section class="tiles" aria-label="Totals">{''.join(_tiles(about, totals))}</section>
{_whys(totals)}
<section aria-label="Last answers"><h2>Last answers</h2>
{''.join(map(_exchange, last)) or '<p class="none">No request so far.</p>'}</section></main>""")


def login(wrong: bool) -> str:
    """What is shown to who has not given the token. wrong: a token was given, and is another one."""
    said = '<p role="alert">That is another token.</p>' if wrong else ""
    return _document("", f"""<main class="login"><h1>Corrector</h1>{said}<form method="post" action="/">
<label>Token <input type="password" name="token" autocomplete="current-password" required autofocus></label>
<button>Open</button></form></main>""")


def check_token(headers: Mapping[str, str], cookies: Mapping[str, str], token: str | None, body: str = "") -> bool:
    """Whether a request may see the page: `Authorization: Bearer TOKEN`, the cookie, or the form's body.

    token: None where none is asked for. Not in the address: that ends up in logs. Compared in constant time.
    """
    if token is None:
        return True
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = (bearer.strip() if scheme.lower() == "bearer" else "", cookies.get(COOKIE, ""), form_token(body))
    same = [hmac.compare_digest(one.encode("utf-8", "replace"), token.encode()) for one in given]
    return any(same)


def form_token(body: str) -> str:
    """The token in a form's body; "" where there is none."""
    try:
        return parse_qs(body, max_num_fields=10).get("token", [""])[0]
    except ValueError:  # more fields
        return ""


def _document(head: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">{head}
<title>Corrector</title><style>{CSS}</style></head><body>
{body}
</body></html>
"""


def _tiles(about: About, totals: Totals) -> list[str]:
    requests = sum(totals.actions.values())
    shares = [f"{totals.actions.get(name, 0):,} {name}" for name in ACTIONS]
    tiles = [_tile("requests", f"{requests:,}", ", ".join(shares))]
    if about.truths:
        got, wrote = totals.judged, totals.proposed
        tiles.append(_tile("fixes", f"{got.get('fix', 0):,}", f"{wrote.get('fix', 0):,} in what the adapter wrote", "good"))
        tiles.append(_tile("harms", f"{got.get('harm', 0):,}", f"{wrote.get('harm', 0):,} in what the adapter wrote",
                           "bad" if got.get("harm") else ""))
        right = got.get("both right", 0) + got.get("harm", 0)
        tiles.append(_tile("API right", _share(right, of := sum(got.values())), f"of {of:,} with a known truth"))
    else:
        tiles.append(_tile("fixes and harms", "not known", "--truths FILE tells them"))
    tiles.append(_tile("API latency", _seconds(quantile(totals.api_seconds, 0.5)),
                       f"median; 95th percentile {_seconds(quantile(totals.api_seconds, 0.95))}"))
    tiles.append(_tile("added latency", _seconds(quantile(totals.added_seconds, 0.5)),
                       f"median; 95th percentile {_seconds(quantile(totals.added_seconds, 0.95))}"))
    unpriced = f"; {totals.unpriced:,} requests of unknown price" if totals.unpriced else ""
    tiles.append(_tile("spend", _dollars(totals.cost), f"{totals.tokens:,} tokens{unpriced}"))
    return tiles


def _tile(name: str, value: str, about: str, kind: str = "") -> str:
    return (f'<div class="tile {kind}"><h3>{escape(name)}</h3><p class="value">{escape(value)}</p>'
            f'<p class="about">{escape(about)}</p></div>')


def _whys(totals: Totals) -> str:
    """Why the adapter's answer was not given."""
    if not totals.whys:
        return ""
    listed = "".join(f"<li>{_text(why, 80)} <b>{count:,}</b></li>" for why, count in list(totals.whys.items())[:12])
    return f'<section class="whys"><h2>Kept and passed</h2><ul>{listed}</ul></section>'


def _exchange(shown: Shown) -> str:
    one = shown.exchange
    judged = "".join(f'<span class="mark {name.replace(" ", "-")}">{said}{name}</span>'
                     for said, name in (("", shown.judged), ("would be: ", shown.proposed))
                     if name and (not said or name != shown.judged))
    confidence = "" if one.confidence is None else (
        f'<span class="confidence">confidence <meter min="0" max="1" value="{one.confidence:.3f}"></meter> '
        f"{one.confidence:.0%}</span>")
    verdict = "" if one.verdict is None else f'<span class="verdict">{VERDICTS[one.verdict]}</span>'
    why = f" ({_text(one.why, 80)})" if one.why else ""
    cost = "" if one.cost is None else f", {_dollars(one.cost)}"
    facts = f"{_clock(one.at)}, {_text(one.model, 60)}, status {one.status}, {_seconds(one.seconds)}{cost}"
    parts = "".join(f"<dt>{name}</dt><dd>{_field(text)}</dd>" for name, text in (
        ("question", one.question), ("API", one.api_text), ("adapter", one.completion), ("final", one.final))
        if text is not None)
    return (f'<article class="{one.action}"><h3>{one.action}{why}</h3><p class="marks">{verdict}{judged}{confidence}</p>'
            f'<dl>{parts}</dl><p class="facts">{facts} <span class="id">{_text(one.id, 60)}</span></p></article>\n')


def _field(text: str) -> str:
    if len(text) <= BRIEF and "\n" not in text:
        return f"<bdi>{_text(text, BRIEF)}</bdi>"
    first = " ".join(text[:BRIEF].split())
    return f"<details><summary><bdi>{_text(first, BRIEF)}</bdi> ...</summary><pre>{_text(text, LONGEST)}</pre></details>"


def _text(text: str, most: int) -> str:
    """A stranger's text: escaped, cut, and what a browser would obey (direction marks, controls) written out."""
    return escape(printable(text[:most], keep="\n")) + ("" if len(text) <= most else " ...")


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S} UTC"


def _seconds(value: float | None) -> str:
    return "none" if value is None else f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def _dollars(value: float) -> str:
    return f"${value:,.2f}" if value >= 1 else f"${value:.4f}"


def _share(part: int, of: int) -> str:
    return f"{part / of:.1%}" if of else "none yet"
