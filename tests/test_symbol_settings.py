"""Settings of the experiment that cannot be met: one line each."""

import pytest

from grpo.types import UserError
from tests.symbol_rows import symbol_task


@pytest.mark.parametrize(("settings", "words"), [
    ({"api_answers": "/home/me/.bashrc"}, r"task.api_answers = '/home/me/.bashrc': expected a name that ends in .jsonl"),
    ({"api_answers": "a\0.jsonl"}, "all of its characters printable"),
    ({"api_model": "\x1b[2J"}, "all of its characters printable"),
    ({"data": "a\0"}, "all of its characters printable"),
    ({"conditon": "vague"}, "task.conditon: unknown key; did you mean condition?"),
    ({"condition": "loud"}, "task.condition = 'loud'"),
    ({"operands": [9, 1]}, r"task.operands = \[9, 1\]"),
    ({"terms": [1, 2]}, "task.terms"),
    ({"symbols": {"θ": "+"}}, "task.symbols"),
    ({"operands": [1, 2], "terms": [2, 2]}, "holds too few"),
    ({"operands": [10, 99]}, "no operands from 10 to 99"),
])
def test_wrong_settings_are_one_line(settings, words):
    with pytest.raises(UserError, match=words) as caught:
        symbol_task(**settings)
    assert "\n" not in str(caught.value)
