"""A user's own verifier: `function(row: dict, answer: str) -> float | bool` in PATH.py:FUNCTION.

    def verify(row, answer):
        return answer.upper() == row["answer"]

The row is the line of the data set as a dict, with question, answer, kind, id and api_answer; the answer is the stripped
content of a box. It runs outside the trainer's process (adapter.verifiers.pool).
"""

from dataclasses import dataclass
from pathlib import Path

from adapter.questions import Row
from adapter.verifiers.base import Found, last_box
from adapter.verifiers.number import find_number
from adapter.verifiers.pool import Call, Pool, shared_pool
from grpo.run.files import at_home, brief
from grpo.types import UserError

LONGEST = 20_000  # characters of an answer


@dataclass(frozen=True)
class Own:
    """Verifier of adapter.verifiers.base. The pool starts with the first call."""

    target: str  # as the user wrote it
    file: Path
    function: str
    seconds: float = 5.0  # the time limit of a call
    processes: int | None = None  # how many run at once; None: as many as there are CPU cores
    form: str = "the answer"
    found: Found = "text"  # what an API's text without a box is searched for

    def extract(self, text: str, row: Row | None = None) -> str | None:
        """The last box, else the whole text, or its last number."""
        found = last_box(text)
        if found is None:
            found = text if self.found == "text" else find_number(text)
        return None if found is None else self.normal(found)

    def normal(self, answer: str) -> str | None:
        """Without spaces around it; None where nothing is left, or it is longer than LONGEST."""
        plain = answer.strip()
        return plain if 0 < len(plain) <= LONGEST else None

    def submit(self, row: Row, answer: str, completion: str = "") -> Call:
        """Start a call. Its result() raises VerifierError."""
        return self.pool.submit(row, answer, completion, self.seconds)

    def right(self, row: Row, answer: str) -> float:
        """The function's score; 0.0 where it took too long. Raises VerifierError."""
        return self.submit(row, answer).result().score

    def check(self, row: Row) -> None:
        """See Verifier: only the function knows what it can compare with."""
        if row.answer is None:
            raise ValueError("there is no answer; give what the function compares with")

    @property
    def pool(self) -> Pool:
        """Its processes. Raises UserError where the file cannot be imported, or has no such function."""
        return shared_pool(self.target, self.file, self.function, self.processes)


def own_verifier(target: str, named: bool, seconds: float, processes: int | None, form: str | None,
                 found: Found = "text") -> Own:
    """The verifier of PATH.py:FUNCTION. Imports the file once, in a process that is thrown away.

    named: see adapter.verifiers.settings. Raises UserError.
    """
    place, _, function = target.rpartition(":")
    where = f"verifier {brief(target)}"
    try:
        file = at_home(place).resolve()
        there = file.is_file()
    except (OSError, RuntimeError):  # a name that is too long, a link to itself
        there = False
    if not there:
        raise UserError(f"{where}: there is no such file; expected path/to/file.py:function")
    if not named and not file.is_relative_to(Path.cwd()):
        raise UserError(f"{where}: a config may name files below the current directory only; copy it there")
    verifier = Own(where, file, function, seconds, processes, form or "the answer", found)
    _ = verifier.pool
    return verifier
