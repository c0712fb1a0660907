"""A simulated API for machines without a key: right on a share of the questions, and wrong in four ways on the others.

    none         no answer
    near_miss    close to the true answer: a unit or a digit off, another choice, a misspelling, one field changed
    echo         the question, or a part of it
    wrong_kind   a sentence, or an answer of another kind

What becomes of a question depends on the seed and the question alone, whatever the other rows are: an answer of another row
is no near miss, as it would change with them. No wrong answer is right by accident: the verifier is asked, and where it
finds one right, another is drawn. The simulation is always labelled as one.
"""

import json
import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from adapter.api.recorded import named
from adapter.api.wrong_answers import echoes, near_misses, other_kinds
from adapter.questions import ApiAnswer, Row
from adapter.verifiers.base import submit
from grpo.types import UserError

if TYPE_CHECKING:
    from adapter.verifiers.base import Verifier

SIMULATED = "simulated"  # where a real API's row names its model
DRAWS = 30  # of a wrong answer; where that many are right, there is none
Play = Generator[str, float | None, str]  # yields texts, is told how right each is (None: no answer in it), returns one


class SimulatedUpstream:
    """Upstream of upstream.py. shares: of right, none, near_miss, echo and wrong_kind; they sum to 1."""

    label = "simulated API"

    def __init__(self, seed: int, verifier: "Verifier", shares: Mapping[str, float]):
        self._seed, self._verifier, self._shares = seed, verifier, shares

    def answers(self, rows: Sequence[Row]) -> list[ApiAnswer]:
        """See Upstream. Raises UserError, naming the row, where its answer is not known, or not right to the verifier."""
        plays, texts = [self._play(row) for row in rows], [""] * len(rows)
        scores: dict[int, float | None] = dict.fromkeys(range(len(rows)))
        while scores:  # all rows together: a user's own verifier checks many at once
            drawn = {}
            for i, score in scores.items():
                try:
                    drawn[i] = plays[i].send(score)
                except StopIteration as end:
                    texts[i] = end.value
            scores = self._scores(rows, drawn)
        return [ApiAnswer(text, SIMULATED) for text in texts]

    def _scores(self, rows: Sequence[Row], drawn: Mapping[int, str]) -> dict[int, float | None]:
        found = {i: self._verifier.extract(text, rows[i]) for i, text in drawn.items()}
        begun = {i: None if answer is None else submit(self._verifier, rows[i], answer) for i, answer in found.items()}
        return {i: None if call is None else call.result().score for i, call in begun.items()}

    def _play(self, row: Row) -> Play:
        """How one row's answer is found."""
        if row.answer is None:
            raise UserError(f"{named(row)}: its answer is not known, and no API can be simulated for it; give the API's "
                            "answer along, or ask a real one (upstream anthropic, vertex or openai)")
        rng = random.Random(f"{self._seed}/{row.question}")
        match drawn_way(rng, self._shares):
            case "right":
                text, _ = yield from _truth(row)
                return text
            case "near_miss":
                text, value = yield from _truth(row)
                return (yield from _wrong(near_misses(rng, row, self._verifier, text, value), an_answer=True))
            case "echo":
                return (yield from _wrong(echoes(rng, row.question)))
            case "wrong_kind":
                return (yield from _wrong(other_kinds(rng, [*accepted_values(row.answer)])))
        return ""


def drawn_way(rng: random.Random, shares: Mapping[str, float]) -> str:
    """The name of one of the shares, each as often as it says."""
    at = rng.random() * sum(shares.values())
    return next((name for name, end in zip(shares, accumulate(shares.values()), strict=True) if at < end), "none")


def accepted_values(answer: object) -> Iterator[object]:
    """What a row's answer may accept: each value that it lists, and itself. Which of them it does, the verifier knows."""
    if isinstance(answer, dict) and answer.keys() == {"any_of"} and isinstance(answer["any_of"], list):
        yield from answer["any_of"]
    elif isinstance(answer, list):
        yield from answer
    yield answer


def _truth(row: Row) -> Generator[str, float | None, tuple[str, object]]:
    """The first accepted value that is right, as it is written and as it is."""
    for value in accepted_values(row.answer):
        for text in [*([value] if isinstance(value, str) else []), json.dumps(value, ensure_ascii=False)]:
            if (yield text) == 1:
                return text, value
    raise UserError(f"{named(row)}: its own answer is not right to the verifier, and no API can be simulated for it; mend "
                    "the row or the verifier, or give the API's answers along (upstream recorded)")


def _wrong(candidates: Iterator[str], an_answer: bool = False) -> Play:
    """The first that is not right. an_answer: and holds an answer, to the verifier. "" where none of DRAWS is."""
    for _, text in zip(range(DRAWS), candidates, strict=False):
        score = yield text
        if (score is None and not an_answer) or (score is not None and score < 1):
            return text
    return ""
