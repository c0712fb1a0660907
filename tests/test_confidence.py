"""The probability of a box, token by token, and what is made of it: by hand, and against spans of bytes."""

import json
import math
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from adapter.confidence import (
    FILE,
    FINEST,
    FOLDER,
    LONGEST,
    Calibration,
    Token,
    box_logp,
    box_tokens,
    calibration_of,
    logit,
    mean_logp,
    read_calibration,
    threshold_of,
)
from adapter.measure.answering import agreement, with_tokens
from adapter.model import Completion
from adapter.verdict import box_places
from grpo.types import Sample, UserError
from tests.conftest import ROOT
from tests.test_outcomes import PLAIN, asked


def found(pieces: list[bytes]) -> tuple[list[tuple[str, float]], float | None]:
    """The box's tokens, and their log-probability, of a completion in these tokens; token n has -(n + 1)."""
    def decode(ids: tuple[int, ...]) -> str:
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    ids, logp = range(len(pieces)), [-float(n + 1) for n in range(len(pieces))]
    return [(token.text, token.logp) for token in box_tokens(ids, logp, decode)], box_logp(ids, logp, decode)


@pytest.mark.parametrize(("pieces", "tokens"), [
    ([b"so ", b"\\boxed{", b"4", b"2", b"}", b" ."], [("4", -3), ("2", -4), ("}", -5)]),
    ([b"\\boxed{", b"}"], [("}", -2)]),  # nothing, and that it ends there
    ([b"\\boxed", b"{4", b"2}.", b" so"], [("{4", -2), ("2}.", -3)]),  # what has a part in it counts whole
    ([b"\\boxed{5}", b" no ", b"\\boxed{", b"6", b"}"], [("6", -4), ("}", -5)]),  # the last one
    ([b"\\boxed{5", b"}", b" no \\boxed{", b"6"], [("\\boxed{5", -1), ("}", -2)]),  # the last is cut, and is none
    ([b"\\boxed{", b"\\boxed{", b"5", b"}", b"}"], [("5", -3), ("}", -4)]),  # nested: the inner one
    ([b"\\boxed{", b"{", b"1", b"}", b"}", b"}"], [("{", -2), ("1", -3), ("}", -4), ("}", -5)]),
    ([b"\xc3", b"\xa9 \\boxed{", b"\xc3", b"\xa9", b"}"], [("é", -7), ("}", -5)]),  # one character, two tokens
    ([b"\\boxed{\xc3", b"\xa9}"], [("\\boxed{", -1), ("é}", -2)]),  # the first holds a half of it
    ([b"\\boxed{", b"\xe2\x9c", b"\x93", b"}\xe2", b"\x9c\x93"], [("✓", -5), ("}\ufffd", -4)]),
    ([b"\\boxed{", b"\xff", b"}"], [("\ufffd", -2), ("}", -3)]),  # bytes that are no text
    ([b"\\boxed{", b"5"], []), ([b"5"], []), ([], [])])
def test_a_boxs_tokens_by_hand(pieces, tokens):
    named, logp = found(pieces)
    assert named == tokens
    assert logp == (sum(value for _, value in tokens) if tokens else None)


@given(st.text(alphabet="\\boxed{}42é✓𝄞 ").map(lambda text: f"{text}\\boxed{{{text[:5]}}}{text[5:]}"), st.data())
def test_any_cut_into_tokens_gives_those_that_overlap(text, data):
    """The oracle: the content's place in bytes, and each token's."""
    raw = text.encode()
    cuts = sorted({0, len(raw), *data.draw(st.lists(st.integers(0, len(raw))))})
    spans = list(pairwise(cuts))
    if not (places := box_places(text)):
        assert found([raw[a:b] for a, b in spans]) == ([], None)
        return
    start, end = (len(text[:at].encode()) for at in places[-1])
    inside = [n for n, (a, b) in enumerate(spans) if b > start and a < end + 1]
    tokens, logp = found([raw[a:b] for a, b in spans])
    assert logp == -sum(n + 1 for n in inside)
    assert sum(value for _, value in tokens) == logp
    assert f"{text[slice(*places[-1])]}}}" in "".join(shown for shown, _ in tokens)


