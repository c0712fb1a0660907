"""How a model is spoken to: its tokenizer, its chat template, and where and in which dtype it computes."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.utils import cached_file

from grpo.config import Model
from grpo.types import Problem, Prompt, UserError
from harness.files import brief, read_object

ANSWER = "an answer"  # of the assistant, to see what a chat template puts behind one


class Chat:
    """What is asked of a model directory without its weights."""

    def __init__(self, model: Model, device: torch.device):
        """Read the tokenizer from `model.path`. Raises UserError where there is none, or it has no chat template."""
        dtype = {"cuda": "bfloat16", "cpu": "float32"}[device.type] if model.dtype == "auto" else model.dtype
        self.device, self.dtype, self.path = device, getattr(torch, dtype), model.path
        self.date = model.date or date.today()
        with read_from(model.path, "tokenizer"):
            self.tokenizer = AutoTokenizer.from_pretrained(model.path, trust_remote_code=False)
        if self.tokenizer.chat_template is None:
            raise UserError(f"model.path = {model.path}: the tokenizer has no chat template; give an instruct model")

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end a completion: those of tokenizer, generation config, config and chat template together.

        Raises UserError where one of them is no token id, a file is damaged, or there are none.
        """
        config = self._config
        told = [self.tokenizer.eos_token_id, self._turn_end(), self._generation_config().get("eos_token_id"),
                *(getattr(part, "eos_token_id", None) for part in (config, config.get_text_config()))]
        ids = [i for one in told for i in (one if isinstance(one, list) else [one]) if i is not None]
        if wrong := [i for i in ids if type(i) is not int]:
            raise UserError(f"model.path = {self.path}: eos_token_id holds {brief(repr(wrong[0]))}; expected a token id, or "
                            "a list of them")
        stops = sorted({i for i in ids if 0 <= i < len(self.tokenizer)})  # -1 is some configs' word for none
        if not stops:
            raise UserError(f"model.path = {self.path}: no stop token in tokenizer, generation_config.json, config.json or "
                            "chat template: no completion would end; set eos_token_id in generation_config.json")
        return stops

    def stops(self) -> str:
        """A line that says which they are."""
        return "stop tokens: " + ", ".join(f"{brief(self.tokenizer.convert_ids_to_tokens(i))} ({i})" for i in self.stop_ids)

    def _turn_end(self) -> int | None:
        """The first added token (<|im_end|> and its like) that the chat template puts behind an answer of the assistant."""
        try:
            text = self._rendered([{"role": "user", "content": "a question"}, {"role": "assistant", "content": ANSWER}],
                                  add_generation_prompt=False, tokenize=False)
        except TemplateError:  # such a template takes no answers, and is not asked for any
            return None
        _, found, behind = text.rpartition(ANSWER)
        added = self.tokenizer.added_tokens_decoder
        ids = self.tokenizer.encode(behind, add_special_tokens=False) if found else []
        return next((i for i in ids if i in added), None)

    def _generation_config(self) -> dict[str, object]:
        """What generation_config.json holds; nothing where there is none."""
        file = cached_file(self.path, "generation_config.json", _raise_exceptions_for_missing_entries=False,
                           _raise_exceptions_for_connection_errors=False)
        try:
            return read_object(Path(file)) if file else {}
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read ({brief(error)}); copy it anew, or delete it if config.json has "
                            "eos_token_id") from None

    @cached_property
    def max_tokens(self) -> int:
        """The longest prompt plus completion the model has positions for."""
        return self._config.get_text_config().max_position_embeddings

    @cached_property
    def _config(self) -> PretrainedConfig:
        with read_from(self.path, "configuration"):
            return AutoConfig.from_pretrained(self.path, trust_remote_code=False)

    def encode(self, problem: Problem) -> Prompt:
        """The prompt, as the model's chat template renders the messages: thinking off, on `date`, draws fixed by them."""
        try:
            ids = tuple(self._rendered(problem.messages, add_generation_prompt=True, tokenize=True, return_dict=False))
        except TemplateError as error:
            raise UserError(f"model.path = {self.path}: its chat template refuses {problem.name} ({error}); "
                            "give another model, or other messages") from None
        return Prompt(problem, ids, self.tokenizer.decode(ids))

    def _rendered(self, messages: Sequence[Mapping[str, str]], **how: bool) -> str | list[int]:
        before = random.getstate()
        random.seed(repr(messages))  # Jinja's `random` and `lipsum` draw from Python's own generator
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), enable_thinking=False, strftime_now=self.date.strftime, **how)
        finally:
            random.setstate(before)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """A completion's text, for reward and logs; training never reads it. A stop token is none of it, special or not."""
        if token_ids and token_ids[-1] in self.stop_ids:
            token_ids = token_ids[:-1]
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)


def pick_device(model: Model) -> torch.device:
    """The device of `model.device`. Raises UserError where it asks for a GPU that is not there."""
    available = torch.cuda.is_available()
    if model.device == "cuda" and not available:
        raise UserError("model.device = cuda: no NVIDIA GPU is visible here; on a CPU use configs/tiny.yaml")
    return torch.device("cuda" if available and model.device != "cpu" else "cpu")


@contextmanager
def read_from(path: str, what: str) -> Iterator[None]:
    """Within it, what transformers finds wrong with the directory at `path` becomes a UserError. what: is read there."""
    try:
        yield
    except (OSError, ValueError, LookupError, AttributeError, TypeError, ImportError, RecursionError, SafetensorError,
            StrictDataclassError) as error:  # any of these, where config.json is not what the model's code expects
        first = str(error).strip().splitlines()[0].rstrip(":")
        raise UserError(f"model.path = {path}: no {what} there ({first}); "
                        "give a Hugging Face model directory, such as models/tiny") from None
