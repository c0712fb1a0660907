"""The experiment as a corrector's task: correct an API's answers to arithmetic in symbols it has never seen."""

import re
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adapter.api.settings import make_upstream
from adapter.api.upstream import Upstream
from adapter.corrector import Corrector
from adapter.questions import Row
from adapter.rows import Splits
from adapter.task import CorrectorTask, table
from adapter.verifiers.number import Number
from grpo.config import Config
from grpo.types import Reference, UserError
from symbols import failures, rows
from symbols.expression import STANDARD, ExpressionError, Notation, evaluate, parse
from symbols.prompt import PromptText
from symbols.settings import DRAWN, Settings, make_notation, make_range
from symbols.simulated import SimulatedUpstream

if TYPE_CHECKING:
    from adapter.measure.accuracy import Entry
    from adapter.measure.sections import Section

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")


@dataclass(frozen=True)
class Whole(Number):
    """A number, which an API's text has to consist of: a sentence about one is no answer."""

    def extract(self, text: str, row: Row | None = None) -> str | None:
        """See Verifier of adapter/verifiers/base.py."""
        return self.normal(_THOUSANDS.sub("", text.strip().removesuffix(".")))


class SymbolTask(CorrectorTask):
    """Task of grpo.types. Kinds: custom (symbols) and standard (ordinary operators)."""

    Settings = Settings
    of_the_data: ClassVar = dict.fromkeys(("data", *DRAWN), True)

    @cached_property
    def notation(self) -> Notation:
        """Which sign stands for which operation."""
        return make_notation(self.settings)

    @staticmethod
    def make_corrector(settings: Settings) -> Corrector:
        """See CorrectorTask."""
        notation = make_notation(settings)
        return Corrector(PromptText(settings.condition, notation), Whole(), partial(read_question, notation),
                         failures.FAILURES, partial(failures.why_wrong, notation), rows.LONGEST)  # learning.py reads names

    @staticmethod
    def make_upstream(settings: Settings, seed: int, corrector: Corrector, quiet: bool = False) -> Upstream:
        """See CorrectorTask. The simulation is the experiment's own."""
        if settings.upstream == "simulated":
            return SimulatedUpstream(seed, make_notation(settings))
        return make_upstream(settings, seed, corrector.verifier, quiet)

    @staticmethod
    def read_rows(settings: Settings, seed: int, corrector: Corrector) -> Splits[list[Row]]:
        """The rows of a folder, or drawn ones. Raises UserError for settings that cannot be met."""
        notation, within = make_notation(settings), make_range(settings)
        if settings.data is not None:
            splits = rows.read(Path(settings.data), notation)
            check_said(settings, splits)
            return splits
        try:
            return rows.draw(seed, Splits(settings.train, settings.validation, settings.test), within, notation)
        except ValueError as error:
            raise UserError(f"task.operands, task.terms, task.limit: {error}; widen them, or lower task.train, "
                            "task.validation or task.test") from None

    @cached_property
    def trivial(self) -> list[Reference]:
        """What policies that do not look at the question score. A random mapping looks at all but the symbols."""
        test = self.rows.test
        chances = [failures.chance(row, self.notation) for row in test]
        return [*super().trivial, Reference("random mapping, expected", table(test, chances))]

    def policies(self) -> dict[str, "Entry"]:
        """See CorrectorTask."""
        from symbols import report  # which draws, and training does not

        return report.policies(self.rows.test, self.notation)

    def sections(self, run: Path, until: int, config: Config) -> list["Section"]:
        """See CorrectorTask."""
        from symbols import report

        return [report.section(run, until, config, self.notation, self.settings.condition)]


def read_question(notation: Notation, text: str) -> Row:
    """An expression in custom symbols or in ordinary operators, as a question. Raises ValueError, naming the place."""
    text = text.strip()
    custom = any(sign in text for sign in notation)
    used = notation if custom else STANDARD
    try:
        expression = parse(text, used)
        if not expression.ops:
            raise ExpressionError("it has no operation")
        evaluate(expression)
    except (ExpressionError, ZeroDivisionError) as error:
        what = "division by zero" if isinstance(error, ZeroDivisionError) else error
        raise ValueError(f"{what}; write it like 36 {next(iter(notation))} 52, or 36 + 52") from None
    row = rows.question(expression, custom, notation)
    if len(row.question) > rows.LONGEST:  # with the spaces that it is written with
        raise ValueError(f"the expression has {len(row.question)} characters; at most {rows.LONGEST} are read")
    return row


def check_said(settings: Settings, splits: Splits[list[Row]]) -> None:
    """Raises UserError where a key by which data sets are drawn is not its default, and is not true of this one."""
    said = {name for name in DRAWN if getattr(settings, name) != Settings.model_fields[name].default}
    for name, of_split in splits._asdict().items():
        path, value = Path(settings.data) / f"{name}.jsonl", getattr(settings, name)
        if name in said and len(of_split) != value:
            raise UserError(f"task.{name} = {value}: {path} has {len(of_split)} rows; set task.{name}={len(of_split)}, or "
                            "make another folder with python -m adapter.dataset")
        for key, row in sorted(rows.misses(of_split, make_range(settings), make_notation(settings)).items()):
            if key in said:
                raise UserError(f"task.{key} = {getattr(settings, key)}: {path}: {row.id}: {row.question[:60]} is not "
                                f"within it; set task.{key} to what the folder was made with, or make another one with "
                                "python -m adapter.dataset")


