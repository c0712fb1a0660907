"""What the gateway needs of a protocol, Anthropic's or OpenAI's: one file each knows how it is spoken."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from adapter import strict_json
from adapter.serve import exchange

PING = b": ping\n\n"  # a comment of an event stream: a client reads over it, and knows that somebody is there


@dataclass(frozen=True)
class Asked:
    """A request's body, as far as the gateway understands it."""

    text: str | None  # the one turn of plain text; None where there is none
    why: str = ""  # there is none, in two or three words
    model: str = ""
    stream: bool = False


@dataclass(frozen=True)
class Said:
    """An API's whole answer, read."""

    text: str
    kept: dict[str, Any]  # the protocol's own: what a corrected answer is made of
    input_tokens: int | None = None
    output_tokens: int | None = None


class Unreadable(ValueError):
    """An answer that is passed on as it is; the message says why, in two or three words."""


class Spoken(Protocol):
    """A protocol."""

    name: exchange.Protocol
    path: str

    def read(self, body: bytes, system: str | None) -> Asked:
        """A request. system: the one system prompt that it may have. Raises nothing."""

    def plain(self, answer: bytes) -> Said:
        """An answer that came whole. Raises Unreadable."""

    def streamed(self, answer: bytes) -> Said:
        """An answer that came as an event stream. Raises Unreadable."""

    def corrected(self, said: Said, text: str) -> bytes:
        """The same answer with another text: id, model and usage stay. It comes as the answer came."""

    def error(self, status: int, message: str) -> bytes:
        """An error's body, as the protocol words it."""


def asked(body: bytes, question: Callable[[dict[str, Any]], str]) -> Asked:
    """What a request asks. question: the turn of plain text in it; raises Unreadable where there is none."""
    try:
        request = json_object(body, "no JSON object")
    except Unreadable as error:
        return Asked(None, str(error))
    model, stream = request.get("model"), request.get("stream") is True
    model = model if isinstance(model, str) else ""
    try:
        return Asked(question(request), "", model, stream)
    except Unreadable as error:
        return Asked(None, str(error), model, stream)


def json_object(raw: bytes | str, fault: str) -> dict[str, Any]:
    """A JSON object in which nothing stands twice. Raises Unreadable, with `fault`."""
    try:
        value = strict_json.read(raw.decode() if isinstance(raw, bytes) else raw)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Unreadable(fault)
    return value


def events(raw: bytes) -> Iterator[str]:
    """The data of each event of a stream. Raises Unreadable where it is no UTF-8."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Unreadable("no event stream") from None
    data: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []


def as_event(data: dict[str, Any], name: str = "") -> bytes:
    """One event."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + as_json(data) + b"\n\n"


def as_json(value: object) -> bytes:
    """In UTF-8, as short as it can be written."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def one_text(content: object, other: dict[str, str]) -> str:
    """A message's content where it is one plain text, given as it is or as one part. Raises Unreadable.

    other: what to call the types of parts that are no text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Unreadable("no text")
    for part in content:
        if (kind := part.get("type")) != "text":
            raise Unreadable(other.get(kind, "no text") if isinstance(kind, str) else "no text")
    if len(content) != 1 or not isinstance(content[0].get("text"), str):
        raise Unreadable("several blocks" if len(content) > 1 else "no text")
    return content[0]["text"]


def refuse(request: dict[str, Any], fields: dict[str, str]) -> None:
    """Raises Unreadable where a request has one of the fields, with anything in it; they are named by what they ask for."""
    for field, what in fields.items():
        if request.get(field):
            raise Unreadable(what)


def count(usage: object, name: str) -> int | None:
    """A number of tokens; None where there is none."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int else None
