"""Windows, sinks and soft caps: the training pass is the padded one, through transformers' own attention; so is vLLM."""

import pytest
import torch
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
)

from grpo.batch import MicroBatch
from grpo.chat import Chat
from grpo.logprob import score
from grpo.policy import Policy, check_base
from grpo.speed.attention import NAME
from grpo.speed.window import window_of
from grpo.types import Group, UserError
from grpo.update import Updater
from tests.conftest import group_of, padded_logps, randomize, tiny_config, train_here
from tests.small_model import saved

SIZES = {"vocab_size": 481, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 2,
         "pad_token_id": 0}
ALTERNATE = ["sliding_attention", "full_attention"] * 2
FAMILIES = {
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"head_dim": 32, "layer_types": ALTERNATE, "query_pre_attn_scalar": 32}),
    "olmo3": (Olmo3ForCausalLM, Olmo3Config, {"layer_types": ALTERNATE}),
    "cohere2": (Cohere2ForCausalLM, Cohere2Config, {"layer_types": ALTERNATE, "logit_scale": 0.5}),
    "mistral": (MistralForCausalLM, MistralConfig, {}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 32, "layer_types": ALTERNATE, "query_pre_attn_scalar": 32,
                                                 "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}),
    "gpt_oss": (GptOssForCausalLM, GptOssConfig, {"head_dim": 32, "layer_types": ALTERNATE, "num_local_experts": 2,
                                                  "num_experts_per_tok": 1, "rope_scaling": None}),
}


def directory(folder, family: str, window: int) -> str:
    """A random model of a family, with the embedded base's tokenizer."""
    kind, config, more = FAMILIES[family]
    torch.manual_seed(0)
    return saved(folder, kind(config(**SIZES, sliding_window=window, **more)), std=0.1)


@pytest.mark.parametrize(("kind", "more", "window"), [
    (Gemma3TextConfig, {"sliding_window": 512, "layer_types": ALTERNATE}, 512),
    (Gemma3TextConfig, {"sliding_window": 512, "layer_types": ["full_attention"] * 4}, None),
    (MistralConfig, {"sliding_window": 40}, 40), (MistralConfig, {"sliding_window": None}, None),
    (Qwen3Config, {}, None), (Qwen3Config, {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}, 64)])
def test_which_window_a_config_has(kind, more, window):
    assert window_of(kind(**SIZES, **more)) == window


def one_by_one(policy: Policy, group: Group, row: int) -> torch.Tensor:
    """The log-probs of one completion, in a pass of its own, nothing padded."""
    prompt, ids = group.prompt.token_ids, group.completions[row].sample.token_ids
    policy.decoder.set_attn_implementation("eager")
    logits = policy.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1:-1]
    policy.decoder.set_attn_implementation(NAME)
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def gradient(policy: Policy, logps: list[torch.Tensor]) -> torch.Tensor:
    """Of all of the LoRA, of a sum in which each token has a weight of its own."""
    total = sum((logp * torch.arange(1.0, 1 + len(logp))).sum() for logp in logps)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(policy.parameters.values()))]).double()


@pytest.mark.parametrize("window", [3, 6, 12, 40])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_are_the_padded_passs(tmp_path, family, window):
    """Groups of different prompt lengths; the longest prompt and completion have 12 tokens.

    In float32, as near to the padded pass in float64 as the padded pass in float32 is, or 1e-5: soft caps cost digits.
    """
    config = tiny_config(f"model.path={directory(tmp_path / 'm', family, window)}",
                         "lora.targets=[q_proj,k_proj,v_proj,o_proj]")
    policy = Policy(config.model, config.lora, torch.device("cpu"), 1)
    randomize(policy, 0.3)
    groups = [group_of([5, 6, 7], [[8, 9, 2], [10, 2]]), group_of(list(range(20, 28)), [[8, 9, 11, 2], [2], [12, 13]])]
    rows = [(p, row) for p, group in enumerate(groups) for row in range(len(group.completions))]

    batch, padded_BT = MicroBatch.of(groups, rows, policy.device), [padded_logps(policy, group) for group in groups]
    wanted = [padded_BT[p][row, :len(groups[p].completions[row].sample.token_ids)] for p, row in rows]
    scored = score(policy.decoder, policy.head, batch, 1 / policy.logit_scale, 64, policy.logit_cap)
    found = [row[mask] for row, mask in zip(scored.logp_BT, batch.mask_BT, strict=True)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)
    ours, theirs = gradient(policy, found), gradient(policy, wanted)
    if family != "gpt_oss":  # the product with its experts has no float64
        policy.model.double()
    exact = gradient(policy, [one_by_one(policy, groups[p], row) for p, row in rows])
    assert (ours - exact).norm() < max(1e-5 * exact.norm(), 1.5 * (theirs - exact).norm())


def test_a_window_is_not_attention_to_all(tmp_path):
    """Else the test above would show nothing."""
    logps = []
    for window in (3, 40):
        config = tiny_config(f"model.path={directory(tmp_path / str(window), 'gemma3', window)}")
        policy = Policy(config.model, config.lora, torch.device("cpu"), 1)
        logps.append(Updater(policy, config).logps([group_of([5, 6, 7, 8], [[8, 9, 2]])])[0, 0].logp)
    assert max(abs(a - b) for a, b in zip(*logps, strict=True)) > 0.01


def test_a_layer_that_is_not_computed_is_named(tmp_path):
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**SIZES | {"num_hidden_layers": 4}, head_dim=32, linear_num_key_heads=2,
                                                 linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16))
    config = tiny_config(f"model.path={saved(tmp_path / 'm', model)}")
    with pytest.raises(UserError, match=r"its layer 0 is linear_attention \(qwen3_5_text\)"):
        check_base(Chat(config.model, torch.device("cpu")), config.model, config.lora)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt_oss"])  # a mixture of experts
def test_two_steps_through_vllm(tmp_path, family):
    """With prompts of far more tokens than the window: vLLM's log-probs are the trainer's, or the self-test stops it."""
    run = tmp_path / "run"
    done = train_here("configs/tiny.yaml", f"model.path={directory(tmp_path / 'm', family, window=16)}", f"run.dir={run}",
                      "run.steps=2", "rollout.prompts_per_step=2", "rollout.group_size=4", "rollout.max_new_tokens=8",
                      "task.train=8", "task.validation=2", "task.test=2", "eval.every=2", "checkpoint.every=2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