def test_with_a_real_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny")
    ids = tokenizer.encode(r"γ = × ; 6 × 5 = 30 ; \boxed{30}", add_special_tokens=False)
    logp = [-0.25 * n for n in range(len(ids))]
    tokens = box_tokens(ids, logp, tokenizer.decode)
    assert "".join(token.text for token in tokens).endswith("30}")
    assert box_logp(ids, logp, tokenizer.decode) == sum(token.logp for token in tokens) == sum(logp[-len(tokens):])


def test_the_mean_of_a_completions_log_probs():
    """Of 1/2, 1/2 and 1 the geometric mean is 4^(-1/3)."""
    assert math.exp(mean_logp([math.log(0.5), math.log(0.5), -0.0])) == pytest.approx(4 ** (-1 / 3))


def test_a_temperature_by_hand():
    """Odds of 9 to 1: their square root is 3 to 1, their square 81 to 1."""
    sure = math.log(0.9)
    assert [Calibration(1, t)(sure) for t in (1.0, 2.0, 0.5)] == pytest.approx([0.9, 0.75, 81 / 82])
    assert logit(math.log(0.2)) == pytest.approx(math.log(0.25))
    assert Calibration(1)(None) == 0


def test_certain_and_impossible_answers_are_numbers():
    certain, impossible = Calibration(1)(-0.0), Calibration(1)(-1e6)
    assert (certain, impossible) == (pytest.approx(1 - FINEST, abs=1e-9), 0.0)
    assert Calibration(1, 0.05)(0.0) < 1  # so that nothing reaches a threshold of 1
    assert Calibration(1, 100.0)(-math.inf) == 0
    values = [Calibration(1, t)(logp) for t in (0.05, 1, 100) for logp in (-1e9, -50, -0.7, -1e-3, -1e-9, 0)]
    assert all(0 <= value < 1 for value in values)
    assert values[:6] == sorted(values[:6])


def calibrated(run: Path, text: str) -> Path:
    (run / FOLDER).mkdir()
    (run / FOLDER / FILE).write_text(text)
    return run


def test_what_evaluate_found_is_read_for_its_step_alone(tmp_path):
    assert read_calibration(tmp_path, 20) is None
    run = calibrated(tmp_path, '{"step": 20, "temperature": 2, "threshold": null}\n')
    assert read_calibration(run, 20) == Calibration(20, 2.0, None)
    assert read_calibration(run, 10) is None


@pytest.mark.parametrize(("text", "words"), [
    ("", "Invalid JSON"), ("[1]", "an object"), ("[" * 10**4, "Invalid JSON"),
    ('{"step": 20, "temperature": 2}', "threshold: Field required"),
    ('{"step": 20, "temperature": 0, "threshold": null}', "temperature: Input should be greater than or equal to 0.05"),
    ('{"step": 20, "temperature": NaN, "threshold": null}', "temperature: Input should be"),
    ('{"step": 20, "temperature": "2", "threshold": null}', "temperature: Input should be a valid number"),
    ('{"step": 20, "temperature": 2, "threshold": 1.5}', "threshold: Input should be less than or equal to 1"),
    ('{"step": -1, "temperature": 2, "threshold": null}', "step: Input should be greater"),
    ('{"step": 20, "temperature": 2, "threshold": null, "more": 1}', "more: Extra inputs"),
    (" " * LONGEST + "{}", "longer than 65536 bytes")], ids=lambda v: str(v)[:30])
