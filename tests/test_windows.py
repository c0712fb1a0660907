"""Layers that attend to a window: trained where a prompt and its completion fit it, else refused in one line."""

import shutil

import pytest
import torch
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
)

from grpo.batch import MicroBatch
from grpo.chat import Chat, encode
from grpo.logprob import score
from grpo.policy import Policy, check_base
from grpo.speed.window import window_of
from grpo.types import UserError
from grpo.update import Updater
from symbols.settings import Settings
from symbols.task import SymbolTask
from tests.conftest import ROOT, group_of, padded_logps, randomize, tiny_config, train_here

SIZES = {"vocab_size": 481, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 2,
         "pad_token_id": 0}
ALTERNATE = ["sliding_attention", "full_attention"] * 2
FAMILIES = {
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"head_dim": 32, "layer_types": ALTERNATE, "query_pre_attn_scalar": 32}),
    "olmo3": (Olmo3ForCausalLM, Olmo3Config, {"layer_types": ALTERNATE}),
    "cohere2": (Cohere2ForCausalLM, Cohere2Config, {"layer_types": ALTERNATE, "logit_scale": 0.5}),
    "mistral": (MistralForCausalLM, MistralConfig, {}),
}


def directory(folder, family: str, window: int) -> str:
    """A random model of a family, with the embedded base's tokenizer."""
    kind, config, more = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config(**SIZES, sliding_window=window, **more))
    for p in model.parameters():
        torch.nn.init.normal_(p, 0, 0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "models" / "tiny" / name, folder)
    return str(folder)


@pytest.mark.parametrize(("kind", "more", "window"), [
    (Gemma3TextConfig, {"sliding_window": 512, "layer_types": ALTERNATE}, 512),
    (Gemma3TextConfig, {"sliding_window": 512, "layer_types": ["full_attention"] * 4}, None),
    (MistralConfig, {"sliding_window": 40}, 40), (MistralConfig, {"sliding_window": None}, None),
    (Qwen3Config, {}, None), (Qwen3Config, {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}, 64)])
def test_which_window_a_config_has(kind, more, window):
    assert window_of(kind(**SIZES, **more)) == window


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_are_the_padded_passs_up_to_the_window(tmp_path, family):
    """Groups of different prompt lengths; the longest has just as many tokens as the window."""
    config = tiny_config(f"model.path={directory(tmp_path / 'm', family, window=12)}", "train.micro_batch_tokens=64")
    policy = Policy(config.model, config.lora, torch.device("cpu"), 1)
    randomize(policy, 0.3)
    groups = [group_of([5, 6, 7], [[8, 9, 2], [10, 2]]), group_of(list(range(20, 28)), [[8, 9, 11, 2], [2], [12, 13]])]
    parameters = list(policy.parameters.values())
    expected, loss = [], 0.0
    for group in groups:
        logp_BT = padded_logps(policy, group)
        for row, completion in enumerate(group.completions):
            expected.append(logp_BT[row, :len(completion.sample.token_ids)])
            loss = loss + (expected[-1] * torch.arange(1.0, 1.0 + len(expected[-1]))).sum()
    wanted = torch.autograd.grad(loss, parameters)
    rows = [(p, row) for p, group in enumerate(groups) for row in range(len(group.completions))]
    batch = MicroBatch.of(groups, rows, policy.device)
    assert batch.longest == 11  # a completion's last token is predicted, and not read
    found = score(policy.decoder, policy.head, batch, 1 / policy.logit_scale, 64)
    rows = [row[mask] for row, mask in zip(found.logp_BT, batch.mask_BT, strict=True)]
    for one, other in zip(rows, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)
    got = torch.autograd.grad(sum((row * torch.arange(1.0, 1.0 + len(row))).sum() for row in rows), parameters)
    norm = torch.cat([x.flatten() for x in wanted]).norm()
    assert torch.cat([(a - b).flatten() for a, b in zip(got, wanted, strict=True)]).norm() < 1e-5 * norm


def test_what_is_longer_than_the_window_is_refused_before_and_while_training(tmp_path):
    path = directory(tmp_path / "m", "gemma3", window=8)
    config = tiny_config(f"model.path={path}")
    chat, task = Chat(config.model, torch.device("cpu")), SymbolTask(Settings(train=2, validation=1, test=1), 1)
    assert chat.max_tokens == 8
    with pytest.raises(UserError, match="it exceeds the model's window of 8 tokens"):
        encode(chat, task, config)
    policy = Policy(config.model, config.lora, torch.device("cpu"), 1)
    with pytest.raises(UserError, match="a window of 8 tokens, and a prompt with its completion has 9"):
        Updater(policy, config).logps([group_of([5, 6, 7, 8, 9, 10], [[8, 9, 11, 2]])])


def test_a_layer_that_is_not_computed_is_named(tmp_path):
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**SIZES | {"num_hidden_layers": 4}, head_dim=32, linear_num_key_heads=2,
                                                 linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16))
    model.save_pretrained(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "models" / "tiny" / name, tmp_path / "m")
    config = tiny_config(f"model.path={tmp_path / 'm'}")
    with pytest.raises(UserError, match=r"its layer 0 is linear_attention \(qwen3_5_text\)"):
        check_base(Chat(config.model, torch.device("cpu")), config.model, config.lora)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_through_vllm(tmp_path, family):
    run = tmp_path / "run"
    done = train_here("configs/tiny.yaml", f"model.path={directory(tmp_path / 'm', family, window=256)}", f"run.dir={run}",
                      "run.steps=2", "rollout.prompts_per_step=2", "rollout.group_size=4", "rollout.max_new_tokens=8",
                      "task.train=8", "task.validation=2", "task.test=2", "eval.every=2", "checkpoint.every=2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
