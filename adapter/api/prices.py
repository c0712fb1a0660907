"""What asking costs, before it is asked."""

import re

from adapter.api.answers import Request

PRICES = {  # US dollars for a million tokens, in and out; platform.claude.com, November 2026
    "claude-haiku-4-5": (1.0, 5.0), "claude-haiku-5-5": (0.1, 0.5), "claude-sonnet-5-5": (2.0, 10.0),
    "claude-opus-5": (5.0, 25.0), "claude-opus-5-5": (4.0, 20.0), "claude-fable-5-1": (10.0, 50.0)}
BATCH_DISCOUNT = 0.5
MOST_TOKENS = ("max_tokens", "max_completion_tokens")  # a request has one of them
CHARACTERS_PER_TOKEN = 3  # of a prompt; English has about 4, digits and symbols fewer
_DATE = re.compile(r"[@-]20\d{6}$")  # the end of a model's full name


def estimate(model: str, requests: list[Request], batch: bool) -> str:
    """Tokens and dollars that the requests take at most, in words."""
    characters = sum(len(request.get("system", "")) + sum(len(message["content"]) for message in request["messages"])
                     for request in requests)
    tokens_in = characters // CHARACTERS_PER_TOKEN
    tokens_out = sum(request[name] for request in requests for name in MOST_TOKENS if name in request)
    tokens = f"about {tokens_in:,} tokens in, at most {tokens_out:,} out"
    price = PRICES.get(_DATE.sub("", model))
    if price is None:
        return f"{tokens}; the price of {model} is not known here"
    dollars = (tokens_in * price[0] + tokens_out * price[1]) / 1e6 * (BATCH_DISCOUNT if batch else 1)
    return f"{tokens}, at most about ${dollars:.2f}"


def dollars(model: str, tokens_in: int | None, tokens_out: int | None) -> float | None:
    """What an answer took; None where its tokens or the model's price are not known."""
    price = PRICES.get(_DATE.sub("", model))
    if price is None or tokens_in is None or tokens_out is None:
        return None
    return (tokens_in * price[0] + tokens_out * price[1]) / 1e6
