"""Variants of the algorithm side by side on one recorded step.

    python -m grpo.compare runs/NAME/rollouts/step-00021.jsonl.gz [VARIANT ...] [--updates N]

VARIANT: a preset (dapo), keys on top of the run's own algorithm (advantage=maxrl), or both (dapo,eps_high=0.4); without one,
all presets. Each is given the same completions and the same policy: after N updates (1 unless told) by the run's own
algorithm, because before the first every ratio is 1 and nothing is clipped. Writes runs/NAME/compare/step-00021.json, which
`python -m grpo.report runs/NAME` shows.
"""

import argparse
import json
import sys
from typing import Any

from grpo.compare.batch import Batch, read_batch
from grpo.compare.table import table
from grpo.compare.variants import cosines, measure, move, sampled_logps, variant
from grpo.presets import PRESETS
from grpo.run.files import at_home, printable, writable, write_text
from grpo.run.streams import print_utf8
from grpo.types import Aborted, UserError


def main(arguments: list[str]) -> int:
    """The command. Exit codes: 0, 1 the record is not what its policy samples, 2 a mistake in the command."""
    parser = argparse.ArgumentParser(prog="python -m grpo.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("batch", type=at_home)
    parser.add_argument("variants", nargs="*", metavar="VARIANT")
    parser.add_argument("--updates", type=int, default=1, metavar="N", help="of the run's own, before comparing")
    parser.add_argument("--model", metavar="PATH", help="where the base is, if not at the run's model.path")
    options = parser.parse_intermixed_args(arguments)
    try:
        if options.updates < 0:
            raise UserError(f"--updates {options.updates}: expected 0 or more")
        batch = read_batch(options.batch, options.model)
        comparison = compare(batch, options.variants or possible(batch), options.updates)
        folder = batch.run / "compare"
        with writable(folder, "make room, then compare again"):
            folder.mkdir(exist_ok=True)
            write_text(folder / f"step-{batch.step:05d}.json", json.dumps(comparison, indent=1) + "\n")
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except Aborted as error:
        print(f"stopped: {printable(error)}", file=sys.stderr)
        return 1
    print(f"step {batch.step}, {len(batch.groups)} groups, after {options.updates} update(s); weights, KL included, are "
          "times T: 1 is an advantage of 1 in a mean over all tokens; cosine of the LoRA's gradient with the run's own")
    print(table(comparison))
    print(f"in {folder / f'step-{batch.step:05d}.json'}; python -m grpo.report {batch.run} shows it")
    return 0


def possible(batch: Batch) -> list[str]:
    """The presets that this batch's rewards allow."""
    below = any(c.score.reward < 0 for group in batch.groups for c in group.completions)
    if below:
        print("maxrl is left out: it needs rewards of 0 or more")
    return [name for name, keys in PRESETS.items() if not (below and keys["advantage"] == "maxrl")]


def compare(batch: Batch, variants: list[str], updates: int) -> dict[str, Any]:
    """Every variant on the batch, the run's own first. Moves the batch's policy by `updates`."""
    configs = {"the run's own": batch.config, **{text: variant(batch.config, text) for text in variants}}
    logp_old = sampled_logps(batch)
    move(batch, logp_old, updates)
    measured = [measure(batch, config, name, logp_old) for name, config in configs.items()]
    return {"step": batch.step, "updates": updates, "variants": [m.line for m in measured], "cosine": cosines(measured)}


if __name__ == "__main__":
    print_utf8()
    sys.exit(main(sys.argv[1:]))
