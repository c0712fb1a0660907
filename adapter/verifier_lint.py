"""Does a verifier hold? Before any time of a GPU: its true answers score 1, junk scores 0, and scoring twice agrees.

It also finds answers that the verifier cannot compare with, calls that take too long, questions that are in two splits, and
an extraction that takes another answer than the last one. What it finds is data; each finding has one plain line.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from adapter.junk import junk_answers, true_answers
from adapter.questions import Row
from adapter.verdict import AGREE, boxes_in, final_answer, resolve
from adapter.verifiers.base import Pending, Verified, Verifier, submit
from adapter.verifiers.own import Own
from grpo.run.files import brief
from grpo.types import VerifierError

SHOWN = 10  # extractions
AT_ONCE, ENOUGH = 16, 8  # answers that are tried at once; of failing ones, after which no more are
DECOY = "17"  # where all rows have the same answer


@dataclass(frozen=True)
class Finding:
    """One thing wrong, with all rows that show it."""

    check: str  # "refused answer", "true answer", "junk", "raises", "too slow", "random", "extraction" or "duplicates"
    line: str  # in words
    rows: int = 1  # how many show it
    label: str = ""  # of the junk that pays, or what was raised


@dataclass(frozen=True)
class Extraction:
    """What was found in an API's text."""

    question: str
    text: str
    found: str | None


@dataclass(frozen=True)
class VerifierReport:
    """What became of all calls."""

    findings: list[Finding]
    calls: int
    p50: float  # seconds a call
    p99: float
    extractions: list[Extraction]  # of the first SHOWN rows with an API's text
    unknown: int  # rows whose true answer only the function could tell: with a dict, or with none


@dataclass(frozen=True)
class _Wrong:
    """One call that shows a finding."""

    check: str
    label: str  # of the junk, or what was raised
    row: Row
    answer: str


@dataclass(frozen=True)
class _Tried:
    """An answer that was scored twice."""

    row: Row
    label: str  # "" for a true answer
    text: str  # what the box holds
    calls: tuple[Pending, ...]  # none where it is no answer of the kind: then the score is 0


