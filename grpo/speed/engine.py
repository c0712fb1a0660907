"""What is changed in vLLM, and how it is set up, for one use: G completions of each of a few prompts, all under one LoRA.

With grpo/sampler.py the only file of grpo/ that touches vLLM; adapter/serve uses it too. vLLM's LoRA arithmetic serves many
LoRAs at once, token by token; here every token has the same one, and two plain matrix products a layer do: y += (x A^T) B^T.
The profiles that say what that is worth are in benchmarks/speed.md for a GPU and in benchmarks/cpu_rollout.md for a CPU.
"""

import functools
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from grpo.types import UserError

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.outputs import CompletionOutput

    from grpo.config import Config


Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]  # vLLM's name of a layer -> A, and B alpha/r
LORA_A, LORA_B = "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"  # PEFT's names of a layer's LoRA


def arguments(path: str, dtype: torch.dtype, config: "Config", context: int, on_gpu: bool) -> dict[str, object]:
    """LLM() arguments for the base in `path` with one LoRA, and prompts with completions of up to `context` tokens."""
    return {"model": path, "load_format": "safetensors", "skip_tokenizer_init": True,
            "dtype": str(dtype).removeprefix("torch."), "max_model_len": context, "seed": config.run.seed,
            "use_tqdm_on_load": False, "disable_log_stats": True, "max_num_seqs": config.rollout.max_sequences,
            "enable_lora": True, "max_loras": 1, "max_lora_rank": served_rank(config.lora.rank),
            "enable_prefix_caching": True, "logprobs_mode": "processed_logprobs", **settings(config, on_gpu)}


def prepare_cpu(config: "Config") -> None:
    """Environment variables that vLLM reads on a CPU, where the user has not set them. Before LLM() is made."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.rollout.cpu_kv_cache_gib))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # others use the same cores


def settings(config: "Config", on_gpu: bool) -> dict[str, object]:
    """LLM() arguments that the device decides.

    GPU: vLLM would capture CUDA graphs of 83 batch sizes, each with and without LoRA, whole and in pieces, and none above
    512 sequences. Here decoding has 24, up to all sequences: rounding 65 rows up to 128 costs a matrix product next to
    nothing; a step that reads prompts runs uncaptured. FlashAttention is told not to split a sequence's keys, which is
    meant for few, long sequences. Naming the trained layers keeps a LoRA of zeros off the logits. Mode 0: vLLM compiles
    nothing. Its own fused kernels, captured into the same graphs, decode 2 to 5 % faster than what torch.compile makes of
    the 8B shape, and 23 to 32 s of the start are saved (benchmarks/startup.md).
    """
    rollout = config.rollout
    if not on_gpu:
        return {"enforce_eager": True, "enable_chunked_prefill": False}
    most = rollout.max_sequences
    sizes = [n for n in (1, 2, 4, 8, 16, 24, 32, 48, 64, *range(128, most, 64)) if n < most] + [most]
    return {"gpu_memory_utilization": rollout.gpu_memory_share, "max_num_batched_tokens": max(24576, most),
            "compilation_config": {"mode": 0, "cudagraph_capture_sizes": sizes, "cudagraph_mode": "FULL_DECODE_ONLY"},
            "attention_config": {"flash_attn_max_num_splits_for_cuda_graph": 1},
            "lora_target_modules": list(config.lora.targets)}


def check_environment(on_gpu: bool) -> None:
    """Before LLM() is made. Raises UserError where vLLM cannot read one of its variables, or not do here what it says."""
    from vllm import envs

    for name, read in envs.environment_variables.items():
        try:
            read()
        except ValueError as error:
            raise UserError(f"{name} = {os.environ.get(name, '')[:40]!r}: vLLM cannot read this environment variable "
                            f"({' '.join(str(error).split())[:150]}); correct it, or unset it") from None
    level = os.environ["VLLM_LOGGING_LEVEL"]
    if level.upper() not in (levels := logging.getLevelNamesMapping()):
        raise UserError(f"VLLM_LOGGING_LEVEL = {level[:40]!r}: no logging level; set it to one of {', '.join(levels)}")
    if envs.VLLM_BATCH_INVARIANT and not on_gpu:
        raise UserError("VLLM_BATCH_INVARIANT: vLLM has no batch-invariant kernels for a CPU; unset it")


def as_they_end(llm: "LLM", requests: list[str]) -> Iterator[tuple[int, int, "CompletionOutput"]]:
    """Run what `LLM.enqueue` returned; of each completion its request's place, its own in it, and itself.

    vLLM hands a request's n completions over when the last has ended, and gathers them until then: that is looked at.
    """
    engine = llm.llm_engine
    gathered = [engine.output_processor.parent_requests[request].output_aggregator for request in requests]
    waiting = [(place, index) for place, found in enumerate(gathered) for index in range(len(found))]
    while waiting:
        engine.step()
        ended = [(place, index) for place, index in waiting if gathered[place][index] is not None]
        if ended:
            waiting = [(place, index) for place, index in waiting if gathered[place][index] is None]
        for place, index in ended:
            yield place, index, gathered[place][index]


def layer_outputs(
    model: torch.nn.Module, widths: Mapping[str, int], inputs: Mapping[int, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What each of a model's layers makes of `inputs[width]`, called alone; of a fused one, each part's share.

    widths: of the layers that have a LoRA, by their names, how wide their inputs are.
    """
    manager, found = model.lora_manager, {}
    for name, layer in manager.modules.items():
        parts = manager.packed_modules.get(name, [name])
        if present := [part for part in parts if part in widths]:
            output = layer(inputs[widths[present[0]]])
            output = output[0] if isinstance(output, tuple) else output  # and a bias
            shares = output.split([b.shape[2] for b in layer.lora_b_stacked], -1)
            found |= {part: share for part, share in zip(parts, shares, strict=True) if part in present}
    return found


