"""How a model is spoken to: its tokenizer, its chat template, and where and in which dtype it computes."""

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import date
from functools import cached_property
from pathlib import Path
from types import TracebackType

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.utils import cached_file

from grpo.config import Config, Model
from grpo.run.files import brief, read_object
from grpo.run.memory import ran_out
from grpo.run.model_files import check_model
from grpo.run.tasks import check_task
from grpo.types import Problem, Prompt, Task, UserError

ANSWER = "an answer"  # of the assistant, to see what a chat template puts behind one
# What transformers raises over a config, a tokenizer or weights that it does not understand: whatever its code comes upon.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, ImportError,
               RuntimeError, SafetensorError, StrictDataclassError)
_TEMPLATE_FAULTS = (TemplateError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


class Chat:
    """What is asked of a model directory without its weights."""

    def __init__(self, model: Model, device: torch.device):
        """Read the tokenizer from `model.path`. Raises UserError where there is none, it has no chat template, or
        `check_model` finds the directory's files wanting.
        """
        check_model(model.path)
        dtype = {"cuda": "bfloat16", "cpu": "float32"}[device.type] if model.dtype == "auto" else model.dtype
        self.device, self.dtype, self.path = device, getattr(torch, dtype), model.path
        self.date = model.date or date.today()
        with read_from(model.path, "tokenizer"):
            self.tokenizer = AutoTokenizer.from_pretrained(model.path, trust_remote_code=False)
        template = self.tokenizer.chat_template
        if isinstance(template, dict) and "default" not in template:
            raise UserError(f"model.path = {model.path}: of its chat templates ({brief(', '.join(template))}) none is named "
                            "default; write the one to use to chat_template.jinja there")
        self.tokenizer.chat_template = template["default"] if isinstance(template, dict) else template
        if not isinstance(self.tokenizer.chat_template, str):
            raise UserError(f"model.path = {model.path}: the tokenizer has no chat template; give an instruct model")

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end a completion: those of tokenizer, generation config, config and chat template together.

        Raises UserError where one of them is no token id, a file is damaged, or there are none.
        """
        config = self._config
        told = [self.tokenizer.eos_token_id, self.turn_end(), self._generation_config().get("eos_token_id"),
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

    def turn_end(self) -> int | None:
        """The first added token (<|im_end|> and its like) that the chat template puts behind an answer of the assistant."""
        try:
            text = self._rendered([{"role": "user", "content": "a question"}, {"role": "assistant", "content": ANSWER}],
                                  add_generation_prompt=False, tokenize=False)
        except _TEMPLATE_FAULTS:  # such a template takes no answers, and is not asked for any
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
        with read_from(self.path, "number of positions"):
            return self._config.get_text_config().max_position_embeddings

    @cached_property
    def _rows(self) -> int:
        """Of the embedding: how many tokens the model knows."""
        with read_from(self.path, "size of a vocabulary"):
            return self._config.get_text_config().vocab_size

    @cached_property
    def _config(self) -> PretrainedConfig:
        with read_from(self.path, "configuration"):
            return AutoConfig.from_pretrained(self.path, trust_remote_code=False)

    def encode(self, problem: Problem) -> Prompt:
        """The prompt, as the model's chat template renders the messages: thinking off, on `date`, draws fixed by them."""
        try:
            ids = tuple(self._rendered(problem.messages, add_generation_prompt=True, tokenize=True, return_dict=False))
        except _TEMPLATE_FAULTS as error:
            raise UserError(f"model.path = {self.path}: its chat template refuses {problem.name} ({brief(error)}); "
                            "give another model, or other messages") from None
        if not ids:
            raise UserError(f"model.path = {self.path}: its chat template makes nothing of {problem.name}; restore it")
        if max(ids) >= self._rows:
            raise UserError(f"model.path = {self.path}: {brief(self.tokenizer.convert_ids_to_tokens(max(ids)))!r} is token "
                            f"{max(ids)}, and the embedding has {self._rows} rows; restore the tokenizer that the model "
                            "came with, or save the model with resized embeddings")
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


class read_from(AbstractContextManager):
    """Within it, what transformers finds wrong with the directory at `path` becomes a UserError. what: is read there."""

    def __init__(self, path: str, what: str):
        self._path, self._what = path, what

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        # tokenizers raises an Exception of no class of its own; one that has a class is not meant
        if kind is None or not (kind is Exception or issubclass(kind, _UNREADABLE)) or ran_out(error):
            return
        raise UserError(f"model.path = {self._path}: no {self._what} there that transformers {transformers.__version__} can "
                        f"read ({kind.__name__}: {brief(' '.join(str(error).split()))}); give a Hugging Face model "
                        "directory, such as models/tiny") from None


def encode(chat: Chat, task: Task, config: Config) -> tuple[list[Prompt], list[Prompt], list[Prompt], int]:
    """The task's train, validation and test problems as token ids, and the most tokens of a prompt with its completion.

    Raises UserError where `check_task` does, or where they do not fit the model.
    """
    check_task(task, config.task.target)
    splits = [[chat.encode(problem) for problem in problems] for problems in (task.train, task.validation, task.test)]
    longest = max(len(prompt.token_ids) for prompts in splits for prompt in prompts)
    if longest + config.rollout.max_new_tokens > chat.max_tokens:
        raise UserError(f"rollout.max_new_tokens = {config.rollout.max_new_tokens}: with the longest prompt ({longest} "
                        f"tokens) it exceeds the model's {chat.max_tokens} positions; "
                        f"at most {chat.max_tokens - longest} fit")
    return *splits, longest + config.rollout.max_new_tokens
