"""How a model is spoken to: its tokenizer, its chat template, and where and in which dtype it computes."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import cached_property

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig

from grpo.config import Model
from grpo.types import Problem, Prompt, UserError
from harness.files import brief

# what a chat template computes may fail as Python does: {{ 1 // 0 }}
TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


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
        """Tokens that end a completion: the tokenizer's and the generation config's."""
        try:
            more = GenerationConfig.from_pretrained(self.path).eos_token_id
        except OSError:  # a model without that file says it in config.json
            more = self._config.eos_token_id
        return sorted({self.tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])} - {None})

    @cached_property
    def max_tokens(self) -> int:
        """The longest prompt plus completion the model has positions for."""
        return self._config.get_text_config().max_position_embeddings

    @cached_property
    def vocabulary(self) -> int:
        """How many tokens the model has embeddings for."""
        return self._config.get_text_config().vocab_size

    @cached_property
    def _config(self) -> PretrainedConfig:
        with read_from(self.path, "configuration"):
            return AutoConfig.from_pretrained(self.path, trust_remote_code=False)

    def encode(self, problem: Problem) -> Prompt:
        """The prompt, as the model's chat template renders the messages: thinking off, on `date`, draws fixed by them.

        Raises UserError where the template fails, or makes no token, or one that the model does not have.
        """
        before = random.getstate()
        random.seed(repr(problem.messages))  # Jinja's `random` and `lipsum` draw from Python's own generator
        try:
            ids = tuple(self.tokenizer.apply_chat_template(
                list(problem.messages), add_generation_prompt=True, enable_thinking=False, tokenize=True, return_dict=False,
                strftime_now=self.date.strftime))
        except TEMPLATE_ERRORS as error:
            raise UserError(f"model.path = {self.path}: its chat template refuses {problem.name} ({brief(error)}); "
                            "give another model, or other messages") from None
        finally:
            random.setstate(before)
        if not ids or max(ids) >= self.vocabulary:
            made = f"token {max(ids)}" if ids else "no token"
            raise UserError(f"model.path = {self.path}: its tokenizer makes {made} of {problem.name}, and the model reads 0 "
                            f"to {self.vocabulary - 1}; give it the tokenizer and the chat template that are its own")
        return Prompt(problem, ids, self.tokenizer.decode(ids))

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """A completion's text, for reward and logs; training never reads it."""
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
    except (OSError, ValueError, KeyError, RecursionError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"model.path = {path}: no {what} there ({first}); "
                        "give a Hugging Face model directory, such as models/tiny") from None
