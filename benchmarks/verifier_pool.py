"""How fast a user's own verifier is run: 1,024 calls of 50 ms, 16 at once.

    python -m benchmarks.verifier_pool

Prints the seconds of a first batch, which starts the processes, and of later ones; and how long submitting took: what the
trainer cannot do anything else in. Of 50 ms each, 16 at once, 1,024 calls take 3.2 s at least.
"""

import os
import tempfile
import time
from pathlib import Path

from adapter.questions import Row
from adapter.verifiers.base import submit
from adapter.verifiers.settings import VerifierSettings, make_verifier

CALLS, PROCESSES, SECONDS = 1024, 16, 0.05
FUNCTION = f"import time\n\ndef verify(row, answer):\n    time.sleep({SECONDS})\n    return answer == row['answer']\n"


def main() -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "verify.py"
        file.write_text(FUNCTION, encoding="utf-8")
        start = time.perf_counter()
        verifier = make_verifier(VerifierSettings(name=f"{file}:verify", processes=PROCESSES))
        print(f"loading the file: {time.perf_counter() - start:.2f} s", flush=True)
        row = Row("What is the capital of France? " * 20, "Paris")
        for batch in ("first batch", "second batch", "third batch"):
            start = time.perf_counter()
            calls = [submit(verifier, row, ("Paris", "Rome")[n % 2], "A completion. " * 100) for n in range(CALLS)]
            submitted = time.perf_counter() - start
            scores = [call.result().score for call in calls]
            took = time.perf_counter() - start
            if scores != [1.0, 0.0] * (CALLS // 2):
                raise SystemExit("wrong scores")
            print(f"{batch}: {CALLS} calls of {1000 * SECONDS:.0f} ms by {PROCESSES} processes on {os.cpu_count()} cores: "
                  f"{took:.2f} s, of which submitting {submitted:.2f} s", flush=True)


if __name__ == "__main__":
    main()