def lora_pairs(lora: Mapping[str, torch.Tensor], scale: float) -> Pairs:
    """A LoRA by PEFT's names, as vLLM takes it. scale: alpha / r."""
    prefix, suffix = LORA_A.split("{}")
    return {name.removeprefix(prefix).removesuffix(suffix): (a, lora[name.replace("lora_A", "lora_B")] * scale)
            for name, a in lora.items() if name.endswith(suffix)}


def place_lora(model: torch.nn.Module, lora_id: int, pairs: Pairs) -> int:
    """Write a LoRA into the buffers that a loaded model's kernels read. Returns how many tensors found their place."""
    manager, placed = model.lora_manager, 0
    slot = manager.lora_index_to_id.index(lora_id)
    for name, layer in manager.modules.items():
        parts = [pairs.get(part) for part in manager.packed_modules.get(name, [name])]
        present = [pair for pair in parts if pair is not None]
        if not present:
            continue
        if name in manager.packed_modules:  # q, k, v or gate, up: one fused layer, a list of LoRAs
            layer.set_lora(slot, [p and p[0] for p in parts], [p and p[1] for p in parts])
        else:
            layer.set_lora(slot, *present[0])
        placed += 2 * len(present)
    return placed


def held_lora(model: torch.nn.Module, lora_id: int, pairs: Pairs) -> dict[str, torch.Tensor]:
    """What those buffers hold of these layers: by PEFT's names, A, and B alpha/r, in the engine's dtype."""
    manager, found = model.lora_manager, {}
    slot = manager.lora_index_to_id.index(lora_id)
    for name, layer in manager.modules.items():
        for place, part in enumerate(manager.packed_modules.get(name, [name])):
            if part in pairs:
                rank = len(pairs[part][0])
                found[LORA_A.format(part)] = layer.lora_a_stacked[place][slot, 0, :rank].clone()
                found[LORA_B.format(part)] = layer.lora_b_stacked[place][slot, 0, :, :rank].clone()
    return found


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes, in hexadecimal."""
    return hashlib.sha256(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def served_rank(rank: int) -> int:
    """The smallest buffer rank vLLM offers that holds the LoRA's."""
    return next(r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= rank)


