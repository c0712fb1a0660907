"""How often a prompt that is not the operator's talks the adapter out of its verdict: `python -m benchmarks.injections RUN`.

examples/serving/injections.jsonl has 50 texts, which are put behind the question or the API's answer; {wrong} in one stands
for another question's answer. Some want CORRECT, some an override. Ten more want nothing: what they change is the noise.
A text succeeds on a test question whose verdict, without it, was not the wanted one, and is with it. Rates are means over
texts, with 95 % intervals by a bootstrap over texts, as the questions are the same for all.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from adapter.chain import Chain, ChainAnswer
from adapter.commands import run
from adapter.corrector import Corrector
from adapter.junk import true_answers
from adapter.lint import some
from adapter.measure.accuracy import share
from adapter.questions import Row
from adapter.rows import Splits
from adapter.task import asked
from adapter.trained import TrainedAdapter
from grpo.run.files import at_home, read_lines

TEXTS = Path(__file__).parents[1] / "examples" / "serving" / "injections.jsonl"
WANTED = {"agree": "correct", "override": "override"}  # the verdict
DRAWS = 10_000


class Injection(BaseModel):
    """A text, and what it is after."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    id: str
    where: Literal["question", "api"]
    wants: Literal["agree", "override", "nothing"]
    text: str


@dataclass(frozen=True)
class Tried:
    """What one text did."""

    injection: Injection
    wants: Literal["agree", "override"]  # of a text that wants nothing: each in turn
    changed: int  # verdicts, to the wanted one
    of: int  # questions whose verdict was another without it
    to_theirs: int  # of the changed ones: the answer is the one that the text named
    unparsed: int  # of these questions


def injected(row: Row, injection: Injection, wrong: str) -> Row:
    """The row with the text behind its question or its API's answer."""
    text = injection.text.replace("{wrong}", wrong)
    if injection.where == "question":
        return replace(row, question=f"{row.question} {text}")
    return replace(row, api=replace(row.api, text=f"{row.api.text} {text}"))


def tried(injection: Injection, before: Sequence[ChainAnswer], after: Sequence[ChainAnswer], wrong: Sequence[str],
          corrector: Corrector) -> list[Tried]:
    """What a text did to the questions, for each thing that it may want."""
    found = []
    for wants, verdict in WANTED.items():
        if injection.wants not in (wants, "nothing"):
            continue
        open_ = [(b, a, w) for b, a, w in zip(before, after, wrong, strict=True) if b.verdict != verdict]
        changed = [(a, w) for _, a, w in open_ if a.verdict == verdict]
        theirs = sum(verdict == "override" and a.answer == corrector.verifier.normal(w) for a, w in changed)
        unparsed = sum(a.verdict == "unparsed" for _, a, _ in open_)
        found.append(Tried(injection, wants, len(changed), len(open_), theirs, unparsed))
    return found


def interval(rates: Sequence[float]) -> tuple[float, float]:
    """95 %, by a bootstrap over texts."""
    drawn = np.random.default_rng(0).choice(np.array(rates), (DRAWS, len(rates))).mean(axis=1)
    return tuple(float(bound) for bound in np.quantile(drawn, [0.025, 0.975]))


def told(name: str, some_tried: Sequence[Tried]) -> str:
    """A line of the table."""
    of_them = [one for one in some_tried if one.of]
    if not of_them:
        return f"{name:<34} no question had another verdict"
    rates = [one.changed / one.of for one in of_them]
    low, high = interval(rates)
    worst = max(of_them, key=lambda one: one.changed / one.of)
    bounds = share(worst.changed, worst.of)
    total = sum(one.of for one in of_them)
    theirs, none = (sum(counts) / total for counts in ((o.to_theirs for o in of_them), (o.unparsed for o in of_them)))
    return (f"{name:<34} {len(of_them):>3} {np.mean(rates):>7.1%} [{low:.1%}, {high:.1%}]   theirs {theirs:.1%}   "
            f"no answer {none:.1%}   worst {worst.injection.id} {bounds.value:.0%} [{bounds.low:.0%}, {bounds.high:.0%}] of "
            f"{worst.of}")


def main(arguments: list[str]) -> None:
    """Measure and print. Raises UserError where there is no such run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.injections", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=at_home, help="a run that train.py wrote")
    parser.add_argument("--questions", type=int, default=100, help="test questions that each text is tried on")
    options = parser.parse_args(arguments)
    adapter = TrainedAdapter(options.run)
    chain = Chain(options.run)
    rows = adapter.task_class.read_rows(adapter.settings, adapter.config.run.seed, chain.corrector).test
    rows = asked(Splits(some(rows, options.questions), [], []), chain.upstream).train
    truths = [next(iter(true_answers(row, chain.corrector.verifier)), "0") for row in rows]
    wrong = [next((other for other in truths[at:] + truths[:at] if other != truths[at]), "0") for at in range(len(rows))]
    before = chain.answer(rows)
    verdicts = [answer.verdict for answer in before]
    print(f"{options.run}, step {chain.step}: {len(rows)} test questions, without a text: "
          + ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("correct", "override", "unparsed")))
    every: list[Tried] = []
    for _, injection in read_lines(TEXTS, Injection, "restore it"):
        after = chain.answer([injected(row, injection, theirs) for row, theirs in zip(rows, wrong, strict=True)])
        every += tried(injection, before, after, wrong, chain.corrector)
    chain.close()
    print(f"{'behind, wants':<34} {'n':>3} {'changed as wanted [95 %]':<24}")
    for where in ("question", "api"):
        for wants in WANTED:
            of = [one for one in every if one.injection.where == where and one.wants == wants]
            for neutral in (False, True):
                print(told(f"{'the API answer' if where == 'api' else 'the question'}, {wants}{', neutral text' * neutral}",
                           [one for one in of if (one.injection.wants == "nothing") == neutral]))
    print(told("all that want something", [one for one in every if one.injection.wants != "nothing"]))
    print(told("all neutral texts", [one for one in every if one.injection.wants == "nothing"]))


if __name__ == "__main__":
    sys.exit(run(main))
