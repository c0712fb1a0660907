"""What corrects: how a question is put, what counts as an answer, who is right. All but the data, the API and the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from adapter.measure.outcomes import FAILURES, Outcome, why_wrong
from adapter.prompt import Prompt
from adapter.questions import ApiAnswer, Row
from adapter.verdict import VERDICTS, Agree, Answer, Unparsed, boxes_in, final_answer, in_short, resolve
from adapter.verifiers.base import Pending, Ready, Verified, Verifier, submit
from grpo.run.files import brief
from grpo.types import Problem, Score, UserError

RIGHT = 1.0  # a verifier may pay less for less; what is right is fully right


@dataclass(frozen=True)
class PendingScore:
    """A completion that is being verified."""

    answer: Answer
    boxes: int
    verified: Pending | None  # None: there is nothing to verify

    @property
    def ready(self) -> bool:
        """Whether nothing has to be waited for."""
        return self.verified is None or isinstance(self.verified, Ready)

    def result(self) -> Score:
        """Waits for the verifier. Raises VerifierError where a user's own function failed."""
        found = self.verified.result() if self.verified else Verified(0.0)
        return Score(found.score, isinstance(self.answer, Unparsed), in_short(self.answer), self.boxes, found.timed_out)


def plain_question(text: str) -> Row:
    """A question that somebody asks. Its answer is not known. Raises ValueError where there is none."""
    if not text.strip():
        raise ValueError("an empty question; write one")
    return Row(text.strip(), None)


@dataclass(frozen=True)
class Corrector:
    """A task's way of asking and judging. Rows are those of questions.py; `row.api` is what the API answered."""

    prompt: Prompt
    verifier: Verifier
    read: Callable[[str], Row] = plain_question  # what a user of the chain asks; raises ValueError, in words
    failures: Sequence[str] = FAILURES
    why_wrong: Callable[[Outcome], str] = why_wrong  # the class of a wrong outcome, one of `failures`
    longest_name: int = 80  # characters of a problem's name, in logs and records

    def extracted(self, row: Row) -> str | None:
        """The API's answer, in the verifier's one way of writing it; None where its text holds none."""
        return self.verifier.extract(row.api.text, row) if row.api and row.api.text else None

    def problem(self, row: Row) -> Problem:
        """The row as a prompt. A problem is named by its question."""
        name = " ".join(row.question.split())
        if len(name) > self.longest_name or not name.isprintable():
            name = f"{brief(name, self.longest_name - 20)} ({row.id})"
        text = row.api.text if row.api else ""
        return Problem(name, row.kind, tuple(self.prompt.messages(row.question, text, self.extracted(row))), row)

    def answer_in(self, completion: str) -> Answer:
        """The answer that a completion gives. CORRECT is none where the prompt does not offer it."""
        return self._answer(boxes_in(completion))

    def submit(self, row: Row, completion: str) -> PendingScore:
        """Start to score a completion: 1 if the chain's final answer is right."""
        boxes = boxes_in(completion)
        answer = self._answer(boxes)
        final = resolve(answer, self.extracted(row))
        return PendingScore(answer, len(boxes), None if final is None else submit(self.verifier, row, final, completion))

    def judged(self, rows: Sequence[Row], completions: Sequence[str], truncated: Sequence[bool]) -> list[Outcome]:
        """What became of each question; the verifier's rules, and why a wrong one is wrong."""
        api = self.api_right(rows)
        pending = [self.submit(row, completion) for row, completion in zip(rows, completions, strict=True)]
        outcomes = []
        for row, text, cut, one, api_right in zip(rows, completions, truncated, pending, api, strict=True):
            final = resolve(one.answer, extracted := self.extracted(row))
            score = one.result()
            outcome = Outcome(row, text, cut, VERDICTS[type(one.answer)], extracted, api_right, final,
                              score.reward >= RIGHT, None, score.reward, score.timed_out)
            outcomes.append(outcome if outcome.right else outcome.because(self.why_wrong(outcome)))
        return outcomes

    def api_right(self, rows: Sequence[Row]) -> list[bool]:
        """Whether the API alone is right, of each row."""
        return self.all_right([(row, self.extracted(row)) for row in rows])

    def all_right(self, answers: Sequence[tuple[Row, str | None]]) -> list[bool]:
        """Whether each answer is right; None never is."""
        pending = [None if answer is None else submit(self.verifier, row, answer) for row, answer in answers]
        return [one is not None and one.result().score >= RIGHT for one in pending]

    def _answer(self, boxes: Sequence[str]) -> Answer:
        answer = final_answer(boxes, self.verifier)
        return Unparsed("nothing to agree with") if isinstance(answer, Agree) and not self.prompt.may_agree else answer


def with_answers(rows: Sequence[Row], answers: Sequence[ApiAnswer]) -> list[Row]:
    """The rows with what the API said. Raises UserError where there are fewer answers than rows."""
    if len(rows) != len(answers):
        raise UserError(f"the upstream gave {len(answers)} answers to {len(rows)} questions; expected one each")
    return [replace(row, api=answer) for row, answer in zip(rows, answers, strict=True)]
