"""Which sets of reasoning-gym are safe to train on: the lint of verifiers over all of them, without a model.

    python -m benchmarks.gym_lint [SET ...]        writes docs/gym.md; of some sets, renews their lines there

Ten questions a set. Every junk answer of adapter/junk.py is scored twice on each.
"""

import sys
from importlib.metadata import version
from pathlib import Path

from adapter import gym
from adapter.verifier_lint import VerifierReport, lint_verifier
from grpo.run.files import brief

ROWS, SEED, SECONDS = 10, 1, 10.0
PAGE = Path(__file__).parents[1] / "docs" / "gym.md"
HEAD = """# The sets of reasoning-gym {version}

Written by `python -m benchmarks.gym_lint`: {rows} questions a set, drawn with seed {seed} and the set's own options,
and about 360 calls. **{safe} of {sets} sets are safe**: true answers score 1, all junk of `adapter/junk.py` scores 0,
scoring twice agrees, no call raises, and none takes more than {seconds:.0f} s. A score of exactly 1 alone counts, as
in training: many of these verifiers give junk a part of a score. Nor do digits of other scripts count.

A set that raises stops a run at the first completion that provokes it. One where junk pays teaches the junk. In a set
with true answers unknown the package shows none, so that its junk alone is checked. `composite` is left out: it draws
from the others. The times are of 2 busy CPU cores.

| set | safe | p50, ms | p99, ms | what was found |
|---|---|---|---|---|
"""


def line(name: str, report: VerifierReport) -> str:
    """A line of the table."""
    pays = [finding.label for finding in report.findings if finding.check == "junk"]
    why = [f"junk pays: {', '.join(pays)}"] if pays else []
    for finding in report.findings:
        if finding.check == "raises":
            why.append(f"raises `{brief(finding.label, 80).replace('|', ' ')}` on {finding.rows} of {ROWS} rows")
        elif finding.check != "junk":
            why.append(finding.line.replace("|", " "))
    why += [f"true answers unknown on {report.unknown} of {ROWS} rows"] if report.unknown else []
    return (f"| {name} | {'**no**' if report.findings else 'yes'} | {1000 * report.p50:.2f} | {1000 * report.p99:.1f} | "
            f"{'; '.join(why)} |")


def main(names: list[str]) -> None:
    """Lint, print, and write after each set."""
    verifier, lines = gym.gym_verifier(SECONDS), {}
    if names:
        table = PAGE.read_text(encoding="utf-8").partition("|---|---|---|---|---|\n")[2]
        lines = {row.split("|")[1].strip(): row for row in table.splitlines()}
    for name in names or gym.available():
        lines[name] = line(name, lint_verifier({"train": gym.rows(name, ROWS, SEED)}, verifier))
        print(lines[name], flush=True)
        safe = sum(row.split("|")[2].strip() == "yes" for row in lines.values())
        head = HEAD.format(version=version("reasoning-gym"), rows=ROWS, seed=SEED, safe=safe, sets=len(lines),
                           seconds=SECONDS)
        PAGE.write_text(head + "".join(f"{lines[name]}\n" for name in sorted(lines)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
