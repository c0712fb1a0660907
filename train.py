"""python train.py CONFIG [key.path=value ...] [--resume [DIR]] [--allow-change KEY ...]

Reads a config, builds the task it names, and trains. Exit codes: 0 done, 1 the run stopped itself, because going on would
have been silently wrong, or code of the task failed, 2 a mistake in the command or the config, or no room to write, 128 + N
signal N: 129 SIGHUP, 130 SIGINT, 143 SIGTERM. However it ends, the steps that were finished are saved.
"""

import argparse
import sys
from pathlib import Path

from grpo.config import load
from grpo.ranks.ranks import ALONE, RankLostError, Ranks
from grpo.ranks.torchrun import join
from grpo.run import rundir
from grpo.run.files import printable
from grpo.run.model_files import check_model
from grpo.run.preflight import missing
from grpo.run.schema import validated
from grpo.run.signals import Interrupted, deferred, ignore, listen
from grpo.run.startup import Startup
from grpo.run.streams import outlast_readers
from grpo.run.tasks import load_class
from grpo.types import Aborted, UserError


def main(argv: list[str]) -> int:
    """Join the other ranks, if torchrun started some; train; say how it ended, once for all ranks that end so."""
    ranks, consequence = ALONE, False
    try:
        ranks = join()
        train_as_told(argv, ranks)
        ranks.close()
        return 0
    except UserError as error:
        code, message = 2, f"error: {error}"
    except Aborted as error:
        code, message = 1, f"stopped: {error}"
    except RankLostError as error:
        code, message, consequence = 1, f"stopped: {error}; --resume goes on from the newest checkpoint", True
    except Interrupted as interrupt:
        code, consequence = interrupt.code, True
        message = f"interrupted by {interrupt}; --resume goes on from the newest checkpoint"
    if ranks.first or not consequence:
        sys.stderr.write(ranks.last_word(f"{printable(message)}\n"))
    return code


def train_as_told(argv: list[str], ranks: Ranks) -> None:
    """Parse, check, compose, train, print the table. Light checks come first: vLLM takes seconds to import."""
    parser = argparse.ArgumentParser(prog="train.py", description="GRPO with a LoRA, from one config.")
    parser.add_argument("config", help="a YAML file, such as configs/tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's")
    parser.add_argument("--resume", nargs="?", const="", metavar="DIR",
                        help="go on from the newest checkpoint of the run in DIR (default: the config's run.dir)")
    parser.add_argument("--allow-change", action="append", default=[], metavar="KEY",
                        help="resume although this key, or data, or base, is not the checkpoint's")
    args = parser.parse_intermixed_args(argv)
    if bad := [o for o in args.overrides if "=" not in o]:
        raise UserError(f"{bad[0]}: expected key.path=value, such as run.steps=10")
    if args.allow_change and args.resume is None:
        raise UserError(f"--allow-change {args.allow_change[0]}: a change since a checkpoint; add --resume, or leave it out")
    if args.resume and "=" in args.resume:
        raise UserError(f"--resume {args.resume}: expected a directory; put overrides before --resume")
    overrides = args.overrides + ([f"run.dir={args.resume}"] if args.resume else [])
    config = load(args.config, overrides)
    task_class = load_class(config.task.target, any(o.startswith(("task=", "task.target=")) for o in overrides))
    settings = validated(task_class.Settings, config.task.model_dump(exclude={"target"}), "task.")
    lacking = missing(config.model.path, config.model.device, config.run.dir)
    lacking += task_class.missing(settings) if hasattr(task_class, "missing") else []
    if lacking:
        raise UserError(f"missing here: {'; '.join(lacking)}; on a machine without them use configs/tiny.yaml")
    check_model(config.model.path)
    ranks.need(config.rollout.prompts_per_step)
    resume, started = args.resume is not None, (Path(config.run.dir) / "config.yaml").is_file()
    if ranks.restarts and not resume:
        raise UserError("torchrun --max-restarts: each attempt would begin a new run; add --resume, or leave them out")
    if args.resume and not started:
        raise UserError(f"--resume {args.resume}: is no run (no config.yaml); a bare --resume begins one where none is")
    startup = Startup(ranks.first)
    with ranks.first_ahead(), startup("the task"):  # who asks an API keeps its answers
        if ranks.first:
            if resume and not started:
                print(f"--resume: no run in {config.run.dir} yet; one begins", flush=True)
            with deferred():  # it tries a rename
                rundir.check(Path(config.run.dir), started and resume)
        task = task_class(settings, seed=config.run.seed)
    with startup("reading torch, transformers and vLLM"), deferred():  # an import that is broken off breaks what imports it
        from grpo.trainer import train
    table = train(config, task, resume and started, args.allow_change, ranks, startup)
    if ranks.first:
        print(table)


if __name__ == "__main__":
    outlast_readers()
    listen()
    ended = main(sys.argv[1:])
    ignore()  # a signal that comes now, as torchrun's does, would only interrupt vLLM's own end
    sys.exit(ended)
