"""Ask an adapter that vLLM serves (docs/serving.md): `python -m examples.served_client "36 γ 27" none`."""

import os
import sys

import anthropic

from adapter.api.claude import root_of
from adapter.api.faults import in_words
from adapter.questions import ApiAnswer, Row
from adapter.verdict import resolve
from grpo.run.streams import print_utf8, typed
from symbols.settings import Settings
from symbols.task import SymbolTask


class ServedAdapter:
    """An adapter behind vLLM's own server. `url` is the server's, `name` the one --lora-modules gave it.

    max_tokens: the run's rollout.max_new_tokens; configs/tiny.yaml has 96.
    """

    def __init__(self, url: str, name: str = "adapter", condition: str = "vague", max_tokens: int = 96):
        self._client = anthropic.Anthropic(base_url=root_of(url), api_key=os.environ.get("VLLM_API_KEY", "none"))
        self._name, self._max_tokens = name, max_tokens
        self._corrector = SymbolTask.make_corrector(Settings(condition=condition))

    def correct(self, expression: str, api_answer: str) -> str | None:
        """The final answer, given the API's text; None where the adapter gives none.

        Raises anthropic.AnthropicError where the server cannot be asked.
        """
        row = Row(expression, None, api=ApiAnswer(api_answer, "API"))
        messages = list(self._corrector.problem(row).messages)
        reply = self._client.messages.create(model=self._name, max_tokens=self._max_tokens, messages=messages)
        text = "".join(block.text for block in reply.content if block.type == "text")  # beside it, thoughts
        return resolve(self._corrector.answer_in(text), self._corrector.extracted(row))


if __name__ == "__main__":
    print_utf8()
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    url = os.environ.get("VLLM_URL", "http://127.0.0.1:8000")
    try:
        print(ServedAdapter(url).correct(*map(typed, sys.argv[1:])))
    except anthropic.AnthropicError as error:
        sys.exit(f"error: VLLM_URL = {url}: {in_words(error)}; start vLLM's server there (docs/serving.md)")
