"""Runs again the step that stopped a run, on this machine and from one file.

    python -m grpo.replay runs/NAME/repro/step-00012.safetensors [key.path=value ...] [--sample]

The file holds the LoRA, the config, the prompts and the completions with vLLM's log-probs: all that the training pass
depends on, besides the base, which `model.path` names. `--sample` also starts vLLM and samples the same completions anew,
which tells a stale engine from two engines that disagree. Exit codes: 1 it stops again, 0 it does not, 2 no such file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.chat import pick_device
from grpo.config import Config
from grpo.guards.kept import load_lora, read_kept
from grpo.guards.parity import parity_metrics
from grpo.policy import Policy
from grpo.rollout import advantages, sampling_seed
from grpo.run.files import at_home, brief, printable
from grpo.run.streams import print_utf8
from grpo.types import Aborted, Group, UserError
from grpo.update import Updater


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m grpo.replay", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=at_home)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="such as model.path=... on another machine")
    parser.add_argument("--sample", action="store_true", help="start vLLM too, and sample the completions anew")
    options = parser.parse_intermixed_args(arguments)
    try:
        return replay(options.file, options.overrides, options.sample)
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2


def replay(path: Path, overrides: Sequence[str], sample: bool) -> int:
    """Run a kept step again and print what comes of it. Raises UserError where the file is none of `keep`'s."""
    kept = read_kept(path, overrides)
    step, config, groups = kept.step, kept.config, kept.groups
    policy = Policy(config.model, config.lora, pick_device(config.model), config.run.seed)
    load_lora(path, policy)
    updater = Updater(policy, config)
    updater.logp_old, updater.noise = kept.logp_old, kept.noise
    print(f"step {step} stopped its run: {brief(kept.reason, 2000)}")
    if sample:
        print(_sampled_anew(policy, config, step, groups))
    try:
        metrics, _ = updater.epoch(step, groups, advantages(groups, config))
    except Aborted as error:
        print(f"it stops here too: {printable(error)}")
        return 1
    found = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items() if value is not None)
    print(f"it does not stop here: {found}")
    return 0


def _sampled_anew(policy: Policy, config: Config, step: int, groups: list[Group]) -> str:
    from grpo.sampler import Sampler

    longest = max(len(g.prompt.token_ids) for g in groups) + config.rollout.max_new_tokens
    sampler = Sampler(policy, config, longest)
    sampler.serve(policy)
    seeds = [sampling_seed(config.run.seed, step, place, g.prompt) for place, g in enumerate(groups)]
    anew = sampler.sample([g.prompt for g in groups], seeds, len(groups[0].completions))
    sampler.close()
    pairs = [(c.sample, new) for g, samples in zip(groups, anew, strict=True)
             for c, new in zip(g.completions, samples, strict=True)]
    same = [(old, new) for old, new in pairs if old.token_ids == new.token_ids]
    gap = parity_metrics(pair for old, new in same for pair in zip(old.logp, new.logp, strict=True))
    return (f"a new engine samples {len(same)} of {len(pairs)} completions as the run's did; on those its log-probs differ "
            f"from the run's by {gap['parity/logp_mean_abs_diff'] or 0.0:.3g} nats on average")


if __name__ == "__main__":
    print_utf8()
    sys.exit(main(sys.argv[1:]))
