"""What a server replied, as data: the text, why it ends, and how many tokens it took.

The SDKs take any JSON for a reply. One that has not the form of its protocol raises NoReply; all else is an outcome:

    stop_reason                       text
    end_turn, stop, stop_sequence     the answer
    max_tokens, length                what was said before it was cut off
    refusal, content_filter           what was said before it, mostly ""
    tool_use, tool_calls, ...         what was said beside it, mostly ""
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from anthropic.types import Message
    from openai.types.chat import ChatCompletion

CUT_OFF = ("max_tokens", "length")  # stop reasons of an answer that could not be finished


class NoReply(ValueError):
    """A reply that has not the form of its protocol; the message says so."""


class Reply(NamedTuple):
    """A reply of any protocol."""

    text: str  # "" where there is none
    stop_reason: str | None  # as the server words it; "refusal" for every kind of refusal
    usage: dict[str, int] | None  # tokens: input_tokens, output_tokens


def of_messages(message: "Message") -> Reply:
    """Of the Messages API: its text blocks joined, its thoughts left out. Raises NoReply."""
    try:
        text = "".join(block.text for block in message.content if block.type == "text")
    except (AttributeError, TypeError):
        raise NoReply("a reply that is no message") from None
    counts = {name: getattr(message.usage, name, None) for name in ("input_tokens", "output_tokens")}
    return _checked(text, message.stop_reason, counts, "a reply that is no message")


def of_chat(completion: "ChatCompletion") -> Reply:
    """Of OpenAI's chat completions: the first choice's content, which some servers send in parts. Raises NoReply."""
    fault = "a reply that is no chat completion"
    try:
        choice = completion.choices[0]
        message = choice.message
        content, refused = message.content, getattr(message, "refusal", None)
        if isinstance(content, list):
            content = "".join(part["text"] for part in content if part["type"] == "text")
        text = "" if content is None else content
    except (AttributeError, TypeError, IndexError, KeyError):
        raise NoReply(fault) from None
    usage = getattr(completion, "usage", None)
    counts = {"input_tokens": getattr(usage, "prompt_tokens", None),
              "output_tokens": getattr(usage, "completion_tokens", None)}
    return _checked(text, "refusal" if refused else choice.finish_reason, counts, fault)


def _checked(text: object, stop_reason: object, counts: dict[str, object], fault: str) -> Reply:
    if not isinstance(text, str) or not isinstance(stop_reason, str | None):
        raise NoReply(fault)
    return Reply(text, stop_reason, {name: n for name, n in counts.items() if isinstance(n, int)} or None)
