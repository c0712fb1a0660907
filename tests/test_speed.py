"""What speed/ does is what plainer code does: attention over shared prompts, the LM head in chunks, views of weights."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from benchmarks import random_base
from benchmarks.speed import seconds, table
from grpo.batch import MicroBatch
from grpo.policy import Policy
from grpo.speed import attention, padded
from grpo.speed.attention import Layout, _attend
from grpo.speed.engine import _side_by_side
from grpo.speed.engine import settings as engine_settings
from grpo.speed.head import head_logp
from grpo.speed.shared_base import CannotShareError, EngineWeights, base_views, shared_base
from tests.conftest import TINY, group_of, tiny_config, tiny_policy

MODEL = str(TINY.parents[1] / "models" / "tiny")


def seen(prompts: list[int], rows: list[list[int]], window: int = 0) -> torch.Tensor:
    """Which of the packed tokens each sees, written out: its prompt, and its own before it, as far as the window reaches."""
    owner = [(p, None, place) for p, length in enumerate(prompts) for place in range(length)]
    owner += [(p, b, prompts[p] + place) for p, lengths in enumerate(rows) for b, length in enumerate(lengths)
              for place in range(length)]
    return torch.tensor([[theirs[0] == mine[0] and theirs[1] in (None, mine[1]) and before <= at
                          and (not window or mine[2] - theirs[2] < window)
                          for before, theirs in enumerate(owner)] for at, mine in enumerate(owner)])


def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, cap: float,
                sinks: torch.Tensor | None) -> torch.Tensor:
    """Attention as its definition says it: scores, cap, mask, one softmax with the sink in it."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores_HNN = torch.einsum("ihd,jhd->hij", q, k) * 0.4
    scores_HNN = cap * torch.tanh(scores_HNN / cap) if cap else scores_HNN
    scores_HNN = scores_HNN.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores_HNN = torch.cat([scores_HNN, sinks[:, None, None].expand(-1, len(q), 1)], -1)
    return torch.einsum("hij,jhd->ihd", scores_HNN.softmax(-1)[..., :len(q)], v)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4)), min_size=1, max_size=3),
       st.sampled_from([(4, 4), (6, 2), (3, 1)]), st.integers(0, 9), st.sampled_from([padded.SCORES, 60, 1]),
       st.sampled_from([0, 1, 2, 3, 6, 9, 40]), st.sampled_from([0.0, 0.8]), st.booleans())
