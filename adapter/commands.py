"""What the adapter's commands share: one line for a mistake, exit codes, the options that choose an API, a run's task."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import get_args

from adapter.api.settings import ApiSettings, UpstreamName
from adapter.task import CorrectorTask
from grpo.config import Config
from grpo.run.files import printable
from grpo.run.schema import validated
from grpo.run.streams import print_utf8
from grpo.types import Aborted, UserError


def run(main: Callable[[list[str]], int | None]) -> int:
    """Run a command. Returns its exit code: 0 done, 1 it stopped itself, 2 a mistake of the user's, 130 interrupted, 141
    nobody reads on."""
    print_utf8()
    try:
        return main(sys.argv[1:]) or 0
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except Aborted as error:
        print(f"stopped: {printable(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def add_api_options(parser: argparse.ArgumentParser) -> None:
    """The options whose values are keys of ApiSettings. One that is not given is not there: the run has the others."""
    about = {name: field.description for name, field in ApiSettings.model_fields.items()}
    group = parser.add_argument_group("the API in front of the adapter")
    group.add_argument("--upstream", choices=get_args(UpstreamName), default=argparse.SUPPRESS, help=about["upstream"])
    group.add_argument("--model", dest="api_model", default=argparse.SUPPRESS, help=about["api_model"])
    group.add_argument("--url", dest="api_url", default=argparse.SUPPRESS, help=about["api_url"])
    group.add_argument("--max-tokens", dest="api_max_tokens", type=int, default=argparse.SUPPRESS,
                       help=about["api_max_tokens"])
    group.add_argument("--concurrency", dest="api_concurrency", type=int, default=argparse.SUPPRESS,
                       help=about["api_concurrency"])
    group.add_argument("--answers", dest="api_answers", metavar="FILE", default=argparse.SUPPRESS, help=about["api_answers"])


def given(options: argparse.Namespace) -> dict[str, object]:
    """The options that are keys of ApiSettings."""
    return {name: value for name, value in vars(options).items() if name in ApiSettings.model_fields}


def task_of(config: Config, found: type, where: object) -> tuple[type[CorrectorTask], object]:
    """A config's task and its settings. Raises UserError where it corrects no API."""
    if not issubclass(found, CorrectorTask):
        raise UserError(f"{where}: its task is {config.task.target}, which corrects no API; this command knows tasks that "
                        "inherit from adapter.task:CorrectorTask alone")
    return found, validated(found.Settings, config.task.model_dump(exclude={"target"}), "task.")
