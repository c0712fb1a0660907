"""The chain that people use: question -> API -> adapter -> final answer.

    python -m adapter.ask "How many legs has a spider?" --run runs/mine                            the run's API is asked
    python -m adapter.ask "How many legs has a spider?" --run runs/mine --api-answer "Six."        it has answered
    python -m adapter.ask --file questions.txt --run runs/mine --json      one question a line; - reads stdin

    python -m adapter.ask --file questions.txt --run runs/mine --threshold 0.8      the API's answer stands below that

A line of a file is a question, or an object such as {"question": "...", "api_answer": "..."}. Beside the adapter's verdict
stands its confidence, the probability that it is right (adapter/confidence.py).

Answers come in order, as they are ready; before the first, stderr says which step's LoRA gives them. A real API's answers
are kept, and asked for once; what a file's would cost is said first.
Exit codes: 0 every question has a final answer; 1 some have none; 2 a mistake in the command or a question.
"""

import argparse
import dataclasses
import json
import math
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from adapter import strict_json
from adapter.chain import Asked, Chain, ChainAnswer
from adapter.commands import add_api_options, given, run
from adapter.questions import Row
from grpo.run.files import at_home, printable
from grpo.run.streams import typed
from grpo.types import UserError

MOST_AT_ONCE = 256  # questions in a batch
LONGEST_LINE = 2**20  # bytes of an input line


def read_lines(file: BinaryIO, name: str, read: Callable[[Asked], Row]) -> Iterator[Row]:
    """The questions of a file, one a line, blank ones left out. Raises UserError, naming the line, where one is none."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        try:
            if len(line) == LONGEST_LINE:
                raise UserError(f"a line of {LONGEST_LINE:,} bytes or more; give one question a line")
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")  # a mark, as editors on Windows write it
            if text.strip():
                yield read(_question(text.strip()))
        except UnicodeDecodeError:
            raise UserError(f"{name}: line {number}: not UTF-8; save the file as UTF-8") from None
        except UserError as error:
            raise UserError(f"{name}: line {number}: {error}") from None


def _question(line: str) -> Asked:
    """What a line asks: an object, or the line itself."""
    if not line.startswith("{"):
        return line
    try:
        return strict_json.read(line)
    except strict_json.RefusedError as error:
        raise UserError(f"{line[:60]!r}: {error}") from None
    except (ValueError, RecursionError):
        if re.match(r'\{\s*"', line):
            raise UserError(f"{line[:60]!r}: no JSON; expected an object on one line, or a question") from None
        return line  # a question may begin with a brace


def as_they_come(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Batches of what has arrived: one where a person or a program waits for each answer, MOST_AT_ONCE from a full pipe.

    Reads ahead in a thread. An error of `rows` is raised after what came before it was handed out.
    """
    arrived: queue.Queue[Row | None] = queue.Queue(maxsize=2 * MOST_AT_ONCE)
    fault: list[Exception] = [RuntimeError("the reader ended early")]  # unless it takes that back

    def read() -> None:
        try:
            for row in rows:
                arrived.put(row)
            fault.clear()
        except (UserError, OSError) as error:
            fault[:] = [error]
        finally:
            arrived.put(None)

    threading.Thread(target=read, daemon=True).start()
    row = arrived.get()
    while row is not None:
        batch = [row]
        while len(batch) < MOST_AT_ONCE and not arrived.empty() and (row := arrived.get()) is not None:
            batch.append(row)
        yield batch
        if row is not None:
            row = arrived.get()
    if fault:
        raise fault[0]


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m adapter.ask", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("question", nargs="?", help="such as 'How many legs has a spider?'")
    what.add_argument("--file", metavar="FILE", help="questions, one a line; - for stdin")
    parser.add_argument("--api-answer", metavar="TEXT", help="what the API said; without it, it is asked")
    parser.add_argument("--run", required=True, type=at_home, metavar="DIR", help="a run that train.py finished")
    parser.add_argument("--threshold", default="0", metavar="P", help="let the API's answer stand where the adapter's "
                        "confidence is below P, or below the threshold that adapter.evaluate --harm-below chose: auto")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, the adapter's completion included")
    add_api_options(parser)
    parser.add_argument("--yes", dest="api_yes", action="store_true", help="spend on many questions without asking first")
    options = parser.parse_args(arguments)
    if options.api_answer is not None and options.question is None:
        raise UserError("--api-answer: belongs to one question; in a file, give each line as "
                        '{"question": "...", "api_answer": "..."}')
    options.api_yes |= options.question is not None  # one question is asked because it was asked
    chain, complete, said = Chain(options.run, threshold=options.threshold, **given(options)), True, False
    for batch in _batches(options, chain):
        answers = chain.answer(batch)
        if not said:
            print(f"{options.run}: the adapter of step {chain.step} answers", file=sys.stderr)
            if not chain.calibrated:
                print(f"{options.run}: its confidence is not calibrated; python -m adapter.evaluate does that",
                      file=sys.stderr)
            said = True
        for answer, row in zip(answers, batch, strict=True):
            complete &= answer.answer is not None
            who = chain.upstream.label if row.api is None else "API"
            print(_as_json(answer) if options.json else printable(
                f"{answer.question}  |  {who}: {answer.api_answer}  |  adapter: {answer.verdict}, "
                f"{_percent(answer.confidence)}{', too unsure' if answer.kept else ''}  |  "
                f"answer: {answer.answer or 'none'}"), flush=True)
    chain.close()
    return 0 if complete else 1


def _percent(confidence: float) -> str:
    """Rounded down: what is below a threshold is not shown as if it reached it."""
    return f"{math.floor(1000 * confidence) / 10:.1f} %"


def _as_json(answer: ChainAnswer) -> str:
    """One line, which a terminal may be given: what JSON leaves as it is and a terminal obeys is escaped as JSON does."""
    text = json.dumps(dataclasses.asdict(answer), ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _batches(options: argparse.Namespace, chain: Chain) -> Iterator[list[Row]]:
    """What is asked. A file is read, and the API asked, as a whole: nothing is answered where a line of it is wrong."""
    if options.file == "-":
        stdin = open(0, "rb", closefd=False)  # noqa: SIM115 - a reader of its own: sys.stdin's lock would hang the exit
        yield from as_they_come(read_lines(stdin, "stdin", chain.read))
        return
    if options.file is None:
        api = {} if options.api_answer is None else {"api_answer": typed(options.api_answer)}
        rows = [chain.read({"question": typed(options.question), **api})]
    else:
        try:
            with at_home(options.file).open("rb") as file:
                rows = list(read_lines(file, options.file, chain.read))
        except OSError as error:
            raise UserError(f"{options.file}: cannot be read ({error.strerror})") from None
        chain.ask_ahead(rows)
    for at in range(0, len(rows), MOST_AT_ONCE):
        yield rows[at : at + MOST_AT_ONCE]


if __name__ == "__main__":
    sys.exit(run(main))
