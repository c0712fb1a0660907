"""How many expressions a second go through the chain after start-up: `python -m benchmarks.ask_rate RUN`."""

import random
import sys
import time

from adapter.chain import Chain
from symbols.expression import GREEK, STANDARD, render
from symbols.generate import Range, draw_many

EXPRESSIONS, TURNS = 400, 3


def main(run: str) -> None:
    """Measure and print. Half the expressions are custom; every step stays within what the embedded base computes."""
    chain = Chain(run)
    started = time.perf_counter()
    chain(["3 + 4"])
    print(f"start-up {time.perf_counter() - started:.1f} s; {EXPRESSIONS} expressions:")
    for turn in range(TURNS):
        drawn = draw_many(random.Random(turn), Range(limit=999), EXPRESSIONS, frozenset())
        texts = [render(expression, GREEK if i % 2 else STANDARD) for i, expression in enumerate(drawn)]
        started = time.perf_counter()
        answered = sum(answer.answer is not None for answer in chain(texts))
        print(f"  {EXPRESSIONS / (time.perf_counter() - started):.1f} a second, {answered} with an answer")
    chain.close()


if __name__ == "__main__":
    main(sys.argv[1])
