"""Writes a report about a run: one HTML file, which opens from disk.

    python -m grpo.report runs/NAME [--out FILE] [--steps 12,40-60]

It shows the curves, and completions token by token with the numbers that trained them: those of all steps if they fit,
else of as many evenly spaced ones as do; `--steps` chooses others. Exit code 2: there is no such run, or it is damaged.
"""

import argparse
import sys
from pathlib import Path

from grpo.run.files import at_home, printable, writable, write_text
from grpo.run.streams import print_utf8
from grpo.types import UserError


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m grpo.report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=at_home, help="a folder that train.py wrote, such as runs/tiny")
    parser.add_argument("--out", type=at_home, help="where to write it; default: RUN/report.html")
    parser.add_argument("--steps", metavar="12,40-60", help="the steps whose completions are in the file")
    options = parser.parse_args(arguments)
    try:
        print(report(options.run, options.out or options.run / "report.html", options.steps))
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    return 0


def report(folder: Path, out: Path, steps: str | None = None) -> str:
    """Write the report of a run. Returns a line that says what was written. Raises UserError."""
    from grpo.report.page import page  # the mistakes below need no seconds of imports
    from grpo.report.records import read_run

    run = read_run(folder)
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out}: {'is a folder' if out.is_dir() else 'its folder does not exist'}; "
                        "name a file in one that does")
    text = page(run, steps)
    with writable(out.parent, "name another file with --out"):
        write_text(out, text)
    return f"{out}: {len(text.encode()) / 2**20:.1f} MiB, opens in a browser"


if __name__ == "__main__":
    print_utf8()
    sys.exit(main(sys.argv[1:]))
