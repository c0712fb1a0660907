"""The API's answers that came with the data: nothing is asked."""

from collections.abc import Sequence

from adapter.questions import ApiAnswer, Row
from grpo.run.files import brief
from grpo.types import UserError


class RecordedUpstream:
    """Upstream of upstream.py."""

    label = "recorded API"

    def answers(self, rows: Sequence[Row]) -> list[ApiAnswer]:
        """See Upstream. Raises UserError, naming the row, where one has no answer."""
        for row in rows:
            if row.api is None:
                raise UserError(f"{named(row)}: has no api_answer, and upstream=recorded asks no API; give it along "
                                "(adapter.ask: --api-answer), or choose another upstream (anthropic, vertex or openai; "
                                "simulated, where the true answer is known)")
        return [row.api for row in rows]


def named(row: Row) -> str:
    """A row, for an error: its id, else the start of its question."""
    return f"row {brief(row.id, 60)}" if row.id else f"question {brief(repr(row.question), 60)}"
