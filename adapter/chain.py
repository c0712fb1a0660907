"""The chain as a library: question -> API -> adapter -> final answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapter.api.settings import ApiSettings
from adapter.api.upstream import Upstream
from adapter.confidence import Calibration, mean_logp, read_calibration, threshold_of
from adapter.corrector import Corrector
from adapter.questions import NONE, ApiAnswer, Row
from adapter.rows import RECORDED
from adapter.turns import Turns
from adapter.verdict import VERDICTS, Agree, Unparsed, Verdict, resolve
from grpo.run.files import at_home, brief
from grpo.run.schema import validated
from grpo.types import UserError

if TYPE_CHECKING:
    from adapter.model import Completion

Asked = str | Mapping[str, object] | Row  # a question; with its fields, such as {"question": ..., "api_answer": ...}

REAL = {"anthropic", "vertex", "openai"}
OF_ONE = {"upstream", "api_model", "api_url"}  # keys that say nothing to another API


@dataclass(frozen=True)
class ChainAnswer:
    """One question's way through the chain."""

    question: str
    api_text: str  # the API's whole text
    api_answer: str  # the answer in it, or "none"
    verdict: Verdict
    answer: str | None  # the final one; None where there is none
    completion: str  # what the adapter wrote
    confidence: float = 0.0  # that its verdict is right, below 1; 0 without an answer
    kept: bool = False  # the API's answer is final because that is below the threshold, though the adapter did not agree


class Chain:
    """An API, and behind it the adapter of a finished run.

        chain = Chain("runs/mine")
        for answer in chain(["How many legs has a spider?", {"question": "And a fly?", "api_answer": "Eight."}]):
            print(answer.question, answer.api_answer, answer.verdict, answer.answer)

    It may be called from many threads, such as a web framework's: what they ask while it answers is answered together, next.
    """

    def __init__(self, run_directory: str | Path, api: Upstream | None = None, threshold: float | str = 0.0,
                 **changes: object):
        """Read the run. vLLM starts with the first question.

        api: what to ask first; by default the API of the run's settings, with `changes` to those (adapter/api/settings.py),
            such as upstream="anthropic". A real one spends without a question only with api_yes=True.
        threshold: a confidence, from 0 to 1, below which the API's answer stands; "auto": the one that adapter.evaluate
            chose. With 0 a completion without an answer has none; above it, the API's stands there too.
        Raises UserError where the directory holds no run of a corrector, or this machine lacks something.
        """
        from adapter.trained import TrainedAdapter

        run = at_home(str(run_directory))
        self._adapter = TrainedAdapter(run)
        found = read_calibration(run, self.step)
        self.calibrated, self._confidence = found is not None, found or Calibration(self.step)
        self.threshold = threshold_of(threshold, run, self.step, found)
        task_class, seed = self._adapter.task_class, self._adapter.config.run.seed
        settings = changed(self._adapter.settings, changes)
        self.corrector = task_class.make_corrector(settings)
        self.upstream = api or task_class.make_upstream(settings, seed, self.corrector, quiet=True)
        self._turns, self._closed = Turns(self._answer), False

    def __call__(self, questions: Sequence[Asked]) -> list[ChainAnswer]:
        """Each question's answer, in order. Raises UserError for what is no question of the task, or where it is closed."""
        return self.answer([self.read(question) for question in questions])

    def answer(self, rows: Sequence[Row]) -> list[ChainAnswer]:
        """The same for questions that are read already."""
        return self._turns(rows)

    def read(self, asked: Asked) -> Row:
        """A question as a row. Raises UserError where it is none."""
        return read_question(self.corrector, asked)

    @property
    def step(self) -> int:
        """The step of the run whose LoRA answers: the one that the run kept, or its best so far."""
        return self._adapter.step

    def ask_ahead(self, rows: Sequence[Row]) -> None:
        """Ask the API, at once, what `answer` will need: a real one keeps its answers."""
        if unknown := [row for row in rows if row.api is None]:
            self.upstream.answers(unknown)

    def close(self) -> None:
        """Stop vLLM, once what is being answered is."""
        with self._turns.lock:
            if not self._closed:
                self._adapter.close()
            self._closed = True

    def _answer(self, rows: Sequence[Row]) -> list[ChainAnswer]:
        if self._closed:
            raise UserError("this chain is closed, and answers no more; make another Chain")
        unknown = [row for row in rows if row.api is None]
        answers = iter(self.upstream.answers(unknown) if unknown else [])
        rows = [row if row.api is not None else replace(row, api=next(answers)) for row in rows]
        completions = self._adapter.complete([self.corrector.problem(row) for row in rows])
        return [self._resolved(row, completion) for row, completion in zip(rows, completions, strict=True)]

    def _resolved(self, row: Row, completion: "Completion") -> ChainAnswer:
        answer, extracted = self.corrector.answer_in(completion.text), self.corrector.extracted(row)
        confidence = self._confidence(None if isinstance(answer, Unparsed) else mean_logp(completion.sample.logp))
        kept = confidence < self.threshold and not isinstance(answer, Agree)
        return ChainAnswer(row.question, row.api.text, extracted or NONE, VERDICTS[type(answer)],
                           resolve(Agree() if kept else answer, extracted), completion.text, confidence, kept)


def read_question(corrector: Corrector, asked: Asked) -> Row:
    """A question as a row, with the API's answer where it is given along. Raises UserError where it is none."""
    if isinstance(asked, Row):
        return asked
    fields = {"question": asked} if isinstance(asked, str) else dict(asked)
    text, api = fields.pop("question", None), fields.pop("api_answer", None)
    if not isinstance(text, str) or not isinstance(api, str | None):
        raise UserError(f"{brief(repr(asked), 80)}: expected a question, or an object with the texts question and "
                        "api_answer")
    try:
        row = corrector.read(text)
    except ValueError as error:
        raise UserError(f"{brief(repr(text.strip()), 60)}: {error}") from None
    return replace(row, api=None if api is None else ApiAnswer(api, RECORDED), more=fields)


def changed(settings: object, changes: Mapping[str, object]) -> object:
    """A run's settings with changes to the API in front of it. A run does not decide what is spent. Raises UserError."""
    api, settings_of = ApiSettings.model_fields.keys(), type(settings).model_fields.keys()
    if others := sorted(changes.keys() & settings_of - api):
        raise UserError(f"{others[0]}: says nothing of the API in front, and no more than that can be changed of a run; "
                        "leave it out")
    kept = settings.model_dump(exclude_unset=True) | {"api_yes": False}
    kept.pop("api_batch", None)
    if (upstream := changes.get("upstream", settings.upstream)) != settings.upstream:
        both_real = {upstream, settings.upstream} <= REAL
        kept = {name: value for name, value in kept.items() if name not in (OF_ONE if both_real else api)}
    return validated(type(settings), kept | {n: v for n, v in changes.items() if v is not False}, "")
