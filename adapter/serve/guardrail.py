"""LiteLLM's generic guardrail API, so that an existing LiteLLM proxy asks a trained adapter without a new base URL.

The proxy posts each request before the model is called (input_type "request"), and each answer after (input_type
"response"). The second post has no question: the first one's is kept under the call's id. Hence the proxy's config

    guardrails:
      - guardrail_name: corrector
        litellm_params:
          guardrail: generic_guardrail_api
          mode: [pre_call, post_call]
          api_base: http://127.0.0.1:8080
          default_on: true
          fail_on_error: false                      # the API's answer stands where this gateway is down
          streaming_end_of_stream_only: true        # or parts of an answer are posted as if they were whole
          streaming_transform_mode: incremental_diff    # or the proxy drops what replaces a streamed answer

LiteLLM 1.110 replaces answers of /v1/chat/completions and /v1/messages, and streamed ones of the first. Of a streamed
/v1/messages it posts the answer, and drops what comes back: give such clients this gateway's own address.
"""

import hmac
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, ValidationError

from adapter.serve.response import Refused, read_body

PATH = "/beta/litellm_basic_guardrail_api"
LONGEST_BODY = 10 * 2**20  # bytes
MOST_CALLS = 10_000  # whose question is kept
MOST_CHARACTERS = 32 * 2**20  # of all of these


class Decide(Protocol):
    """What the gateway makes of an answer. It raises nothing: where the adapter fails, the API's text stands."""

    async def __call__(self, question: str, api_text: str) -> str | None:
        """The text that replaces the API's; None: that stands."""


class Posted(BaseModel):
    """What LiteLLM posts, as far as it is read here."""

    input_type: Literal["request", "response"]
    litellm_call_id: str | None = None
    texts: list[str] | None = None
    structured_messages: list[dict[str, Any]] | None = None
    images: list[Any] | None = None
    tools: list[Any] | None = None
    tool_calls: list[Any] | None = None


class Questions:
    """The questions of the calls whose answers are still to come, by the call's id. The oldest are forgotten first.

    A caller may choose the id. Where two questions have the same one, no answer is known to belong to either.
    """

    def __init__(self, most_calls: int = MOST_CALLS, most_characters: int = MOST_CHARACTERS):
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._most_calls, self._most_characters, self._characters = most_calls, most_characters, 0

    def keep(self, call: str, question: str) -> None:
        """Keep a call's question."""
        question = question if self._kept.get(call, question) == question else ""
        self.forget(call)
        self._kept[call] = question
        self._characters += len(question)
        while len(self._kept) > self._most_calls or self._characters > self._most_characters:
            self.forget(next(iter(self._kept)))

    def forget(self, call: str) -> None:
        """Forget a call."""
        self._characters -= len(self._kept.pop(call, ""))

    def of(self, call: str | None) -> str | None:
        """A call's question; None where it is not known."""
        return None if call is None else self._kept.get(call) or None


def question_in(posted: Posted) -> str | None:
    """The question of a request: the text of its one message. None where it is of another kind (tools, images, several
    turns, a system prompt)."""
    if posted.images or posted.tools or posted.tool_calls:
        return None
    if posted.structured_messages is None:
        return posted.texts[0] if posted.texts and len(posted.texts) == 1 else None
    if len(posted.structured_messages) != 1 or posted.structured_messages[0].get("role") != "user":
        return None
    content = posted.structured_messages[0].get("content")
    if isinstance(content, Sequence) and len(content) == 1 and isinstance(content[0], Mapping):
        content = content[0].get("text")  # a list of one part
    return content if isinstance(content, str) and content.strip() else None


def make_router(decide: Decide, token: str | None = None, question_of: Callable[[Posted], str | None] = question_in,
                longest_body: int = LONGEST_BODY) -> APIRouter:
    """The route. token: what LiteLLM has as the guardrail's api_key; None where none is asked for. longest_body: bytes."""
    router, questions = APIRouter(), Questions()

    @router.post(PATH)
    async def guardrail(request: Request) -> dict[str, object]:
        key = request.headers.get("x-api-key", "")
        if token is not None and not hmac.compare_digest(key.encode(), token.encode()):
            raise HTTPException(401, "another api_key than the gateway's token")
        try:
            posted = Posted.model_validate_json(await read_body(request, longest_body))
        except Refused as error:
            raise HTTPException(error.status, str(error)) from None
        except ValidationError as error:
            raise HTTPException(422, [{"loc": one["loc"], "msg": one["msg"]} for one in error.errors()]) from None
        call = posted.litellm_call_id
        if posted.input_type == "request":
            question = question_of(posted)
            if call is not None and question is not None:
                questions.keep(call, question)
            elif call is not None:
                questions.forget(call)
            return {"action": "NONE"}
        question, texts = questions.of(call), posted.texts or []
        if question is None or len(texts) != 1 or posted.images or posted.tool_calls:
            return {"action": "NONE"}
        replaced = await decide(question, texts[0])
        return {"action": "NONE"} if replaced is None else {"action": "GUARDRAIL_INTERVENED", "texts": [replaced]}

    return router
