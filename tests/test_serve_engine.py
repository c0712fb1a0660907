"""The command with real vLLM: its engine, behind it vLLM's own server as the API, and what happens when one of them dies."""

import asyncio
import html
import json
import shutil
import signal
from collections.abc import Iterator

import httpx
import openai
import psutil
import pytest
from safetensors.torch import load_file, save_file

from adapter.rows import Splits
from examples.served_client import ServedAdapter
from grpo.policy import WEIGHTS
from grpo.run.files import MANIFEST, sha256
from symbols.expression import GREEK
from symbols.generate import Range
from symbols.settings import INSTRUCTION
from tests.conftest import LONG, write_lines
from tests.gateway import wait_until
from tests.gateway_command import BEARER, TOKEN, Command, ask, serving
from tests.symbol_rows import build

QUESTIONS = [row.question for row in build(7, Splits(2, 2, 24), Range((1, 99), (2, 2), 999), GREEK, 7).test]


@pytest.fixture(scope="module")
def command(toy, vllm_server, tmp_path_factory) -> Iterator[Command]:
    """In front of vLLM's own server, with a copy of the toy run."""
    folder = tmp_path_factory.mktemp("serve")
    run = shutil.copytree(toy[0], folder / "run")
    write_lines(folder / "truths.jsonl", [{"question": question, "answer": 7} for question in QUESTIONS])
    with serving(run, vllm_server, folder, "--truths", str(folder / "truths.jsonl")) as running:
        yield running


def test_it_answers_as_vllms_own_server_with_the_same_lora(command, vllm_server):
    corrected = asyncio.run(ask(command.url, QUESTIONS))
    plain = [answer.text for answer in asyncio.run(ask(vllm_server, QUESTIONS))]
    served = ServedAdapter(vllm_server)
    for question, answer, api in zip(QUESTIONS, corrected, plain, strict=True):
        final = served.correct(question, api)
        if answer.told["action"] == "corrected":
            assert answer.text == final
            assert answer.stop_reason == "end_turn"
        else:
            assert answer.text == api
    actions = [answer.told["action"] for answer in corrected]
    assert actions.count("corrected") > 6
    assert {answer.told["step"] for answer in corrected} == {str(command.health()["step"])}


def test_openais_stream_through_vllms_own_server(command):
    with openai.OpenAI(base_url=command.url + "/v1", api_key="none", max_retries=0) as client:
        whole = [answer.text for answer in asyncio.run(ask(command.url, QUESTIONS[:6]))]
        for question, text in zip(QUESTIONS[:6], whole, strict=True):
            chunks = list(client.chat.completions.create(
                model="models/tiny", max_tokens=40, stream=True, stream_options={"include_usage": True},
                messages=[{"role": "user", "content": INSTRUCTION + question}]))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
            assert chunks[-1].usage.prompt_tokens > 20


def test_the_page_is_for_who_has_the_token(command):
    assert httpx.get(command.url).status_code == 401
    asyncio.run(ask(command.url, QUESTIONS[:2]))

    def shown() -> bool:
        page = httpx.get(command.url, headers=BEARER)
        assert page.status_code == 200
        return html.escape(QUESTIONS[1]) in page.text and "both wrong" in page.text

    wait_until(shown, LONG)
    assert "corrector_captured_written" in httpx.get(command.url + "/metrics").text


def test_litellms_guardrail_gets_what_a_caller_of_the_gateway_gets(command, vllm_server):
    def posted(kind: str, call: str, text: str) -> dict:
        return httpx.post(command.url + "/beta/litellm_basic_guardrail_api", headers={"x-api-key": TOKEN}, timeout=LONG,
                          json={"input_type": kind, "litellm_call_id": call, "texts": [text]}).json()

    answers, plain = (asyncio.run(ask(url, QUESTIONS[:8])) for url in (command.url, vllm_server))
    for question, answer, api in zip(QUESTIONS, answers, plain, strict=False):
        assert posted("request", question, INSTRUCTION + question) == {"action": "NONE"}
        corrected = {"action": "GUARDRAIL_INTERVENED", "texts": [answer.text]}
        expected = corrected if answer.told["action"] == "corrected" else {"action": "NONE"}
        assert posted("response", question, api.text) == expected


