"""The Task that GRPO is given: correct an API's answers to any questions whose answers can be verified."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from adapter.api.settings import OF_CALLERS, ApiSettings, make_upstream, missing
from adapter.api.upstream import Upstream
from adapter.corrector import Corrector, PendingScore, with_answers
from adapter.junk import true_answers
from adapter.questions import Row
from adapter.rows import RECORDED, Splits, folder_of_splits, read_data
from adapter.settings import Settings, make_corrector
from grpo.types import Problem, Reference, Score, Table, UserError

if TYPE_CHECKING:  # what measures is slow to load, and training does not need it
    from adapter.measure.accuracy import Entry
    from adapter.measure.sections import Section
    from grpo.config import Config


class CorrectorTask:
    """Task of grpo.types, for any data set. A task of its own kind inherits from it, and says what is different."""

    Settings = Settings
    of_the_data: ClassVar = {"data": True, "shares": True, "fields": True, "verifier": {"seconds", "processes"}}  # see asks

    def __init__(self, settings: Any, seed: int):
        """Read or make the data set, and ask the API what is not known. Raises UserError for settings that cannot be met."""
        self.settings, self.corrector = settings, self.make_corrector(settings)
        self.rows = asked(self.read_rows(settings, seed, self.corrector), self.make_upstream(settings, seed, self.corrector))
        self.train, self.validation, self.test = ([self.corrector.problem(row) for row in rows] for rows in self.rows)
        api = self.corrector.api_right(self.rows.test)
        self.references = {"api": Reference(f"{label(self.rows.test)} alone", table(self.rows.test, api))}

    @staticmethod
    def missing(settings: Any) -> list[str]:
        """What this machine lacks for the settings, in words: a key, for a real API."""
        return missing(settings)

    @staticmethod
    def make_corrector(settings: Any) -> Corrector:
        """How to ask and judge, without any data. Raises UserError."""
        return make_corrector(settings)

    @classmethod
    def asks(cls, settings: Any) -> dict[str, object]:
        """The settings that prompt or verdict depend on: of two runs alike in these, one can take the other's place.

        `of_the_data` names those, beside the API's, that say where questions come from and how long a verifier may take.
        """
        of_the_api = dict.fromkeys(ApiSettings.model_fields.keys() - {*OF_CALLERS}, True)
        return settings.model_dump(exclude=cls.of_the_data | of_the_api)

    @staticmethod
    def make_upstream(settings: Any, seed: int, corrector: Corrector, quiet: bool = False) -> Upstream:
        """The API in front. quiet: it shows no progress."""
        return make_upstream(settings, seed, corrector.verifier, quiet)

    @staticmethod
    def read_rows(settings: Any, seed: int, corrector: Corrector) -> Splits[list[Row]]:
        """The rows, with the API's answers where they are known. The seed is for a task that draws its questions."""
        place = Path(settings.data)
        if folder_of_splits(place) and settings.shares != Settings.model_fields["shares"].default:
            raise UserError(f"task.shares: divide a single file, and {place} is a folder of three; leave them out, or say "
                            "task.shares=[0.8,0.1,0.1]")
        return read_data(place, settings.shares, settings.fields, corrector.verifier.check)

    def score(self, problem: Problem, text: str) -> Score | PendingScore:
        """1.0 if the chain's final answer is right. `answers` counts the boxes. A user's own verifier is not waited for."""
        begun = self.corrector.submit(problem.data, text)
        return begun.result() if begun.ready else begun

    @cached_property
    def trivial(self) -> list[Reference]:
        """What policies that do not look at the question score on the test problems."""
        rows, api = self.rows.test, self.references["api"].accuracy
        times = Counter(answer for row in self.rows.train if (answer := self.true_answer(row)) is not None)
        commonest = min(times, key=lambda answer: (-times[answer], answer), default=None)
        always = [] if commonest is None else [Reference(f"always {commonest[:40]}", table(
            rows, self.corrector.all_right([(row, commonest) for row in rows])))]
        return [*([Reference("always CORRECT", api)] if self.corrector.prompt.may_agree else []), *always]

    def policies(self) -> dict[str, "Entry"]:
        """What else the tables of adapter.evaluate compare the adapter with, by its name in report.json."""
        return {}

    def sections(self, run: Path, until: int, config: "Config") -> list["Section"]:
        """What else adapter.evaluate reports of a run, up to a step. Raises UserError where its records are damaged."""
        return []

    def true_answer(self, row: Row) -> str | None:
        """A row's answer as a box would hold it; None where it is no plain value."""
        texts = true_answers(row, self.corrector.verifier)
        return self.corrector.verifier.normal(texts[0]) if texts else None


def asked(splits: Splits[list[Row]], upstream: Upstream) -> Splits[list[Row]]:
    """The rows with what the API said, which is asked for all that are without, at once."""
    unknown = [row for rows in splits for row in rows if row.api is None]
    answers = iter(with_answers(unknown, upstream.answers(unknown)) if unknown else [])
    return Splits(*([row if row.api is not None else next(answers) for row in rows] for rows in splits))


def label(rows: Sequence[Row]) -> str:
    """Who answered, as printed."""
    models = sorted({row.api.model for row in rows})
    shown = [NAMES.get(model, model[:100]) for model in models[:3]]
    return ", ".join(shown) + (f" and {len(models) - 3} others" if len(models) > 3 else "")


def table(rows: Sequence[Row], right: Sequence[bool | float]) -> Table:
    """The mean of `right` by kind, in the order of their names, and overall."""
    by_kind: dict[str, list[float]] = {}
    for row, value in zip(rows, right, strict=True):
        by_kind.setdefault(row.kind, []).append(float(value))
    whole = {kind: sum(values) / len(values) for kind, values in sorted(by_kind.items())}
    return whole | {"overall": sum(map(float, right)) / max(1, len(right))}


NAMES = {"simulated": "simulated API", RECORDED: "recorded API"}
