"""An adapter answers a split's questions: greedily, as behind the API, and several times, to see whether it agrees."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tqdm import tqdm

from adapter.confidence import Decode, Token, box_tokens, mean_logp
from adapter.measure.outcomes import Outcome
from adapter.verdict import resolve
from grpo.types import Problem, Sample

if TYPE_CHECKING:
    from adapter.model import Model
    from adapter.task import CorrectorTask

AT_ONCE = 128  # questions between two moves of the progress bar


@dataclass(frozen=True)
class Cost:
    """What was generated, and in which time; vLLM's start and the verifier are not in it."""

    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.tokens + other.tokens, self.seconds + other.seconds)


def start(adapter: "Model", problems: Sequence[Problem]) -> None:
    """Start vLLM, with room for the longest prompt."""
    adapter.complete([max(problems, key=lambda problem: sum(len(m["content"]) for m in problem.messages))])


def answered(adapter: "Model", task: "CorrectorTask", problems: Sequence[Problem], who: str) -> tuple[list[Outcome], Cost]:
    """The outcome of each question, in order."""
    outcomes, cost = [], Cost()
    for some in _batches(problems, who):
        begun = time.perf_counter()
        completions = adapter.complete(some)
        cost += Cost(sum(len(c.sample.token_ids) for c in completions), time.perf_counter() - begun)
        judged = task.corrector.judged([problem.data for problem in some], [c.text for c in completions],
                                       [c.truncated for c in completions])
        outcomes += [with_tokens(outcome, c.sample, adapter.decode)
                     for outcome, c in zip(judged, completions, strict=True)]
    return outcomes, cost


def with_tokens(outcome: Outcome, sample: Sample, decode: Decode) -> Outcome:
    """The outcome with what the log-probs of its completion say."""
    least = min(range(len(sample.logp)), key=sample.logp.__getitem__)
    return replace(outcome, mean_logp=None if outcome.verdict == "unparsed" else mean_logp(sample.logp),
                   box=box_tokens(sample.token_ids, sample.logp, decode),
                   doubt=Token(decode(sample.token_ids[least : least + 1]), sample.logp[least]))


def agreement(adapter: "Model", task: "CorrectorTask", outcomes: Sequence[Outcome], samples: int, seed: int, who: str
              ) -> tuple[list[float | None], Cost]:
    """The log of the share of so many samples that end in the same answer as each outcome; None where that has none.

    m of k samples count as (m + 1/2) / (k + 1): a share of 0 or 1 has no logit.
    """
    problems, corrector, shares, cost = [task.corrector.problem(o.row) for o in outcomes], task.corrector, [], Cost()
    for at, some in enumerate(_batches(problems, who)):
        begun = time.perf_counter()
        groups = adapter.sample(some, samples, seed + 10**6 * at)
        cost += Cost(sum(len(c.sample.token_ids) for group in groups for c in group), time.perf_counter() - begun)
        for outcome, group in zip(outcomes[at * AT_ONCE :], groups, strict=False):
            finals = [resolve(corrector.answer_in(c.text), outcome.api_extracted) for c in group]
            same = sum(final is not None and final == outcome.answer for final in finals)
            shares.append(None if outcome.verdict == "unparsed" else math.log((same + 0.5) / (samples + 1)))
    return shares, cost


def _batches(problems: Sequence[Problem], who: str) -> Iterator[Sequence[Problem]]:
    with tqdm(total=len(problems), desc=who, unit="question", delay=1, leave=False, disable=None) as bar:
        for at in range(0, len(problems), AT_ONCE):
            some = problems[at : at + AT_ONCE]
            yield some
            bar.update(len(some))