def lint_verifier(splits: Mapping[str, Sequence[Row]], verifier: Verifier, most: int = 100) -> VerifierReport:
    """Everything above, on up to `most` rows, taken evenly from all splits. splits: rows by the split's name."""
    rows = [row for split in splits.values() for row in split]
    findings = [*_refused(rows, verifier), *_duplicates(splits)]
    sound = [row for row in rows if _refusal(row, verifier) is None]
    chosen = sound[::max(1, -(-len(sound) // most))]
    every = list(dict.fromkeys(true for row in chosen for true in true_answers(row, verifier)))
    cases = [(row, "", true) for row in chosen for true in true_answers(row, verifier)]
    cases += [(row, label, text) for row in chosen for label, text in junk_answers(row, verifier, every)
              if text != AGREE or not _api_right(row, verifier)]
    wrong, seconds = _scored(cases, verifier)
    findings += [*_gathered(wrong, len(chosen)), *_extracts(chosen, verifier, every)]
    shown = [row for row in rows if row.api is not None and row.api.text][:SHOWN]
    times = sorted(seconds) or [0.0]
    return VerifierReport(
        findings, len(seconds), times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)],
        [Extraction(row.question, row.api.text, verifier.extract(row.api.text, row)) for row in shown],
        sum(not true_answers(row, verifier) for row in chosen))


def _refusal(row: Row, verifier: Verifier) -> str | None:
    try:
        verifier.check(row)
    except ValueError as error:
        return str(error)
    return None


def _refused(rows: Sequence[Row], verifier: Verifier) -> list[Finding]:
    refused = [(row, why) for row in rows if (why := _refusal(row, verifier)) is not None]
    return [Finding("refused answer", f"the verifier cannot compare with the answers of {len(refused)} rows, such as "
                    f"{_name(row)}: {why}", len(refused)) for row, why in refused[:1]]


def _duplicates(splits: Mapping[str, Sequence[Row]]) -> list[Finding]:
    asked = {name: {" ".join(row.question.split()): row for row in rows} for name, rows in splits.items()}
    findings = []
    for one, other in combinations(asked, 2):
        if both := [asked[other][question] for question in asked[other] if question in asked[one]]:
            findings.append(Finding("duplicates", f"{len(both)} questions of {other} are in {one} too, such as "
                                    f"{_name(both[0])}; leave them out of one", len(both)))
    return findings


def _try(row: Row, verifier: Verifier, label: str, text: str) -> _Tried:
    """As a completion that ends in a box with that text: what is read out of it, and scored, twice."""
    completion = f"\\boxed{{{text}}}"
    api = verifier.extract(row.api.text, row) if row.api is not None and text == AGREE else None
    answer = resolve(final_answer(boxes_in(completion), verifier), api)
    return _Tried(row, label, text, () if answer is None else tuple(submit(verifier, row, answer, completion) for _ in "12"))


def _scored(cases: Sequence[tuple[Row, str, str]], verifier: Verifier) -> tuple[list[_Wrong], list[float]]:
    """What is wrong, and the seconds of each call. A few at once: the rest is left where ENOUGH calls hang or fail."""
    wrong, seconds = [], []
    for at in range(0, len(cases), AT_ONCE):
        for one in [_try(row, verifier, label, text) for row, label, text in cases[at : at + AT_ONCE]]:
            found, results = None, []
            try:
                results = [call.result() for call in one.calls] or [Verified(0.0)] * 2
            except VerifierError as error:
                found = _Wrong("raises", error.sample.fault, one.row, one.text)
            seconds += [result.seconds for result in results if one.calls]
            if found is None:
                found = _judged(one, results, verifier)
            wrong += [found] if found is not None else []
        if sum(w.check in ("raises", "too slow") for w in wrong) >= ENOUGH:
            break
    return wrong, seconds


def _judged(one: _Tried, results: Sequence[Verified], verifier: Verifier) -> _Wrong | None:
    first, second = results
    if first.timed_out or second.timed_out:
        return _Wrong("too slow", one.label, one.row, one.text)
    if first.score != second.score:
        return _Wrong("random", one.label, one.row, one.text)
    if one.label:
        return _Wrong("junk", one.label, one.row, one.text) if first.score > 0 else None
    whole = isinstance(verifier, Own) and isinstance(one.row.answer, list)  # a list may be one answer to a user's function
    right = first.score == 1.0 or (whole and _score(one.row, verifier, json.dumps(one.row.answer)) == 1.0)
    return None if right else _Wrong("true answer", "", one.row, one.text)


def _gathered(wrong: Sequence[_Wrong], rows: int) -> list[Finding]:
    """A finding for each kind of fault and of junk."""
    kinds = dict.fromkeys((w.check, w.label if w.check == "junk" else "") for w in wrong)
    findings = []
    for check, label in kinds:
        of = [w for w in wrong if w.check == check and (check != "junk" or w.label == label)]
        first, many = of[0], len({(w.row.question, w.row.id) for w in of})
        such = f"{many} of {rows} rows, such as {_name(first.row)} with {brief(repr(first.answer), 60)}"
        findings.append(Finding(check, {
            "raises": f"the verifier fails on {such}: {brief(first.label)}",
            "too slow": f"a call takes longer than its time limit on {such}; GRPO would score that 0",
            "random": f"scoring twice disagrees on {such}; the same answer must always score the same",
            "junk": f"junk pays: {label} scores more than 0 on {such}; GRPO would learn to write that",
            "true answer": f"a true answer does not score 1 on {such}; no completion can be right there",
        }[check], many, first.label))
    return findings


def _extracts(rows: Sequence[Row], verifier: Verifier, every: Sequence[str]) -> list[Finding]:
    """Two texts a row, each with another answer first: the last one is the one that counts."""
    missed = []
    for row in rows:
        for true in true_answers(row, verifier)[:1]:
            wanted = verifier.normal(true)
            decoys = (other for other in (*every, DECOY) if (other[:1] in ("[", "{")) == (true[:1] in ("[", "{")))
            decoy = next((other for other in decoys if verifier.normal(other) not in (None, wanted)), None)
            if wanted is None or decoy is None:
                continue
            again = f"I looked again, and the answer is {true}."
            seen = verifier.extract(again, row) == wanted  # else this kind is not looked for in free text
            boxed = verifier.extract(f"\\boxed{{{true}}}", row) == wanted  # else an API's text is read in another way
            texts = [f"\\boxed{{{decoy}}} is wrong; it is \\boxed{{{true}}}"] if boxed else []
            texts += [f"First I had {decoy}. {again}"] if seen else []
            if wrong := [found for text in texts if (found := verifier.extract(text, row)) != wanted]:
                missed.append((row, brief(repr(wrong[0]), 60), brief(repr(wanted), 60)))
    return [Finding("extraction", f"from an API's text with two answers the first one is taken, or none, on {len(missed)} "
                    f"of {len(rows)} rows, such as {_name(row)}: {found} instead of {wanted}", len(missed))
            for row, found, wanted in missed[:1]]


def _api_right(row: Row, verifier: Verifier) -> bool:
    found = None if row.api is None else verifier.extract(row.api.text, row)
    return found is not None and _score(row, verifier, found) == 1.0


def _score(row: Row, verifier: Verifier, answer: str) -> float:
    try:
        return submit(verifier, row, answer).result().score
    except VerifierError:  # said where it fails on an answer of the lint's own
        return 0.0


def _name(row: Row) -> str:
    return f"row {brief(row.id, 60)}" if row.id else brief(repr(row.question), 60)
