"""OpenAI's protocol against a server on this machine: any address, with or without a key, and every kind of reply."""

from dataclasses import replace

import pytest

from adapter.api.openai import OpenAIUpstream, base_of
from grpo.types import UserError
from tests.claude import INSTRUCTION, expected, questions, rows, texts

KEY = "sk-openai-never-shown"
ANSWER = {"role": "assistant", "content": "Seven."}


@pytest.fixture
def chat(server, tmp_path, monkeypatch) -> OpenAIUpstream:
    """A client for it, which is named by the environment, with a key."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    return OpenAIUpstream("openai", "gpt-test", tmp_path / "answers.jsonl", concurrency=8, agreed=True,
                          prompt=INSTRUCTION + "{question}", timeout_s=2)


def choice(message: object, finish_reason: object = "stop") -> dict:
    """What makes a reply one with this message."""
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


def test_every_question_is_asked_once_and_kept(server, chat):
    asked = questions(60)
    assert texts(chat, asked) == expected(asked)
    assert texts(chat, asked + asked) == 2 * expected(asked)
    assert len(server.asked) == 60
    row = rows(chat)[0]
    assert (row["usage"], row["stop_reason"], row["error"]) == ({"input_tokens": 9, "output_tokens": 2}, "stop", None)
    assert {h["authorization"] for h in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in chat.store.read_text(encoding="utf-8")
    assert chat.answers(asked)[0].model == chat.label == "gpt-test"


def test_what_is_sent_by_hand(server, chat):
    texts(replace(chat, system="Be brief.", parameters={"temperature": 0, "top_k": 1, "chat_template_kwargs": {"a": [1]}}),
          questions(1))
    assert server.bodies == [{
        "model": "gpt-test", "max_completion_tokens": 64, "temperature": 0, "top_k": 1, "chat_template_kwargs": {"a": [1]},
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": INSTRUCTION + "0 + 0"}]}]
    assert rows(chat)[0]["request"] == server.bodies[0]


@pytest.mark.parametrize(("fault", "stop_reason", "text"), [
    (choice({"role": "assistant", "content": None, "refusal": "I will not."}), "refusal", ""),
    (choice({"role": "assistant", "content": "I", "refusal": "I will not."}), "refusal", "I"),
    (choice({"role": "assistant", "content": None}), "stop", ""),
    (choice({"role": "assistant"}), "stop", ""),
    (choice({"role": "assistant", "content": ""}, "content_filter"), "content_filter", ""),
    (choice({"role": "assistant", "content": "It depends on"}, "length"), "length", "It depends on"),
    (choice(ANSWER, None), None, "Seven."),
    (choice({**ANSWER, "reasoning_content": "Six?", "reasoning": "Six?"}), "stop", "Seven."),
    (choice({"role": "assistant", "content": [{"type": "text", "text": "Sev"}, {"type": "image", "url": "x"},
                                              {"type": "text", "text": "en."}]}), "stop", "Seven."),
    (choice({"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, "tool_calls"), "tool_calls", ""),
    (choice(ANSWER) | {"usage": None}, "stop", "Seven."),
    (choice(ANSWER) | {"usage": {"prompt_tokens": "9"}}, "stop", "Seven.")])
def test_every_outcome_is_an_answer_of_its_kind(server, chat, fault, stop_reason, text):
    server.faults.append(fault)
    assert texts(chat, questions(1)) == texts(chat, questions(1)) == [text]
    assert [row["stop_reason"] for row in rows(chat)] == [stop_reason]
    assert len(server.asked) == 1  # it is paid for


@pytest.mark.parametrize(("fault", "words"), [
    ("half a JSON", "JSONDecodeError"), ("400", "BadRequestError 400: trouble"),
    *((fault, "a reply that is no chat completion") for fault in (
        {"choices": []}, {"choices": None}, {"choices": 7}, {"choices": [None]}, choice(None), choice("Seven."),
        choice({"content": 7}), choice({"content": {"text": "7"}}), choice({"content": [7]}), choice(ANSWER, ["stop"])))],
    ids=str)
def test_one_bad_reply_is_kept_as_an_error_and_asked_again(server, chat, fault, words):
    server.faults.append(fault)
    asked = questions(9)
    with pytest.raises(UserError, match=f"1 of 9 questions have no answer yet .1 x {words}"):
        chat.answers(asked)
    assert [row["error"][: len(words)] for row in rows(chat) if row["error"]] == [words]
    assert texts(chat, asked) == expected(asked)
    assert len(server.asked) == 10


def test_answers_that_are_cut_off_are_pointed_out(server, chat, capsys):
    server.faults += [choice(ANSWER, "length")] * 3
    chat.answers(questions(10))
    assert "gpt-test: 3 of 10 answers were cut off at 64 tokens; --max-tokens" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["429 retry-after 0.01", "500", "closed", "cut short", "hangs"])
def test_passing_trouble_is_retried_by_the_sdk(server, chat, fault):
    server.faults += [fault] * 2
    asked = questions(4)
    assert texts(replace(chat, timeout_s=0.5), asked) == expected(asked)
    assert len(server.asked) == 6


def test_a_server_cannot_make_a_retry_wait_for_hours(server, chat, monkeypatch):
    """The SDK itself would give up, instead of waiting."""
    monkeypatch.setattr("adapter.api.connection.LONGEST_WAIT_S", 0.2)
    server.faults += ["429 retry-after 86400", "429 retry-after Fri, 31 Dec 2100 23:59:59 GMT", "429 retry-after-ms 1e9"]
    assert texts(chat, questions(3)) == expected(questions(3))
    assert len(server.asked) == 6


def test_a_wrong_key_stops_at_once_keeps_the_rest_and_stays_secret(server, chat):
    asked = questions(200)
    chat.answers(asked[:30])
    server.faults += ["401"] * 200
    with pytest.raises(UserError, match=r"170 of 200 .* AuthenticationError 401: trouble with \[OPENAI_API_KEY\]") as caught:
        chat.answers(asked)
    assert len(server.asked) <= 30 + chat.concurrency
    assert KEY not in chat.store.read_text(encoding="utf-8") + str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_that_the_server_repeats_is_in_no_row_and_no_answer(server, chat):
    server.faults.append(choice({"role": "assistant", "content": f"Your key is {KEY}"}, f"stop {KEY}"))
    assert texts(chat, questions(1)) == ["Your key is [OPENAI_API_KEY]"]
    assert KEY not in chat.store.read_text(encoding="utf-8")


@pytest.mark.parametrize("inside", ["\n", " ", "\u028b"])
def test_a_key_that_cannot_be_sent_is_one_line_without_it(server, chat, monkeypatch, inside):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}{inside}{KEY}")
    with pytest.raises(UserError, match=r"missing here: an API key that can be sent \(OPENAI_API_KEY holds") as caught:
        chat.answers(questions(1))
    assert KEY not in str(caught.value)
    assert (server.asked, chat.store.exists()) == ([], False)


@pytest.mark.parametrize("key", [None, "", " ", "none"])
def test_a_server_of_ones_own_needs_no_key(server, chat, monkeypatch, key):
    monkeypatch.delenv("OPENAI_API_KEY") if key is None else monkeypatch.setenv("OPENAI_API_KEY", key)
    assert texts(chat, questions(1)) == expected(questions(1))
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert texts(replace(chat, url=server.url), questions(2)) == expected(questions(2))
    assert {h["authorization"] for h in server.headers} == {"Bearer none"}


def test_openais_own_needs_one(chat, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert chat.missing() == []
    monkeypatch.delenv("OPENAI_API_KEY")
    assert chat.missing() == ["an API key (OPENAI_API_KEY); a server of your own that needs none is named by task.api_url "
                              "or OPENAI_BASE_URL"]
    assert replace(chat, url="http://[::1").missing() == [
        "a server's address (task.api_url: Invalid IPv6 URL; expected an address such as http://127.0.0.1:8000)"]


def test_a_key_goes_to_no_address_that_a_config_alone_names(chat, monkeypatch):
    stranger = replace(chat, url="https://stranger.example/v1")
    with pytest.raises(UserError, match=r"missing here: OPENAI_BASE_URL=https://stranger\.example/v1 ") as caught:
        stranger.answers(questions(1))
    assert KEY not in str(caught.value)
    for path in ("", "/v1/", "/v1/chat/completions"):
        monkeypatch.setenv("OPENAI_BASE_URL", "https://stranger.example" + path)
        assert stranger.missing() == []  # the user says so too
    monkeypatch.setenv("OPENAI_BASE_URL", "https://stranger.example/v1/other")
    assert len(stranger.missing()) == 1
    for here in ("http://localhost:8000", "http://127.0.0.1:8000/v1", "http://[::1]:8000"):
        assert replace(chat, url=here).missing() == []
    assert len(replace(chat, url="http://127.0.0.1.stranger.example").missing()) == 1
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert stranger.missing() == []


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v1/chat/completions"])
def test_an_address_may_end_as_other_clients_want_it(server, chat, monkeypatch, path):
    assert texts(replace(chat, url=server.url + path), questions(1)) == expected(questions(1))
    monkeypatch.setenv("OPENAI_BASE_URL", f" {server.url}{path} ")
    assert texts(chat, questions(2)) == expected(questions(2))


@pytest.mark.parametrize(("address", "base"), [
    ("http://h:8000", "http://h:8000/v1"), ("http://h/v1/", "http://h/v1"), ("https://h/api/v1", "https://h/api/v1"),
    ("https://h/v1beta/openai/", "https://h/v1beta/openai"), ("", "")])
def test_an_address_with_a_path_is_taken_as_it_is(address, base):
    assert base_of(address) == base


@pytest.mark.parametrize(("name", "value", "words"), [
    ("OPENAI_BASE_URL", "http://127.0.0.1:abc", "Invalid port"),
    ("OPENAI_BASE_URL", "127.0.0.1", r"missing here: an address with a protocol \(OPENAI_BASE_URL = 127.0.0.1"),
    ("OPENAI_BASE_URL", "http://[::1", "Invalid port"), ("OPENAI_BASE_URL", "http://127.0.0.1:9", "APIConnectionError"),
    ("HTTPS_PROXY", "ftp://127.0.0.1:9", "no connection .*scheme.* HTTPS_PROXY"),
    ("SSL_CERT_FILE", "/nowhere", "no connection .*No such file.* SSL_CERT_FILE")])
def test_an_address_that_is_none_is_one_line(chat, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with pytest.raises(UserError, match=words) as caught:
        chat.answers(questions(1))
    assert "\n" not in str(caught.value)


def test_what_it_costs_is_said_before_it_is_spent(server, chat, capsys):
    with pytest.raises(UserError, match=r"nothing was asked.*--yes"):
        replace(chat, agreed=False, system="123").answers(questions(10))
    characters = 10 * (3 + len(INSTRUCTION + "0 + 0"))
    assert capsys.readouterr().err == (
        f"gpt-test (openai): 10 questions, 0 already answered in {chat.store}, 10 to ask: about {characters // 3:,} tokens "
        "in, at most 640 out; the price of gpt-test is not known here\n")
    assert not server.asked