def test_attention_equals_the_masked_one(shape, heads, seed, scores, window, cap, sink):
    prompts, rows = [length for length, _ in shape], [lengths for _, lengths in shape]
    layout = Layout.of(prompts, [sum(lengths) for lengths in rows], [n for lengths in rows for n in lengths],
                       torch.device("cpu"))
    mask, (q_heads, kv_heads) = seen(prompts, rows, window), heads
    torch.manual_seed(seed)
    q, k, v = (torch.randn(len(mask), n, 8, dtype=torch.float64, requires_grad=True) for n in (q_heads, kv_heads, kv_heads))
    sinks = torch.randn(q_heads, dtype=torch.float64) if sink else None
    plain = written_out(q, k, v, mask, cap, sinks)
    upstream = torch.randn_like(plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(padded, "SCORES", scores)
        ours, _ = _attend(q, k, v, *layout, 0.4, window, cap, sinks)
        gradients = torch.autograd.grad(ours, (q, k, v), upstream)
    torch.testing.assert_close(ours, plain, atol=1e-12, rtol=1e-12)
    for got, wanted in zip(gradients, torch.autograd.grad(plain, (q, k, v), upstream), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-12)


def test_a_block_holds_so_many_scores_by_hand(monkeypatch):
    monkeypatch.setattr(padded, "SCORES", 60)
    blocks = [*padded.blocks([2, 3, 4], [5, 5, 5], 2, causal=False)]  # of two heads; 2 x 2 x 3 x 5 = 60 are held
    assert blocks == [(0, [2, 3], 0, [5, 5]), (5, [4], 10, [5])]
    blocks = [*padded.blocks([4, 1], [40, 1], 2, causal=True)]  # not one query's 80: a query at a time
    assert blocks == [*((at, [1], 0, [at + 1]) for at in range(4)), (4, [1], 40, [1])]


@pytest.mark.parametrize(("dtype", "each"), [(torch.bfloat16, 4), (torch.float32, 4), (torch.float64, 8)])
def test_what_scores_take_by_hand(dtype, each):
    like = torch.empty(0, dtype=dtype)  # two rows, padded: 2 heads x 2 x 3 x 3 = 36; 5 by 3 of the prompt are 2 x 5 x 3
    assert attention.scores_bytes([3], [5], [2, 3], 2, like) == 3 * each * 36
    assert attention.scores_bytes([9], [5], [2, 3], 2, like) == 3 * each * 2 * 9 * 9
    assert attention.scores_bytes([4], [15], [7, 8], 1, like) == 3 * each * 2 * 8 * 8
    assert attention.scores_bytes([20], [21], [1] * 21, 1, like) == 3 * each * 21 * 20


def test_attention_is_a_well_made_operator():
    """What torch.compile is told of it (shapes, strides, no aliasing) is what it does."""
    layout = Layout.of([3, 2], [4, 3], [1, 3, 3], torch.device("cpu"))
    q, k, v = (torch.randn(n, 12, 8).transpose(0, 1).requires_grad_() for n in (4, 2, 2))  # strided as the model gives them
    for form in ((0, 0.0, None), (2, 0.8, torch.randn(4))):
        torch.library.opcheck(_attend, (q, k, v, *layout, 0.4, *form))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention's kernels need an NVIDIA GPU")
def test_flash_attention_equals_the_formulas():
    layout = Layout.of([300, 170], [500, 260], [100, 250, 150, 200, 60], torch.device("cuda"))
    torch.manual_seed(0)
    given = [torch.randn(1230, n, 128, device="cuda", dtype=torch.bfloat16) for n in (32, 8, 8)]
    upstream, found = torch.randn_like(given[0]), {}
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [x.to(dtype).requires_grad_() for x in given]
        out, lse = _attend(*inputs, *layout, 0.088, 0, 0.0, None)
        found[dtype] = [out, lse, *torch.autograd.grad(out, inputs, upstream.to(dtype))]
    for flash, plain in zip(*found.values(), strict=True):
        assert (flash.float() - plain).norm() < 0.005 * plain.norm()


@pytest.mark.parametrize("cap", [0.0, 1.5])
def test_head_logp_is_exact_and_keeps_no_logits(cap):
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(10, 6, dtype=torch.float64), torch.randn(30, 6).double(), torch.randn(30).double()
    targets = torch.randint(30, (10,))
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    logp, entropy = head_logp(ours, weight, bias, targets, 0.7, 4, cap)
    logits = F.linear(theirs, weight, bias)
    logits = (cap * torch.tanh(logits / cap) if cap else logits) / 0.7
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(logp.double(), expected.gather(1, targets[:, None])[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy.double(), torch.distributions.Categorical(logits=logits).entropy(), atol=1e-5, rtol=0)
    grad = torch.randn(10)
    (logp * grad).sum().backward()
    (expected.gather(1, targets[:, None])[:, 0] * grad).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=0)


def engine_of(policy: Policy) -> EngineWeights:
    """Weights in vLLM's layout: q, k, v and gate, up fused, linear layers wrapped, the vocabulary padded."""
    own = {name.removeprefix("base_model.model.").replace(".base_layer", ""): p.detach()
           for name, p in policy.model.named_parameters() if not p.requires_grad}
    fused, tensors = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}, {}
    for name, tensor in own.items():
        parent, module, kind = name.rsplit(".", 2)
        into = next((f for f, parts in fused.items() if module in parts), None)
        if into is None:
            tensors[f"{parent}.{module}.base_layer.{kind}" if "proj" in module else name] = tensor.clone()
        elif module == fused[into][0]:
            parts = [own[f"{parent}.{part}.{kind}"] for part in fused[into]]
            tensors[f"{parent}.{into}.base_layer.{kind}"] = torch.cat(parts)
    table = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = torch.cat([table, table.new_zeros(31, table.shape[1])])
    return EngineWeights(tensors, fused)


def test_the_base_is_a_view_of_the_engines_weights():
    config = tiny_config(f"model.path={MODEL}")
    own = tiny_policy(tiny_config())
    engine = engine_of(own)
    shared = Policy(config.model, config.lora, torch.device("cpu"), config.run.seed, engine)
    assert (shared.shares_base, own.shares_base) == (True, False)
    assert "in memory once" in shared.held
    assert "a copy beside vLLM's: on a CPU vLLM repacks it" in own.held
    storages = {t.untyped_storage().data_ptr() for t in engine.tensors.values()}
    frozen = [p for p in shared.model.parameters() if not p.requires_grad]
    assert {p.untyped_storage().data_ptr() for p in frozen} == storages
    assert shared.fingerprint() == own.fingerprint()
    batch = MicroBatch.of([group_of([5, 9, 33], [[40, 41, 2], [43, 2]])], [(0, 0), (0, 1)], own.device)
    inputs = {"input_ids": batch.tokens_N[None], "position_ids": batch.positions_N[None], "layout": batch.layout}
    assert torch.equal(shared.decoder(**inputs).last_hidden_state, own.decoder(**inputs).last_hidden_state)
    assert all(torch.equal(a, b) for a, b in zip(shared.lora().values(), own.lora().values(), strict=True))