def two_products_a_layer_cpu(model: torch.nn.Module) -> None:
    """In a loaded model, the two products in the place of a gather of A and B for every token: four fifths of a rollout."""

    def add_lora_logits(*_, **__):
        """The LM head has no LoRA."""

    def add_lora_linear(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, **_):
        flat, at = y.view(-1, y.shape[-1]), 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            flat[:, at : at + width] += (x.view(-1, x.shape[-1]) @ a[0, 0].T @ b[0, 0].T) * scale
            at += width

    for wrapper in model.lora_manager.punica_wrapper_mapping.values():
        wrapper.add_lora_linear, wrapper.add_lora_logits = add_lora_linear, add_lora_logits


def start_lightly() -> None:
    """Spare vLLM's start what is of no use here, or does harm. Before LLM() is made.

    It would import itself a second time in a process of its own, to ask the model's class what it can do without starting
    CUDA: 21 s, cold. And on a GPU it would compile kernels for top-k, top-p and the like, which no sample here needs: 16 s.
    A model that it has no code of its own for it makes of transformers' class, to which it would add what torch.compile
    needs: in place, so that the trainer could not make a model of that class any more. Here vLLM compiles nothing.
    """
    from vllm.model_executor.models import registry
    from vllm.model_executor.models.transformers.base import Base

    check_environment(torch.cuda.is_available())
    registry._run_in_subprocess = lambda ask: ask()
    Base._decorate_cls_for_torch_compile = lambda *_, **__: None
    registry._LazyRegisteredModel._save_modelinfo_to_cache = lambda *_: None  # an error of 30 lines where HOME is read-only
    if torch.cuda.is_available():
        from vllm.v1.worker import gpu_worker

        gpu_worker.warmup_kernels = lambda *_, **__: None


@functools.cache  # once a process
def two_products_a_layer_gpu() -> None:
    """The same in vLLM's classes, before LLM() is made, so that it is captured into CUDA graphs.

    A fused layer's A's lie one below the other, and its B's on the diagonal of one matrix, so that q, k and v (or gate and
    up) cost one pair of products together; vLLM's own buffers become views of them, which `set_lora` fills as before.
    Its bookkeeping of which token has which LoRA is dropped too, which makes the host wait for the GPU whenever a sequence
    has ended, and so are graphs without a LoRA.
    """
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
    from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA
    from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU
    from vllm.v1.worker.gpu import model_runner

    for kind in (BaseLinearLayerWithLoRA, MergedColumnParallelLinearWithLoRA):
        kind.create_lora_weights = _side_by_side(kind.create_lora_weights)
    BaseLinearLayerWithLoRA._apply_lora_to_output = _with_lora
    PunicaWrapperGPU.update_metadata = lambda *_, **__: None
    model_runner.get_lora_capture_cases = lambda lora, _: [lora.max_loras + 1]


def _with_lora(layer, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The output with what the LoRA makes of x. The Transformers backend has a batch of one before the tokens."""
    output.flatten(0, -2).addmm_(x.flatten(0, -2) @ layer.all_a.T, layer.all_b.T)  # of a view
    return output


def _side_by_side(create):
    def create_lora_weights(self, max_loras, lora_config, model_config=None):
        create(self, max_loras, lora_config, model_config)
        old_a, old_b = self.lora_a_stacked, self.lora_b_stacked
        rank, widths = lora_config.max_lora_rank, [b.shape[2] for b in old_b]
        self.all_a = old_a[0].new_zeros(rank * len(widths), old_a[0].shape[3])
        self.all_b = old_b[0].new_zeros(sum(widths), rank * len(widths))
        self.lora_a_stacked = tuple(rows[None, None] for rows in self.all_a.split(rank))
        self.lora_b_stacked = tuple(rows[None, None, :, i * rank : (i + 1) * rank]
                                    for i, rows in enumerate(self.all_b.split(widths)))

    return create_lora_weights
