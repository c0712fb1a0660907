"""The keys that choose an API: each is obeyed or refused, in one line that shows no key."""

from pathlib import Path

import pytest
from pydantic import Field

from adapter.api.claude import ClaudeUpstream
from adapter.api.openai import OpenAIUpstream
from adapter.api.recorded import RecordedUpstream
from adapter.api.settings import ApiSettings, make_upstream, missing
from adapter.api.simulated import SimulatedUpstream
from adapter.questions import ApiAnswer, Row
from adapter.verifiers.number import Number
from grpo.run.schema import validated
from grpo.types import UserError

NEVER = {"right": 0.0, "none": 1.0, "near_miss": 0.0, "echo": 0.0, "wrong_kind": 0.0}
OTHERS = {"api_model": "m", "api_url": "http://127.0.0.1:8", "api_system": "s", "api_prompt": "p {question}",
          "api_max_tokens": 9, "api_parameters": {"temperature": 0}, "api_answers": "x.jsonl", "api_concurrency": 2,
          "api_batch": True, "simulated": NEVER}
PAID = {"api_model", "api_system", "api_prompt", "api_max_tokens", "api_parameters", "api_answers", "api_concurrency"}
OF_CALLERS = {"api_system", "api_prompt"}  # the gateway goes by them
READ = {"simulated": {"simulated"}, "recorded": OF_CALLERS, "anthropic": PAID | {"api_batch"}, "vertex": PAID,
        "openai": PAID | {"api_url"}}  # by upstream


def settings(**keys: object) -> ApiSettings:
    return validated(ApiSettings, keys, "task.")


@pytest.mark.parametrize("upstream", READ)
def test_a_key_is_read_or_refused(upstream):
    assert {*OTHERS, "upstream", "api_yes"} == set(ApiSettings.model_fields)
    beside = {"upstream": upstream} | ({"api_model": "n"} if upstream == "openai" else {})
    plain = vars(make_upstream(settings(**beside), 0, Number()))
    for key, value in OTHERS.items():
        if upstream == "recorded" and key in OF_CALLERS:
            assert getattr(settings(**beside | {key: value}), key) == value
        elif key in READ[upstream]:
            assert vars(make_upstream(settings(**beside | {key: value}), 0, Number())) != plain, key
        else:
            with pytest.raises(UserError, match=rf"task.{key} = .*: upstream={upstream} does not read it; choose upstream "
                                                rf"[a-z, ]+, or leave {key} out$"):
                settings(**beside | {key: value})
    defaults = ApiSettings(**beside).model_dump()  # as a run's config.yaml has them
    assert settings(**defaults) == settings(**beside)


def test_what_the_keys_make_by_hand():
    common = {"concurrency": 2, "max_tokens": 1000, "system": "s", "prompt": "p {question}", "parameters": {"top_p": 1},
              "agreed": True, "quiet": True, "timeout_s": 100.0}
    keys = {"api_model": "m", "api_answers": "x.jsonl", "api_concurrency": 2, "api_max_tokens": 1000, "api_system": "s",
            "api_prompt": "p {question}", "api_parameters": {"top_p": 1}, "api_yes": True}
    assert make_upstream(settings(upstream="openai", api_url="http://h", **keys), 0, Number(), quiet=True) == OpenAIUpstream(
        "openai", "m", Path("x.jsonl"), url="http://h", **common)
    assert make_upstream(settings(upstream="vertex", **keys), 0, Number(), quiet=True) == ClaudeUpstream(
        "vertex", "m", Path("x.jsonl"), **common)
    assert make_upstream(settings(upstream="anthropic", api_batch=True), 0, Number()) == ClaudeUpstream(
        "anthropic", "claude-haiku-4-5", Path("data/answers.jsonl"), batch=True)
    assert isinstance(make_upstream(settings(), 0, Number()), SimulatedUpstream)


