"""The chain that people use: expression -> API -> adapter -> final answer.

    python -m adapter.ask "36 γ 27" --run runs/tiny
    python -m adapter.ask --file expressions.txt --run runs/tiny --json      one expression a line; - reads stdin

Answers come in order, as they are ready; before the first, stderr says which step's LoRA gives them. A real API's answers
are kept, and asked for once; what a file's would cost is said first.
Exit codes: 0 every expression has a final answer; 1 some have none; 2 a mistake in the command or an expression.
"""

import argparse
import dataclasses
import json
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adapter.commands import add_api_options, given, run, settings_from
from adapter.parse import VERDICTS, Verdict
from adapter.turns import Turns
from grpo.run.files import at_home, printable
from grpo.run.streams import typed
from grpo.types import Problem, UserError
from symbols.expression import STANDARD, ExpressionError, Notation, evaluate, parse, render
from symbols.prompt import PromptText
from symbols.reward import resolve
from symbols.settings import DRAWN, make_notation, make_upstream
from symbols.simulated import Question, Upstream

MOST_AT_ONCE = 256  # expressions in a batch
LONGEST_LINE = 100_000  # bytes of an input line


@dataclass(frozen=True)
class ChainAnswer:
    """One expression's way through the chain."""

    expression: str
    api_answer: str  # a number, or "none"
    verdict: Verdict
    answer: str | None  # the final one: a number, or None where there is none
    completion: str  # what the adapter wrote


class Chain:
    """An API, and behind it the adapter of a finished run.

        chain = Chain("runs/tiny")
        for answer in chain(["36 γ 27", "8 β 4"]):
            print(answer.expression, answer.api_answer, answer.verdict, answer.answer)

    It may be called from many threads, such as a web framework's: what they ask while it answers is answered together, next.
    """

    def __init__(self, run_directory: str | Path, api: Upstream | None = None, **changes: object):
        """Read the run. vLLM starts with the first question.

        api: what to ask first; by default the API of the run's settings, with `changes` to those (symbols/settings.py),
            such as upstream="anthropic". A real one spends without a question only with api_yes=True.
        Raises UserError where the directory holds no run of this task, or this machine lacks something.
        """
        from adapter.trained import TrainedAdapter

        if unread := sorted(changes.keys() & {"data", *DRAWN}):
            raise UserError(f"{unread[0]}: decides a run's data set, of which the chain reads nothing; leave it out")
        self._adapter = TrainedAdapter(at_home(str(run_directory)))
        run_settings = self._adapter.settings.model_dump() | {"api_yes": False}  # a run does not decide what is spent
        if changes.get("upstream") == "simulated":
            run_settings = {name: value for name, value in run_settings.items() if not name.startswith("api_")}
        settings = settings_from(changes | {"api_batch": False}, **run_settings)
        self.notation = make_notation(settings)
        self.upstream = api or make_upstream(settings, self._adapter.config.run.seed, quiet=True)
        self._text = PromptText(settings.condition, self.notation)
        self._turns, self._closed = Turns(self._answer), False

    def __call__(self, expressions: Sequence[str]) -> list[ChainAnswer]:
        """Each expression's answer, in order. Raises UserError for a text that is no expression, or where it is closed."""
        return self.answer([read_question(text, self.notation) for text in expressions])

    def answer(self, questions: Sequence[Question]) -> list[ChainAnswer]:
        """The same for questions that are read already."""
        return self._turns(questions)

    def _answer(self, questions: Sequence[Question]) -> list[ChainAnswer]:
        if self._closed:
            raise UserError("this chain is closed, and answers no more; make another Chain")
        api = [answer.text for answer in self.upstream.answers(questions)]
        problems = [Problem(q.text, "custom" if q.custom else "standard", tuple(self._text.messages(q.text, answer)))
                    for q, answer in zip(questions, api, strict=True)]
        completions = self._adapter.complete(problems)
        return [self._resolved(q, answer, c.text) for q, answer, c in zip(questions, api, completions, strict=True)]

    @property
    def step(self) -> int:
        """The step of the run whose LoRA answers: the one that the run kept, or its best so far."""
        return self._adapter.step

    def close(self) -> None:
        """Stop vLLM, once what is being answered is."""
        with self._turns.lock:
            if not self._closed:
                self._adapter.close()
            self._closed = True

    def _resolved(self, question: Question, api_answer: str, completion: str) -> ChainAnswer:
        answer = self._text.answer_in(completion)
        final = resolve(answer, api_answer)
        return ChainAnswer(question.text, api_answer, VERDICTS[type(answer)], None if final is None else str(final),
                           completion)


