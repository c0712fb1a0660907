"""How sure the adapter is of its answer, read off the log-probs of the greedy pass: nothing more is computed for it.

p is the geometric mean of the probabilities of all tokens that it wrote, and confidence is sigmoid(logit(p) / temperature),
calibrated: `python -m adapter.evaluate` fits the temperature on the validation questions. A completion without an answer has
confidence 0. The box's own probability, given what stands before it, is there too, for the eye and to compare with: an
adapter that works its answer out writes the box when everything is decided, and is sure of it whatever it decided.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapter.verdict import box_places
from grpo.run.files import brief, first_fault, read_text
from grpo.types import UserError

FOLDER, FILE = "evaluate", "confidence.json"  # within a run, and in that
LONGEST = 2**16  # bytes of it; it has about 100
COLDEST, HOTTEST = 0.05, 100.0  # temperatures
FINEST = 2.0**-23  # a probability this close to 1 is not told from 1 in float32, which log-probs are computed in
SUREST = math.nextafter(1.0, 0.0)  # of all confidences: none reaches a threshold of 1
AUTO = "auto"

Decode = Callable[[tuple[int, ...]], str]


@dataclass(frozen=True)
class Token:
    """A token and its log-probability; or the tokens of one character, and their sum."""

    text: str
    logp: float


@dataclass(frozen=True)
class Calibration:
    """From log-probability to confidence, for the LoRA of a step. threshold: None where none was chosen."""

    step: int
    temperature: float = 1.0
    threshold: float | None = None

    def __call__(self, logp: float | None) -> float:
        """The confidence, at least 0 and below 1. None, there is no answer: 0."""
        return 0.0 if logp is None else min(SUREST, _sigmoid(logit(logp) / self.temperature))


def logit(logp: float) -> float:
    """log(p / (1 - p)) of a log-probability; of one that float32 does not tell from 0, that of 1 - FINEST."""
    logp = min(logp, -FINEST)
    return logp - math.log(-math.expm1(logp))


def mean_logp(logp: Sequence[float]) -> float:
    """Of a completion's tokens, of which there is one at least: the log of the geometric mean of their probabilities."""
    return math.fsum(logp) / len(logp)


def box_logp(token_ids: Sequence[int], logp: Sequence[float], decode: Decode) -> float | None:
    """The log-probability of the last well-formed box's content and closing brace, summed over its tokens; None without one.

    logp: of each token, given those before it. decode: token ids to the text that the box is looked for in.
    """
    place = _place(tuple(token_ids), decode)
    return None if place is None else math.fsum(logp[slice(*place)])


def box_tokens(token_ids: Sequence[int], logp: Sequence[float], decode: Decode) -> list[Token]:
    """The tokens of which `box_logp` is the sum, with what they hold beside the box; none without a box."""
    place, tokens = _place(tuple(token_ids), decode), []
    if place is None:
        return tokens
    inside = tuple(token_ids[slice(*place)])
    text, done, unshown = decode(inside), 0, []
    for count, value in enumerate(logp[slice(*place)], 1):
        unshown.append(value)
        if (upto := _shared(decode(inside[:count]), text)) > done:
            tokens.append(Token(text[done:upto], math.fsum(unshown)))
            done, unshown = upto, []
    return tokens


def _place(token_ids: tuple[int, ...], decode: Decode) -> tuple[int, int] | None:
    """The first token that has a part in the last box's content or closing brace, and the one behind the last.

    By bisection on how many characters of the text the first n tokens decide. A character of several tokens, cut, decodes
    to another one.
    """
    text = decode(token_ids)
    if not (places := box_places(text)):
        return None
    start, end = places[-1][0], places[-1][1] + 1

    def decided(count: int) -> int:
        return _shared(decode(token_ids[:count]), text)

    counts = range(len(token_ids) + 1)
    first, behind = bisect_left(counts, start, key=decided), bisect_left(counts, end, key=decided)
    straddles = decode(token_ids[:first]) != text[:start]  # the token before holds a part of the content too
    return first - straddles, behind


def _shared(prefix: str, text: str) -> int:
    """How many characters both begin with."""
    if text.startswith(prefix):
        return len(prefix)
    return next((at for at, (one, other) in enumerate(zip(prefix, text, strict=False)) if one != other), len(text))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


class _Calibrated(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    step: int = Field(ge=0)
    temperature: float = Field(ge=COLDEST, le=HOTTEST)
    threshold: float | None = Field(ge=0, le=1)


def read_calibration(run: Path, step: int) -> Calibration | None:
    """What evaluate found for the LoRA of a step; None where it was not asked, or of another step's. Raises UserError."""
    found = _read(run)
    return found if found is not None and found.step == step else None


def calibration_of(run: Path, step: int, asked: float | str | None) -> Calibration | None:
    """The same with the threshold that is asked for: a number, "auto", or None, no threshold.

    Raises UserError also where a threshold is asked for, and the LoRA's confidence is not calibrated: a threshold is a
    probability, and what is not calibrated is none.
    """
    found = read_calibration(run, step)
    threshold = None if asked is None else threshold_of(asked, run, step, found)
    if threshold is not None and found is None:
        raise UserError(f"threshold {asked}: {run} has no calibrated confidence of step {step} ({_lack(run)}); run python "
                        f"-m adapter.evaluate {run} first, or ask for no threshold")
    return found and replace(found, threshold=threshold)


def _lack(run: Path) -> str:
    found = _read(run)
    if found is None:
        return f"it has no {FOLDER}/{FILE}"
    chose = "" if found.threshold is not None else ", and chose no threshold"
    return f"its {FOLDER}/{FILE} is of step {found.step}{chose}"


def _read(run: Path) -> Calibration | None:
    path = run / FOLDER / FILE
    cure = "delete the file to go on without it, or evaluate the run again"
    if not path.is_file():
        return None
    try:
        found = _Calibrated.model_validate_json(read_text(path, LONGEST))
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}; {cure}") from None
    except ValueError as error:  # too long, or not UTF-8
        raise UserError(f"{path}: {error}; {cure}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return Calibration(**found.model_dump())


def threshold_of(asked: float | str, run: Path, step: int, found: Calibration | None) -> float:
    """The threshold that a caller asks for: a number from 0 to 1, or "auto", the one that evaluate chose for the step.

    found: the run's calibration. Raises UserError.
    """
    if asked == AUTO:
        if found is None or found.threshold is None:
            raise UserError(f"threshold auto: none is chosen for the adapter of step {step} of {run} ({_lack(run)}); run "
                            f"python -m adapter.evaluate {run} --harm-below 1%, or give a number from 0 to 1")
        return found.threshold
    try:
        value = math.nan if isinstance(asked, bool) else float(asked)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"threshold {brief(asked, 40)}: expected a number from 0 to 1, such as 0.8, or auto")
    return value