def test_a_damaged_file_is_one_line(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        read_calibration(calibrated(tmp_path, text), 20)
    assert str(caught.value).startswith(f"{tmp_path / FOLDER / FILE}: ")
    assert words in str(caught.value)
    assert "delete the file to go on without it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_threshold_is_a_number_or_the_one_that_was_chosen():
    run, chosen = Path("runs/mine"), Calibration(20, 2.0, 0.75)
    assert [threshold_of(asked, run, 20, None) for asked in (0, 1, 0.5, "0.5", "0", " 1e-1 ")] == [0, 1, 0.5, 0.5, 0, 0.1]
    assert threshold_of("auto", run, 20, chosen) == 0.75
    for none in (None, Calibration(20)):
        with pytest.raises(UserError, match=r"threshold auto: none is chosen for the adapter of step 20 of runs/mine \(it "
                                            r"has no evaluate/confidence\.json\); run python -m "
                                            r"adapter\.evaluate runs/mine --harm-below 1%, or give a number"):
            threshold_of("auto", run, 20, none)
    for wrong in ("", "high", "1.01", "-0.1", "nan", "80%", True, math.nan, None, [0.5]):
        with pytest.raises(UserError, match=r"expected a number from 0 to 1, such as 0\.8, or auto"):
            threshold_of(wrong, run, 20, chosen)


def test_the_calibration_to_go_by_has_the_threshold_that_is_asked_for(tmp_path):
    run = calibrated(tmp_path, '{"step": 20, "temperature": 2, "threshold": 0.75}')
    assert [calibration_of(run, 20, wanted) for wanted in (None, "auto", "0.5", 0)] == [
        Calibration(20, 2.0, threshold) for threshold in (None, 0.75, 0.5, 0.0)]
    assert calibration_of(run, 10, None) is None
    other = r"\(its evaluate/confidence\.json is of step 20\); run python -m adapter\.evaluate "
    for wanted, said in (("auto", "none is chosen for the adapter of step 10"),
                        ("0.5", "has no calibrated confidence of step 10")):
        with pytest.raises(UserError, match=f"threshold {wanted}: .*{said}.* {other}"):
            calibration_of(run, 10, wanted)
    (run / FOLDER / FILE).write_text('{"step": 20, "temperature": 2, "threshold": null}')
    with pytest.raises(UserError, match="is of step 20, and chose no threshold"):
        calibration_of(run, 20, "auto")
    (run / FOLDER / FILE).unlink()
    with pytest.raises(UserError, match=r"threshold 0: .* \(it has no evaluate/confidence\.json\)"):
        calibration_of(run, 20, 0)


def test_the_file_is_what_a_calibration_writes(tmp_path):
    run = calibrated(tmp_path, json.dumps(asdict(Calibration(7, 1.25, 0.990001))))
    assert read_calibration(run, 7) == Calibration(7, 1.25, 0.990001)


def completion(text: str) -> Completion:
    return Completion(text, False, Sample((7, 8), (-1.0, -0.25), "stop"))


def test_agreement_counts_final_answers_by_hand():
    """Of four samples 8 and CORRECT, which is 8, end as the greedy 8 does: (2 + 1/2) / (4 + 1)."""
    told = [r"\boxed{8}", r"\boxed{CORRECT}", r"\boxed{7}", "no box"]
    adapter = SimpleNamespace(sample=lambda problems, samples, seed: [[completion(text) for text in told]] * len(problems))
    rows = [asked(8, "It has 8."), asked(8, "It has 8."), asked(8, "none"), asked(8, "7")]
    outcomes = PLAIN.judged(rows, [r"\boxed{8}", "no box", r"\boxed{CORRECT}", r"\boxed{CORRECT}"], [False] * 4)
    shares, cost = agreement(adapter, SimpleNamespace(corrector=PLAIN), outcomes, 4, 1, "samples")
    assert shares[1] is None
    # CORRECT of nothing is no answer that could be given again; of 7 it is 7, given by CORRECT and by 7
    assert [math.exp(shares[n]) for n in (0, 2, 3)] == pytest.approx([0.5, 0.1, 0.5])
    assert cost.tokens == 4 * 4 * 2
    assert cost.seconds > 0


def test_what_the_log_probs_of_a_completion_say():
    (outcome,) = PLAIN.judged([asked(8, "7")], [r"\boxed{8}"], [False])
    pieces = [r"\boxed{", "8", "}", ""]
    found = with_tokens(outcome, Sample((0, 1, 2, 3), (-0.5, -2.0, -0.25, -0.25), "stop"),
                        lambda ids: "".join(pieces[i] for i in ids))
    assert (found.mean_logp, found.box_logp) == (-0.75, -2.25)
    assert (found.box, found.doubt) == ([Token("8", -2.0), Token("}", -0.25)], Token("8", -2.0))
    unparsed = with_tokens(replace(outcome, verdict="unparsed"), Sample((0,), (-1.0,), "stop"), lambda ids: "x" * len(ids))
    assert (unparsed.mean_logp, unparsed.box_logp, unparsed.doubt) == (None, None, Token("x", -1.0))
