"""One request's way through the gateway, as it is counted, captured and shown."""

from dataclasses import dataclass
from typing import Literal

from adapter.verdict import Verdict

Protocol = Literal["anthropic", "openai", "guardrail"]
Mode = Literal["on", "shadow", "canary"]
Action = Literal["corrected", "agreed", "kept", "passed"]


@dataclass(frozen=True)
class Exchange:
    """What was asked, what the API said, what the adapter made of it, and what the caller got.

    corrected: the adapter's answer. agreed: the API's, which the adapter found right. kept: the API's, though the adapter
    was asked (`why`: shadow, below the threshold, unparsed, timeout, ...). passed: the API's, and the adapter was not asked
    (`why`: tools, images, several turns, not in the canary's share, an error of the API, ...).
    """

    id: str  # random; the response's header x-corrector-id
    at: float  # seconds since 1970, as the request came
    protocol: Protocol
    model: str  # that the caller asked for
    stream: bool
    mode: Mode
    action: Action
    why: str  # "" where corrected or agreed
    status: int  # the HTTP status that the caller got
    question: str | None = None  # None: there is none that the adapter could be asked
    api_text: str | None = None  # the API's whole text
    api_extracted: str | None = None  # the answer in it, in the verifier's one way of writing it
    completion: str | None = None  # what the adapter wrote
    verdict: Verdict | None = None
    confidence: float | None = None  # calibrated, in [0, 1]
    final: str | None = None  # the answer that the caller got, as a box would hold it
    step: int | None = None  # of the LoRA that answered
    seconds: float = 0.0  # from the request to the last byte of the response
    api_seconds: float | None = None  # of these, until the API's last byte
    adapter_seconds: float | None = None  # the adapter's own
    input_tokens: int | None = None  # as the API counts them
    output_tokens: int | None = None
    cost: float | None = None  # US dollars that the API takes, where its price is known