def test_an_engine_that_is_killed_costs_nobody_an_answer_and_comes_back(command):
    children = psutil.Process(command.process.pid).children(recursive=True)
    (engine,) = [child for child in children if "EngineCore" in " ".join([child.name(), *child.cmdline()])]

    async def killed_in_the_middle():
        asked = asyncio.create_task(ask(command.url, QUESTIONS * 4))
        await asyncio.sleep(0.3)
        engine.kill()
        return await asked

    answers = asyncio.run(killed_in_the_middle())
    assert len(answers) == 96
    assert all(isinstance(answer.text, str) for answer in answers)
    why = [answer.told["why"] for answer in answers]
    assert "engine down" in why
    assert set(why) <= {"", "engine down", "unparsed"}
    command.wait_until_up()
    assert "corrector_engine_starts 2.0" in httpx.get(command.url + "/metrics").text
    (answer,) = asyncio.run(ask(command.url, QUESTIONS[:1]))
    assert answer.told["why"] in ("", "unparsed")


def test_another_lora_is_taken_while_it_serves(command):
    """Nothing of the old one is left, in no cache either; what was asked meanwhile is answered by one of the two."""
    before = asyncio.run(ask(command.url, QUESTIONS))
    file = command.run / "adapter" / WEIGHTS
    lora = load_file(file)
    save_file({name: 0 * tensor for name, tensor in lora.items()}, file)
    if (manifest := file.with_name(MANIFEST)).is_file():
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {WEIGHTS: sha256(file)}))

    async def swapped_in_the_middle():
        asked = asyncio.create_task(ask(command.url, QUESTIONS * 4))
        await asyncio.sleep(0.3)
        command.process.send_signal(signal.SIGHUP)
        return await asked

    during = asyncio.run(swapped_in_the_middle())
    assert {answer.told["why"] for answer in during} <= {"", "unparsed"}
    wait_until(lambda: "is served" in command.log.read_text(), LONG)
    after = asyncio.run(ask(command.url, QUESTIONS))
    old, new = ([(a.told["action"], a.text) for a in answers] for answers in (before, after))
    assert old != new
    seen = [(answer.told["action"], answer.text) for answer in during]
    assert {*zip(QUESTIONS * 4, seen, strict=True)} <= {*zip(QUESTIONS, old, strict=True), *zip(QUESTIONS, new, strict=True)}


def test_a_reload_is_for_who_has_the_token(command):
    assert httpx.post(command.url + "/v1/reload").status_code == 401
    step = command.health()["step"]
    answer = command.reload()
    assert (answer.status_code, answer.json()) == (
        200, {"step": step, "before": step, "temperature": None, "threshold": None})
    assert "is served, its confidence is not calibrated" in command.log.read_text().splitlines()[-1]


def test_sigterm_ends_it_once_every_answer_is_given(command):
    """The last of this file: to the whole group, as a service manager sends it; the engine lives on until it is let go."""
    def handled() -> float:
        """How many requests have come, those that are being answered among them."""
        return command.metric("corrector_requests_total") + command.metric("corrector_requests_in_flight")

    async def ended_in_the_middle():
        before = handled()
        asked = asyncio.create_task(ask(command.url, QUESTIONS))
        while await asyncio.to_thread(handled) < before + len(QUESTIONS):
            await asyncio.sleep(0)
        for child in psutil.Process(command.process.pid).children(recursive=True):
            child.send_signal(signal.SIGTERM)
        command.process.send_signal(signal.SIGTERM)
        return await asked

    children = psutil.Process(command.process.pid).children(recursive=True)
    answers = asyncio.run(ended_in_the_middle())
    assert len(answers) == len(QUESTIONS)
    assert {answer.told["why"] for answer in answers} <= {"", "unparsed"}
    assert command.process.wait(LONG) == 0
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    lines = [json.loads(line) for file in (command.run.parent / "captured").glob("captured-*.jsonl")
             for line in file.read_text().splitlines()]
    found = {line["id"]: line for line in lines}
    assert len(found) == len(lines)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        line = found[answer.told["id"]]
        assert (line["question"], line["action"]) == (question, answer.told["action"])
        assert answer.text == (line["final"] if line["action"] == "corrected" else line["api_answer"])
