"""How the parts of benchmarks/speed.py say what they found."""

import json
from pathlib import Path


def report(record: dict, out: Path | None) -> None:
    """Print a record as one line of JSON, and write it to `out` if that is given."""
    line = json.dumps(record)
    if out:
        out.write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
