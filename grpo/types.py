"""The nouns of the algorithm, and the legend of its shapes.

    P  prompts in a step          B  completions (rows) in a micro-batch      V  vocabulary
    G  completions of a prompt    T  positions of a completion, padded        H  hidden size
    N  tokens of a micro-batch, packed without padding                        L  tokens of a prompt
    M  those that were sampled: what the loss is over

A tensor's name ends in its shape: `rewards_PG`, `logp_BT`. All values are for the sampled tokens: `logp_BT[b, t]` is
the log-probability of completion b's token t, given the prompt and its tokens before t.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Metrics = dict[str, float | None]  # None: there was nothing to average


class UserError(Exception):
    """A mistake of the user's. The message is one line: what, where, what was expected, how to mend it."""


class Aborted(Exception):
    """The run stops itself, because going on would be silently wrong. The message is one line."""


class NonFiniteError(Aborted):
    """A reward, the loss or the gradient is not a finite number. Nothing was trained on it."""


class VerifierError(Aborted):
    """A verifier failed on a completion: a bug in it must not become a reward. `sample`: a dataclass, what it was given."""

    def __init__(self, message: str, sample: Any):
        super().__init__(message)
        self.sample = sample


@dataclass(frozen=True)
class Problem:
    """One thing to solve, as a task hands it over. `data` is the task's own; the algorithm never opens it."""

    name: str  # shown in logs
    kind: str  # rewards and accuracies are reported for each kind; not mean, overall or step: those are ours
    messages: tuple[dict[str, str], ...]  # the chat, rendered by the model's own template
    data: object = field(default=None, repr=False)  # part of the data set's hash, by its repr


@dataclass(frozen=True)
class Score:
    """A task's verdict on a completion."""

    reward: float
    unparsed: bool = False  # the completion held no answer
    answer: str | None = None  # what it answered, in short; an alarm says when that is always the same
    answers: int = 1  # how many it gave; more than one is hedging, and raises an alarm
    timed_out: bool = False  # the verifier did not come to an end in its time; such a reward is 0, counted, and an alarm


Table = dict[str, float]  # kind -> accuracy in [0, 1], and "overall"


@dataclass(frozen=True)
class Reference:
    """Something to compare the adapter with on the test problems, measured by the task."""

    label: str  # as printed
    accuracy: Table


class PendingScore(Protocol):
    """A completion that is being verified, in another process or thread."""

    def result(self) -> Score:
        """Waits for it."""


class Task(Protocol):
    """What GRPO needs to know of a task: what to ask, and how good an answer is.

    A config names a class. It is made as `Class(settings, seed)`, `settings` being an instance of its pydantic model
    `Class.Settings`, filled from the config's other keys under `task`. A class may have a static method
    `missing(settings) -> list[str]` that says, in words, what this machine lacks for it, and an attribute
    `trivial: list[Reference]`: what policies that look at nothing would score, printed at the start.
    """

    Settings: type
    train: Sequence[Problem]
    validation: Sequence[Problem]  # none of train or test: the best LoRA is chosen by them
    test: Sequence[Problem]  # none of train or validation: nothing is chosen by them
    references: dict[str, Reference]  # by the name it has in evaluation.json: {"api": ...}

    def score(self, problem: Problem, text: str) -> "Score | PendingScore":
        """The reward of a completion, from its text. Raises nothing for any text; a bug in it stops the run.

        Where that takes a while, it may return at once what waits for the Score: all of a step are begun before one is
        waited for.
        """


@dataclass(frozen=True)
class Prompt:
    """A problem as the model sees it."""

    problem: Problem
    token_ids: tuple[int, ...]
    text: str  # the same, decoded, for the records


@dataclass(frozen=True)
class Sample:
    """What the sampler returns for one completion: tokens, and the log-probability each was sampled with."""

    token_ids: tuple[int, ...]  # ends with the stop token, unless truncated
    logp: tuple[float, ...]
    finish_reason: str  # "stop", or "length" where the completion was truncated


@dataclass(frozen=True)
class Completion:
    """A sample, its text and its score."""

    sample: Sample
    text: str
    score: Score


@dataclass(frozen=True)
class TokenLog:
    """What the trainer found for one completion: one Python float per sampled token."""

    logp: list[float]  # before the first update on the batch
    entropy: list[float]
    ref: list[float] | None = None  # log-probs under the base, where there is a KL
    last: list[float] | None = None  # log-probs at the last epoch, where there are several


Row = tuple[int, int]  # a completion: its group's place in the step, and its own in the group
TokenLogs = dict[Row, TokenLog]  # groups without a signal have none


@dataclass(frozen=True)
class Group:
    """The G completions of one prompt: what "group-relative" is relative to."""

    prompt: Prompt
    completions: tuple[Completion, ...]