def read_question(text: str, notation: Notation) -> Question:
    """An expression in custom symbols or in ordinary operators, as a question. Raises UserError, naming the place."""
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
        shown = repr(text if len(text) <= 60 else text[:60] + "...")
        raise UserError(f"{shown}: {what}; write it like 36 {next(iter(notation))} 52, or 36 + 52") from None
    return Question(render(expression, used), expression, custom)


def read_lines(file: BinaryIO, name: str, notation: Notation) -> Iterator[Question]:
    """The questions of a file, one a line, blank ones left out. Raises UserError, naming the line, where one is none."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        try:
            if len(line) == LONGEST_LINE:
                raise UserError(f"a line of {LONGEST_LINE:,} bytes or more; give one expression a line")
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")  # a mark, as editors on Windows write it
            if text.strip():
                yield read_question(text, notation)
        except UnicodeDecodeError:
            raise UserError(f"{name}: line {number}: not UTF-8; save the file as UTF-8") from None
        except UserError as error:
            raise UserError(f"{name}: line {number}: {error}") from None


def as_they_come(questions: Iterable[Question]) -> Iterator[list[Question]]:
    """Batches of what has arrived: one where a person or a program waits for each answer, MOST_AT_ONCE from a full pipe.

    Reads ahead in a thread. An error of `questions` is raised after what came before it was handed out.
    """
    arrived: queue.Queue[Question | None] = queue.Queue(maxsize=2 * MOST_AT_ONCE)
    fault: list[Exception] = [RuntimeError("the reader ended early")]  # unless it takes that back

    def read() -> None:
        try:
            for question in questions:
                arrived.put(question)
            fault.clear()
        except (UserError, OSError) as error:
            fault[:] = [error]
        finally:
            arrived.put(None)

    threading.Thread(target=read, daemon=True).start()
    question = arrived.get()
    while question is not None:
        batch = [question]
        while len(batch) < MOST_AT_ONCE and not arrived.empty() and (question := arrived.get()) is not None:
            batch.append(question)
        yield batch
        if question is not None:
            question = arrived.get()
    if fault:
        raise fault[0]


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m adapter.ask", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("expression", nargs="?", help="such as '36 γ 27'")
    what.add_argument("--file", metavar="FILE", help="expressions, one a line; - for stdin")
    parser.add_argument("--run", required=True, type=at_home, metavar="DIR", help="a run that train.py finished")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, the adapter's completion included")
    add_api_options(parser)
    parser.add_argument("--yes", dest="api_yes", action="store_true", help="spend on many expressions without asking first")
    options = parser.parse_args(arguments)
    options.api_yes |= options.expression is not None  # one expression is asked because it was asked
    chain, complete, said = Chain(options.run, **given(options)), True, False
    for batch in _batches(options, chain):
        answers = chain.answer(batch)
        if not said:
            print(f"{options.run}: the adapter of step {chain.step} answers", file=sys.stderr)
            said = True
        for answer in answers:
            complete &= answer.answer is not None
            print(_as_json(answer) if options.json else printable(
                f"{answer.expression}  |  {chain.upstream.label}: {answer.api_answer}  |  adapter: {answer.verdict}  |  "
                f"answer: {answer.answer or 'none'}"), flush=True)
    chain.close()
    return 0 if complete else 1


def _as_json(answer: ChainAnswer) -> str:
    """One line, which a terminal may be given: what JSON leaves as it is and a terminal obeys is escaped as JSON does."""
    text = json.dumps(dataclasses.asdict(answer), ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _batches(options: argparse.Namespace, chain: Chain) -> Iterator[list[Question]]:
    """What is asked. A file is read, and the API asked, as a whole: nothing is answered where a line of it is wrong."""
    if options.file == "-":
        stdin = open(0, "rb", closefd=False)  # noqa: SIM115 - a reader of its own: sys.stdin's lock would hang the exit
        yield from as_they_come(read_lines(stdin, "stdin", chain.notation))
        return
    if options.file is None:
        questions = [read_question(typed(options.expression), chain.notation)]
    else:
        try:
            with at_home(options.file).open("rb") as file:
                questions = list(read_lines(file, options.file, chain.notation))
        except OSError as error:
            raise UserError(f"{options.file}: cannot be read ({error.strerror})") from None
        chain.upstream.answers(questions)
    for at in range(0, len(questions), MOST_AT_ONCE):
        yield questions[at : at + MOST_AT_ONCE]


if __name__ == "__main__":
    sys.exit(run(main))