@pytest.mark.parametrize(("keys", "says"), [
    ({"upstream": "openai"}, "api_model = None: upstream=openai may be any server, and has no default; name a model"),
    ({"upstream": "openai", "api_model": "m", "api_url": "h:8"}, "api_url = 'h:8': expected an address with a protocol"),
    ({"upstream": "openai", "api_model": "m", "api_url": "http://h:x"}, "api_url = 'http://h:x': Port could"),
    ({"upstream": "nobody", "api_model": "m"}, "upstream = 'nobody': must be 'simulated'"),
    ({"upstream": "simulated", "simulated": {"right": 0.9}}, "simulated = {right: 0.9}: the shares sum to 1.4, expected 1; "
                                                            "set all of right, none"),
    ({"simulated": NEVER | {"none": 2.0}}, "simulated.none = 2.0: must be less than or equal to 1"),
    ({"simulated": {"wrong": 1.0}}, "simulated.wrong: unknown key; "),
    ({"api_prompt": "Well?"}, "api_prompt = 'Well?': asks the same of every row; put {question}"),
    ({"api_system": ""}, "api_system = '': "),
    ({"api_parameters": {"model": "m"}}, "api_parameters = {model: m}: model is none of them: set api_model; leave"),
    ({"api_parameters": {"max_completion_tokens": 5}}, "api_parameters = {max_completion_tokens: 5}: max_completion_tokens"),
    ({"api_parameters": {"stream": True}}, "api_parameters = {stream: True}: stream is none of them: answers are read"),
    ({"api_parameters": {"t": float("nan")}}, "api_parameters = {t: nan}: t is no JSON value"),
    ({"api_parameters": {"t": b"x"}}, "api_parameters = {t: b'x'}: t is no JSON value"),
    ({"api_parameters": {"t": "x" * 10_000}}, "api_parameters = {t: xxx"),
    ({"api_parameters": [1]}, "api_parameters = [1]: must be a valid dictionary"),
    ({"api_model": "a\nb"}, "api_model = 'a\\nb': expected a name on one line"),
    ({"api_answers": "x.txt"}, "api_answers = 'x.txt': expected a name that ends in .jsonl"),
    ({"api_batch": True, "api_concurrency": 2}, "api_batch = True: a batch holds all questions")])
def test_what_cannot_be_is_one_line(keys, says):
    with pytest.raises(UserError) as caught:
        settings(**{"upstream": "anthropic"} | keys)
    assert str(caught.value).startswith("task." + says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://me:sesame@h", "http://sesame@h/v1", "http://h/v1?key=sesame", "http://h#sesame"])
def test_a_key_in_an_address_is_refused_and_not_shown(url):
    says = r"task.api_url = .*: expected a plain address: a key belongs in OPENAI_API_KEY"
    with pytest.raises(UserError, match=says) as caught:
        settings(upstream="openai", api_model="m", api_url=url)
    assert "sesame" not in str(caught.value)


def test_a_task_may_have_defaults_of_its_own():
    class Own(ApiSettings):
        data: str = "d"
        api_prompt: str = Field("Do: {question}")

    own = validated(Own, {}, "task.")
    assert own.api_prompt == "Do: {question}"
    assert validated(Own, own.model_dump(), "task.") == own
    with pytest.raises(UserError, match=r"task.api_prompt = '\{question\}': upstream=simulated does not read it"):
        validated(Own, {"api_prompt": "{question}"}, "task.")


def test_what_a_machine_lacks(monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY", "OPENAI_BASE_URL", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    assert missing(settings()) == missing(settings(upstream="recorded")) == []
    assert missing(settings(upstream="anthropic")) == ["an API key (ANTHROPIC_API_KEY), or a token (ANTHROPIC_AUTH_TOKEN)"]
    assert missing(settings(upstream="openai", api_model="m"))[0].startswith("an API key (OPENAI_API_KEY)")
    assert missing(settings(upstream="openai", api_model="m", api_url="http://h")) == []
    assert missing(settings(upstream="vertex"))[0] == "a Google Cloud project (GOOGLE_CLOUD_PROJECT)"


def test_recorded_answers_are_those_of_the_rows():
    api = make_upstream(settings(upstream="recorded"), 0, Number())
    assert isinstance(api, RecordedUpstream)
    said = [ApiAnswer("Seven.", "m", "2026-11-01"), ApiAnswer("", "m")]
    assert api.answers([Row("a", 7, api=said[0]), Row("b", 8, api=said[1])]) == said
    for row, name in ((Row("b" * 99, 8), "question 'bbb.*"), (Row("b", 8, id="b-1"), "row b-1")):
        with pytest.raises(UserError, match=f"^{name}: has no api_answer, and upstream=recorded asks no API; give"):
            api.answers([Row("a", 7, api=said[0]), row])
