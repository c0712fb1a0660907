"""A user's own function, which sees each row before it is captured: `redact(row: dict) -> dict | None` in PATH.py:FUNCTION.

    def redact(row):
        return row | {"question": row["question"].replace("@", " at ")}

The row is that of adapter.serve.capture. What the function returns is written; None leaves the row out. It runs in the
gateway's process, in the thread that writes: where it is slow, rows are lost, and no answer waits. But a pattern of
`re` that backtracks holds Python's lock, and then all wait: bound what repeats, as examples/serving/redact.py does.
"""

import inspect

from adapter.serve.capture import Redact
from adapter.verifiers.worker import Caught, load_module
from grpo.run.files import at_home, brief
from grpo.types import UserError


def load_redaction(target: str) -> Redact:
    """The function of PATH.py:FUNCTION. Runs the file. Raises UserError where there is none that takes a row."""
    place, colon, name = target.rpartition(":")
    where = f"--redact {brief(target)}"
    path = at_home(place)
    if not colon or not place.endswith(".py") or not path.is_file():
        raise UserError(f"{where}: there is no such file; expected path/to/file.py:function")
    caught, found = Caught(), None
    with caught:
        found = getattr(load_module(path.resolve()), name)
    if caught.fault:
        raise UserError(f"{where}: {brief(caught.fault)}; mend the file")
    try:
        inspect.signature(found).bind({})
    except (TypeError, ValueError):
        raise UserError(f"{where}: takes no row; expected def {brief(name, 60)}(row)") from None
    return found

