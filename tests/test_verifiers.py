"""The verifiers that need no code of the user's: what is an answer, where it is found, and which is right. By hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.questions import ApiAnswer, Row
from adapter.verifiers.base import submit
from adapter.verifiers.choice import Choice
from adapter.verifiers.date import Date
from adapter.verifiers.json import Json
from adapter.verifiers.number import Number
from adapter.verifiers.settings import VerifierSettings, make_verifier
from adapter.verifiers.text import Text
from grpo.run.schema import validated
from grpo.types import UserError

ABC = Choice(("A", "B", "C"))
CITIES = Choice(("Paris", "Rome", "New York", "York"))
ALL = (Number(), Text(), Choice(), ABC, Date(), Json())


def row(answer, **more) -> Row:
    return Row("?", answer, more=more)


def right(verifier, answer, text) -> float:
    return verifier.right(row(answer), verifier.normal(text))


@pytest.mark.parametrize(("text", "normal"), [
    ("30", "30"), ("-1006", "-1006"), ("−7", "-7"), (" 7/2 ", "7/2"), ("+5", "5"), ("27.0", "27"), ("3.50", "7/2"),
    ("007", "7"),
    ("-0", "0"), ("1/007", "1/7"), ("55/11", None), ("14/4", None), ("5/1", None), ("0/5", None), ("1/0", None),
    ("1/" + "0" * 5000 + "1", None), ("1e9", None), ("٣", None), ("", None), ("1,234", None), ("$5", None), ("5 %", None),
    ("5.", None), (".5", None), ("NaN", None), ("inf", None), ("3 or 4", None), ("9" * 41, None),
    ("__import__('os')", None)])
def test_a_number_in_a_box(text, normal):
    assert Number().normal(text) == normal


@pytest.mark.parametrize(("text", "found"), [
    ("7", "7"), ("The answer is 5.", "5"), ("3 + 4 = **7**", "7"), ("first 3, then -4.", "-4"),
    ("It costs $1,234.50 today", "2469/2"),
    ("-$5", "-5"), ("5km", "5"), ("about 75 %", "75"), ("12\u202f345 people", "12345"), ("1'234'567", "1234567"),
    (".5", "1/2"),
    (r"$\frac{7}{2}$", "7/2"), (r"\(1{,}234\)", "1234"), ("1.5e3", "1500"), ("2e-1", "1/5"), ("1e99", None),
    ("none", None), ("", None),
    (r"I think 3. \boxed{4} is 5", "4"), (r"\boxed{x = 5}", "5"), (r"\boxed{?} 7", None),
    ("14/2", None), ("20/5", None), ("2024-05-01", None), ("at 10:30", None), ("10^3", None), ("3-5", None), ("1,2,3", None),
    ("12 345", None), ("12,5", None), ("x2 and gpt-4", None), ("1.2.3", None), ("9" * 41, None), ("٣", None)])
def test_a_number_in_an_apis_text(text, found):
    assert Number().extract(text) == found


def test_a_number_is_compared_exactly_unless_a_tolerance_is_given():
    assert [right(Number(), 0.1, text) for text in ("0.1", "1/10", "0.10000000000000001")] == [1.0, 1.0, 0.0]
    assert [right(Number(), ["7/2", 4], text) for text in ("3.5", "4.0", "3")] == [1.0, 1.0, 0.0]
    assert [right(Number(0.1), 3, text) for text in ("3.1", "2.9", "3.11", "2.8")] == [1.0, 1.0, 0.0, 0.0]
    assert [right(Number(0.1, True), -50, text) for text in ("-55", "-45", "-56", "50")] == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(("text", "normal"), [
    ("Paris", "paris"), ("  new \n york. ", "new york"), ("ＡＢＣ１", "abc1"), ("Straße", "strasse"), ("E\u0301", "é"),
    ("...", None),
    ("", None), (" ", None), ("x" * 2000, "x" * 2000), ("x" * 2001, None), (" " * 5000 + "x", "x")])
def test_a_text(text, normal):
    assert Text().normal(text) == normal


def test_a_text_is_right_as_a_whole():
    assert [right(Text(),
    ["Paris", "Lutetia"], t) for t in ("PARIS.", "lutetia", "Rome", "Paris or Rome")] == [1.0, 1.0, 0.0, 0.0]
    assert Text().extract(r"It is \boxed{Paris}, of course") == "paris"
    assert Text().extract("Paris.") == "paris"


@pytest.mark.parametrize(("verifier", "text", "found"), [
    (ABC, "B", "B"), (ABC, "b.", "B"), (ABC, "Answer: (B)", "B"), (ABC, "The answer is **C**. A good one", "C"),
    (ABC, "A careful B", "B"),
    (ABC, "I see a cat", None), (ABC, "", None), (ABC, r"A \boxed{C} B", "C"), (ABC, r"A \boxed{D}", None),
    (ABC, "ABC", None),
    (CITIES, "I like new york", "New York"), (CITIES, "Parisian Rome!", "Rome"),
    (CITIES, "The option: york (not Rome)", "York")])
def test_a_choice_in_an_apis_text(verifier, text, found):
    assert verifier.extract(text) == found


def test_a_choice():
    assert [ABC.normal(text) for text in ("a", " B. ", "AB", "A or B", "D", "")] == ["A", "B", None, None, None, None]
    assert [right(ABC, "b", text) for text in ("B", "A")] == [1.0, 0.0]
    own, with_choices = Choice(field="cities"), row("Rome", cities=["Rome", "Paris"])
    own.check(with_choices)
    assert own.right(with_choices, own.normal("ROME")) == 1.0
    assert own.right(with_choices, own.normal("Rome or Paris")) == 0.0
    assert own.extract("It is Rome, I think", with_choices) == "Rome"
    assert own.extract("It is Rome, I think") == "it is rome, i think"


@pytest.mark.parametrize(("text", "found"), [
    ("2005-04-03", "2005-04-03"), ("2005-04-03T10:00:00Z", "2005-04-03"), ("on 3 April 2005.", "2005-04-03"),
    ("April 3rd, 2005", "2005-04-03"), ("the 3rd of Apr. 2005", "2005-04-03"), ("Sept 3 2005", "2005-09-03"),
    ("2005/4/3", "2005-04-03"),
    ("25/12/2005", "2005-12-25"), ("12/25/2005", "2005-12-25"), ("05.05.2005", "2005-05-05"), ("03/04/2005", None),
    ("2005-01-02, no: 03/04/2005", None), ("30 February 2005", None), ("2005-13-01", None), ("25/12/05", None),
    ("none", None), ("", None),
    (r"2005-01-02 \boxed{3 May 2005} 2006-01-02", "2005-05-03"), ("1 May 2005 to 2 May 2005", "2005-05-02"),
    ("May 2005", None)])
def test_a_date_in_an_apis_text(text, found):
    assert Date().extract(text) == found


def test_a_date_in_a_box():
    texts = (" 2004-02-29 ", "2005-02-29", "2005-2-9", "20050209", "3 April 2005", "٢٠٠٥-٠٤-٠٣", "0000-01-01", "2005-W01-1")
    assert [Date().normal(text) for text in texts] == ["2004-02-29", *[None] * 7]
    assert [right(Date(), ["2005-04-03", "2005-03-04"], text) for text in ("2005-03-04", "2005-03-05")] == [1.0, 0.0]


@pytest.mark.parametrize(("text", "normal"), [
    ('{"b": 1.50, "a": [true, null]}', '{"a": [true, null], "b": 1.5}'), ("10e-1", "1"), ("-0.0", "0"), ("1e3", "1000"),
    (' "γ" ', '"γ"'), (r'"\u0041"', '"A"'), ("0.1000000000000000000000000000000001", "0.1000000000000000000000000000000001"),
    ('{"a": 1, "a": 1}', None), ("NaN", None), ("[Infinity]", None), ("1e999", None), ("1e99999999999999999999999", None),
    ("9" * 5000, None),
    (r'"\ud800"', None), ("{'a': 1}", None), ("", None), ("[" * 51 + "]" * 51, "[" * 51 + "]" * 51),
    ("[" * 52 + "]" * 52, None),
    ("[" * 9000 + "]" * 9000, None), ("[" * 10**6, None), ("[1] [2]", None)])
def test_a_json_value(text, normal):
    assert Json().normal(text) == normal


@pytest.mark.parametrize(("text", "found"), [
    ('Here:\n```json\n{"a": [1, {"b": 2}]}\n```\nDone.', '{"a": [1, {"b": 2}]}'), ("[1] and [2]", "[2]"),
    ('{"a": 1} (see [note])', '{"a": 1}'),
    ('{"a": "}"} ok', '{"a": "}"}'), ("[ {1} [2]", "[2]"), ("(] [1]", "[1]"), ('say "hi {" [1]', "[1]"), ("none", None),
    ("5", "5"),
    (r'[1] \boxed{{"a": 1}} [2]', '{"a": 1}'), ("[" * 50_000, None), ('"' + r"\"" * 50_000, None), ("[]" * 50_000, "[]")])
def test_json_in_an_apis_text(text, found):
    assert Json().extract(text) == found


def test_which_json_is_right():
    assert [right(Json(),
    {"a": 1, "b": [2]}, t) for t in ('{"b":[2.0],"a":1}', '{"b":["2"],"a":1}', '{"a":1}')] == [1.0, 0.0, 0.0]
    assert [right(Json(), [1, 2], text) for text in ("[1, 2]", "1", "[2, 1]")] == [1.0, 0.0, 0.0]  # a list is one value
    assert [right(Json(), {"any_of": [1, [2]]}, text) for text in ("1", "[2]", '{"any_of": [1, [2]]}')] == [1.0, 1.0, 0.0]
    assert right(Json(), {"any_of": [{"any_of": [1]}]}, '{"any_of": [1]}') == 1.0
    assert [right(Json(), True, "true"), right(Json(), True, "1"), right(Json(), 1, "true")] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(("verifier", "answer", "words"), [
    (Number(), "seven", "'seven' is no number in a form"), (Number(), True, "True is no number"), (Number(),
    1e-300, "no number in a form"), (Number(),
    [1, "14/4"], "'14/4' is no"),
    (Number(), float("nan"), "nan is no"), (Number(), 10**100, "is no number"), (Number(), None, "there is no answer"),
    (Number(), [], "there is no answer"), (Number(), {"a": 1}, "is no number"), (Text(), "", "'' is no text"), (Text(),
    5, "5 is no text"),
    (Text(), "CORRECT", "that is not CORRECT"), (Text(), "x" * 10**7, "is no text of 1 to 2000"),
    (ABC, "D", "expected one of A, B, C"),
    (Choice(), "A", "its field choices lists no choices"), (Date(), "3 April 2005", "is no date as YYYY-MM-DD"), (Date(),
    2005, "is no date"),
    (Json(), '{"a": 1}', "a text that holds JSON"), (Json(), {"any_of": []}, "lists nothing"), (Json(), float("nan"),
    "is longer than"),
    (Json(), {1, 2}, "is longer than")])
def test_an_answer_that_its_own_verifier_refuses_is_one_line(verifier, answer, words):
    with pytest.raises(ValueError, match=words) as caught:
        verifier.check(row(answer))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("verifier", "answer"), [
    (Number(), 5), (Number(), ["7/2", 0.1]), (Text(), ["a", "b"]), (ABC, "a"), (ABC, ["A", "B"]),
    (Date(), "2005-04-03"),
    (Json(), None), (Json(), []), (Json(), "a"), (Json(), {"any_of": ['{"a": 1}']})])
def test_an_answer_that_can_be_compared_passes(verifier, answer):
    verifier.check(row(answer))


@given(st.sampled_from(ALL), st.text() | st.text(alphabet='0123456789.,/-+{}[]":eE$ \\boxed\'ABC'))
def test_any_text_is_taken_and_normal_is_one_way_of_writing(verifier, text):
    verifier.extract(text)
    normal = verifier.normal(text)
    assert normal is None or verifier.normal(normal) == normal
    found = verifier.extract(text)
    assert found is None or verifier.normal(found) == found


@pytest.mark.parametrize("verifier", ALL, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("unit", ["1", "1,", "1 ", "a", " ", "{", '"', '"\\', "[", "[]", "answer is ",
                                  "A ", "-", "1/", r"\frac{1}", "1 May "])
def test_megabytes_have_an_answer_or_none(verifier, unit):
    """In time linear in their length: squared, this test would not end."""
    text = unit * (2 * 10**6 // len(unit))
    verifier.extract(text)
    verifier.normal(text)


def test_a_call_that_is_done_at_once():
    assert submit(Number(), row(7), "7").result().score == 1.0
    assert not submit(Number(), row(7), "8").result().timed_out


def test_a_row_as_a_dict():
    full = Row("2 + 2", 4, "easy", "q1", ApiAnswer("It is 5.", "m"), {"level": 3})
    assert full.as_dict() == {"question": "2 + 2", "answer": 4, "kind": "easy", "id": "q1", "api_answer": "It is 5.",
                              "level": 3}
    assert Row("?", None).as_dict() == {"question": "?", "answer": None, "kind": "all", "id": "", "api_answer": None}


def settings(**given) -> VerifierSettings:
    return validated(VerifierSettings, given, "task.verifier.")


def test_verifiers_by_name():
    assert make_verifier(VerifierSettings.model_validate("number")) == Number()
    assert make_verifier(settings(name="number", tolerance=1, relative=True)) == Number(1.0, True)
    assert make_verifier(settings(name="choice", choices=["A", "B"])).form == "one of A, B"
    assert make_verifier(settings(name="choice", field="cities")).field == "cities"
    assert make_verifier(settings(name="date")).form == "a date as YYYY-MM-DD"
    assert make_verifier(settings(name="text", form="a city")) == Text("a city")
    assert isinstance(make_verifier(settings(name="json")), Json)


@pytest.mark.parametrize(("given", "words"), [
    ({"name": "nubmer"}, "'nubmer' is no verifier; expected one of number, text"), ({}, "task.verifier.name: missing"),
    ({"name": "text", "tolerance": 0.1}, "text does not use tolerance; leave it out"),
    ({"name": "number", "seconds": 3.0}, "number does not use"),
    ({"name": "a.py:f", "choices": ["a", "b"]}, "does not use choices"),
    ({"name": "number", "tolerance": -1.0}, "task.verifier.tolerance = -1"),
    ({"name": "number", "relative": True}, "set tolerance too"),
    ({"name": "choice", "choices": ["A", "a."]}, "are read alike"),
    ({"name": "choice", "choices": ["A", "CORRECT"]}, "cannot be a choice"),
    ({"name": "choice", "choices": ["A"]}, "task.verifier.choices"),
    ({"name": "choice", "choices": ["A", "B"], "field": "c"}, "leave one out"), ({"name": ":f"}, "is no verifier"),
    ({"name": "a.py:"}, "is no"),
    ({"name": "number", "tolerence": 1}, "did you mean tolerance")])
def test_settings_that_cannot_be_are_one_line(given, words):
    with pytest.raises(UserError, match=words) as caught:
        settings(**given)
    assert "\n" not in str(caught.value)