def test_a_layout_that_is_not_known_is_copied_and_said():
    config = tiny_config(f"model.path={MODEL}")
    engine = engine_of(tiny_policy(tiny_config()))
    name = "model.layers.2.self_attn.qkv_proj.base_layer.weight"
    for broken in (engine.tensors[name][:-1], torch.zeros(0)):
        policy = Policy(config.model, config.lora, torch.device("cpu"), 0, engine._replace(
            tensors={**engine.tensors, name: broken}))
        assert not policy.shares_base
        assert "a copy beside vLLM's: vLLM has no model.layers.2.self_attn." in policy.held
    with pytest.raises(CannotShareError, match=r"in torch\.bfloat16"):
        shared_base(MODEL, torch.bfloat16, engine)


def test_rows_of_fused_weights_by_hand():
    fused = torch.arange(12.0).view(6, 2)
    rows = {"q": 3, "k": 1, "v": 2}
    views = base_views({f"a.{name}.weight": torch.Size([count, 2]) for name, count in rows.items()},
                       EngineWeights({"a.qkv.weight": fused}, {"qkv": ["q", "k", "v"]}))
    assert {name: view[:, 0].tolist() for name, view in views.items()} == {
        "a.q.weight": [0, 2, 4], "a.k.weight": [6], "a.v.weight": [8, 10]}


def test_one_pair_of_products_is_the_loras_of_a_fused_layer():
    """q, k and v, of different widths, one of them without a LoRA: written into vLLM's buffers, read by one product pair."""
    torch.manual_seed(0)
    rank, inputs, widths = 4, 10, (6, 2, 3)

    def vllms(self, max_loras, lora_config, model_config=None):
        self.lora_a_stacked = tuple(torch.zeros(1, 1, rank, inputs) for _ in widths)
        self.lora_b_stacked = tuple(torch.zeros(1, 1, width, rank) for width in widths)

    layer = SimpleNamespace()
    _side_by_side(vllms)(layer, 1, SimpleNamespace(max_lora_rank=rank))
    x, expected = torch.randn(7, inputs), []
    for place, width in enumerate(widths):
        a, b = torch.randn(rank, inputs), torch.randn(width, rank)
        if place != 1:
            layer.lora_a_stacked[place][0, 0].copy_(a)
            layer.lora_b_stacked[place][0, 0].copy_(b)
        expected.append(x @ a.T @ b.T * (place != 1))
    torch.testing.assert_close(x @ layer.all_a.T @ layer.all_b.T, torch.cat(expected, 1))


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (5, [1, 2, 4, 5]), (64, [1, 2, 4, 8, 16, 24, 32, 48, 64]),
                                             (200, [1, 2, 4, 8, 16, 24, 32, 48, 64, 128, 192, 200])])
def test_graphs_are_captured_up_to_all_sequences(most, sizes):
    chosen = engine_settings(tiny_config(f"rollout.max_sequences={most}"), on_gpu=True)
    assert chosen["compilation_config"]["cudagraph_capture_sizes"] == sizes


@pytest.mark.parametrize("machine", ["h200", "cpu"])
def test_the_tables_are_what_was_measured(machine):
    root = TINY.parents[1]
    found = json.loads((root / "benchmarks" / "results" / f"{machine}.json").read_text())
    rows = table(found).splitlines()
    written = (root / "benchmarks" / "speed.md").read_text().splitlines()
    assert len(rows) >= 5
    assert [row for row in rows[2:] if row not in written] == []
    if machine == "h200":
        readme = (root / "README.md").read_text()
        for part in ("trl_default", "trl_best"):
            step = seconds(found[part])["step_s"]
            assert f"| {step:.1f} ({step / seconds(found['ours'])['step_s']:.1f} x) |" in readme


def test_random_weights_have_a_shape_and_its_tokenizer(tmp_path):
    random_base.main(Path(MODEL), tmp_path / "random")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "random", Path(MODEL)))
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert not any(torch.equal(ours[name], theirs[name]) for name in ours if ours[name].ndim == 2)
    assert all(t.dtype == torch.bfloat16 for t in ours.values())
    assert (tmp_path / "random" / "tokenizer.json").read_bytes() == (Path(MODEL) / "tokenizer.json").read_bytes()
