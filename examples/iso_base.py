"""Make a base for examples/iso_dates/config.yaml: `python -m examples.iso_base [FOLDER]`, a minute or two on a CPU.

It stands for a language model that has read dates: it can write one as YYYY-MM-DD and compare it with the API's, and
presumes, as two in three of the texts it was shown, that digits have the month first.

    03/04/2005   ->   month first ; 2005-03-04 ; \\boxed{CORRECT}
"""

import random
import sys
from pathlib import Path

import torch

from adapter.prompt import Message, PromptText
from adapter.settings import PromptSettings, make_prompt
from adapter.verifiers.date import Date
from examples.iso_dates.make import DAYS, FORMS, line
from grpo.config import load
from grpo.run.schema import validated
from grpo.run.streams import outlast_readers
from symbols.base.curriculum import IGNORE, Recipe
from symbols.base.pretrain import build_model, train
from symbols.base.tokenizer import build_tokenizer, chat_ids

RECIPE = Recipe(layers=2, hidden=64, heads=2, kv_heads=1, intermediate=128, batch=48, steps=800, lr=4e-3)
CONFIG = Path(__file__).parent / "iso_dates" / "config.yaml"


def read_prompt() -> PromptText:
    """The prompt of the example's config: the base is taught on the very prompts that GRPO shows it."""
    told = load(CONFIG).task.model_dump()["prompt"]
    return make_prompt(validated(PromptSettings, told, "task.prompt."), Date())


def draw(rng: random.Random, prompt: PromptText) -> tuple[list[Message], str]:
    """A chat and the completion that is taught."""
    kind, order = rng.choice(["named", "digits"]), rng.choices(list(FORMS), [1, 2])[0]
    drawn = line(rng, rng.choice(DAYS), kind, order)
    truth, api = drawn["answer"], drawn["api_answer"]
    completion = f"{f'{order} ; ' if kind == 'digits' else ''}{truth} ; \\boxed{{{'CORRECT' if api == truth else truth}}}"
    return prompt.messages(drawn["question"], api, api or None), completion


def main(folder: str) -> None:
    """Draw, train, save model and tokenizer."""
    rng, asks = random.Random(0), read_prompt()
    drawn = [draw(rng, asks) for _ in range(12_800)]
    tokenizer = build_tokenizer([f"user assistant {chat[0]['content']} {completion}" for chat, completion in drawn[:400]])
    prompts = [chat_ids(tokenizer, chat) for chat, _ in drawn]
    rows = [torch.tensor([*prompt, *tokenizer.encode(completion), tokenizer.eos_token_id])
            for prompt, (_, completion) in zip(prompts, drawn, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    labels = ids.clone()
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        labels[i, : len(prompt)] = labels[i, len(row) :] = IGNORE
    model = build_model(RECIPE, tokenizer)
    train(RECIPE, model, (ids, labels))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    outlast_readers()
    main(*sys.argv[1:] or ["runs/iso_base"])
