"""The API in front of the adapter, as the rest of the project sees it."""

from collections.abc import Sequence
from typing import Protocol

from adapter.questions import ApiAnswer, Row


class Upstream(Protocol):
    """What is asked first."""

    label: str  # as printed

    def answers(self, rows: Sequence[Row]) -> list[ApiAnswer]:
        """One answer a row, in order: the whole text, or "" where the API gives none. An answer that a row has already is
        not looked at, but by RecordedUpstream. Raises UserError where the API cannot be asked, or has no answer."""
