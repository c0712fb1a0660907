"""What a model does to its logits after the head: a factor is computed, all else is refused before anything heavy starts."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    NanoChatConfig,
    NanoChatForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grpo.chat import Chat
from grpo.policy import Policy, check_base
from grpo.speed.head import logit_form
from grpo.types import UserError
from grpo.update import Updater
from tests.conftest import group_of, padded_logps, randomize, tiny_config
from tests.small_model import saved

SIZES = {"vocab_size": 481, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 256, "bos_token_id": None,
         "eos_token_id": 2, "pad_token_id": 0}


@pytest.mark.parametrize(("config", "kind", "scale"), [
    (Qwen3Config, Qwen3ForCausalLM, 1),
    (lambda **sizes: GraniteConfig(**sizes, logits_scaling=8.0), GraniteForCausalLM, 1 / 8),  # divides
    (lambda **sizes: GraniteConfig(**sizes, logits_scaling=6.0), GraniteForCausalLM, 1 / 6),
    (lambda **sizes: CohereConfig(**sizes, logit_scale=0.0625), CohereForCausalLM, 1 / 16),  # multiplies
    (lambda **sizes: CohereConfig(**sizes, logit_scale=0.0), CohereForCausalLM, None),  # no temperature says that
    (lambda **sizes: CohereConfig(**sizes, logit_scale=-1.0), CohereForCausalLM, None),
    (lambda **sizes: Gemma2Config(**sizes, final_logit_softcapping=30.0), Gemma2ForCausalLM, (1, 30)),
    (lambda **sizes: Gemma2Config(**sizes, final_logit_softcapping=1000.0), Gemma2ForCausalLM, (1, 1000)),
    (lambda **sizes: Gemma2Config(**sizes, final_logit_softcapping=None), Gemma2ForCausalLM, 1),
    (lambda **sizes: BertConfig(**sizes, is_decoder=True), BertLMHeadModel, None)])  # a layer between decoder and head
def test_what_is_done_after_the_head(config, kind, scale):
    model = kind(config(**SIZES)).eval()
    ids = torch.tensor([[3, 4, 5]])
    before = model(ids).logits
    found = logit_form(model)
    wanted = scale if isinstance(scale, tuple) else (scale, 0.0)
    assert found == (None if scale is None else pytest.approx(wanted))
    assert torch.equal(model(ids).logits, before)  # the model is as it was


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("kind", "config"), [
    (GraniteForCausalLM, lambda: GraniteConfig(**SIZES, logits_scaling=4.0)),
    (NanoChatForCausalLM, lambda: NanoChatConfig(**SIZES, final_logit_softcapping=1.5))])
def test_log_probs_are_those_of_the_whole_model(tmp_path, temperature, kind, config):
    path = saved(tmp_path / "m", kind(config()), std=0.2)
    config = tiny_config(f"model.path={path}", f"rollout.temperature={temperature}", "lora.targets=[q_proj,v_proj]")
    policy = Policy(config.model, config.lora, torch.device("cpu"), 1)
    randomize(policy, 0.1)
    group = group_of([5, 6, 7], [[8, 9, 2], [10, 2]])
    logs = Updater(policy, config).logps([group])
    expected = padded_logps(policy, group, temperature)
    torch.testing.assert_close(torch.tensor(logs[0, 0].logp), expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(logs[0, 1].logp), expected[1, :2], atol=1e-4, rtol=0)


def test_what_is_done_to_logits_besides_is_refused_by_name_without_the_weights(tmp_path):
    path = saved(tmp_path / "m", CohereForCausalLM(CohereConfig(**SIZES, logit_scale=-1.0)), std=0.2)
    save_file({}, tmp_path / "m" / "model.safetensors")
    config = tiny_config(f"model.path={path}")
    with pytest.raises(UserError, match=r"CohereForCausalLM makes logits otherwise than by its LM head and a factor or"):
        check_base(Chat(config.model, torch.device("cpu")), config.model, config.lora)
