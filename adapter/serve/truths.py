"""Questions whose answers the operator knows: of these the gateway can tell fixes from harms while it runs."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

from adapter.corrector import Corrector
from adapter.questions import ApiAnswer, Row
from adapter.rows import RECORDED, read_rows, same
from adapter.serve.exchange import Exchange
from adapter.verdict import Unparsed, resolve
from grpo.run.files import brief
from grpo.types import VerifierError

Judgement = Literal["fix", "harm", "both right", "both wrong"]

log = logging.getLogger(__name__)


class Truths:
    """The rows of a file, by question. `failed` counts the answers that a user's own verifier could not judge."""

    def __init__(self, path: Path, corrector: Corrector):
        """Read a .jsonl file of questions and answers. Raises UserError, naming file and line, where one is wrong."""
        self._corrector, self.failed = corrector, 0
        self._rows = {same(row.question): row for row in read_rows(path, {}, corrector.verifier.check)}

    def __len__(self) -> int:
        return len(self._rows)

    def known(self, question: str) -> Row | None:
        """The question's row, with its answer; None where it is not known. White space makes no difference."""
        return self._rows.get(same(question))

    def judged(self, exchange: Exchange) -> Judgement | None:
        """What the caller got, against the API alone. None: the truth is not known, or the API gave no text.

        It waits for a user's own verifier, for up to its time limit: call it from a thread of its own.
        """
        return self._judged(exchange, delivered=True)

    def proposed(self, exchange: Exchange) -> Judgement | None:
        """The same of what the adapter wrote, whether or not the caller got it: in shadow mode, what `on` would do.

        Where it wrote no answer, the API's stands. None, too, where the adapter was not asked.
        """
        return None if exchange.completion is None else self._judged(exchange, delivered=False)

    def _judged(self, exchange: Exchange, delivered: bool) -> Judgement | None:
        if delivered and exchange.status != 200:
            return None  # --fail closed: the caller got an error
        if exchange.question is None or exchange.api_text is None or (row := self.known(exchange.question)) is None:
            return None
        row = replace(row, api=ApiAnswer(exchange.api_text, RECORDED))
        api = final = self._corrector.extracted(row)
        if not delivered:
            answer = self._corrector.answer_in(exchange.completion)
            final = api if isinstance(answer, Unparsed) else resolve(answer, api)
        elif exchange.action == "corrected":
            final = exchange.final
        try:
            before, after = self._corrector.all_right([(row, api), (row, final)])
        except VerifierError as error:
            self.failed += 1
            log.error("truths: the verifier failed, and %d answers are not judged: %s", self.failed, brief(error, 300))
            return None
        if before == after:
            return "both right" if after else "both wrong"
        return "fix" if after else "harm"
