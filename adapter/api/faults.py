"""What can go wrong with an API, and how it is said: in one line, without credentials."""

import os
import sys

KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY")  # of the environment
_SDKS = (("anthropic", "AnthropicError"), ("openai", "OpenAIError"))


def api_errors() -> tuple[type[Exception], ...]:
    """What asking an API raises: the SDK, its HTTP client, a reply that is no JSON (ValueError) or nested without end
    (RecursionError), and Google's login."""
    import httpx2

    sdks = [getattr(sys.modules[name], error) for name, error in _SDKS if name in sys.modules]  # no other one can raise
    return (*sdks, httpx2.HTTPError, httpx2.InvalidURL, ValueError, RecursionError, *google_errors())


def google_errors() -> tuple[type[Exception], ...]:
    """What Google's login raises; empty where its package is not installed."""
    try:
        from google.auth.exceptions import GoogleAuthError
    except ImportError:
        return ()
    return (GoogleAuthError,)


def in_words(error: Exception) -> str:
    """An error's kind, its HTTP status, and what the server or the connection said."""
    kind = " ".join(str(part) for part in (type(error).__name__, getattr(error, "status_code", None)) if part)
    body = getattr(error, "body", None)
    said = body.get("error", body) if isinstance(body, dict) else None  # one SDK unwraps it, the other does not
    said = said.get("message") if isinstance(said, dict) else error.__cause__ or error
    return f"{kind}: {scrubbed(str(said))}"


def scrubbed(text: str) -> str:
    """A server's words in one line of at most 200 characters, credentials replaced by their names."""
    return " ".join(without_keys(text).split())[:200]


def without_keys(text: str) -> str:
    """A server's words, credentials replaced by their names. A text of under 8 characters is none, such as `none`.

    An HTTP client that refuses a header quotes it as Python writes it: a line end is \\n there.
    """
    for name in KEYS:
        if len(secret := os.environ.get(name, "").strip()) >= 8:
            text = text.replace(secret, f"[{name}]").replace(repr(secret)[1:-1], f"[{name}]")
    return text
