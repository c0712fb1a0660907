"""vLLM, in this process: with grpo/speed/engine.py the only file of grpo/ that touches it, its private parts included.

Three facts about vLLM decide how the LoRA is served while it changes every step.

    No API takes LoRA tensors. A LoRA is registered once from disk; each step then writes its numbers straight into
    the buffers the kernels read (`set_lora` copies, so CUDA graphs stay valid), and counts what it placed: a wrong
    name would otherwise leave the base model serving, without an error.
    The prefix cache is not keyed by LoRA weights. Old keys and values would be reused, silently, so the cache is
    reset after a swap, and every swap salts it anew, which makes a hit across swaps impossible.
    Completion i of a request uses seed + i. Seeds are spread over 62 bits, of which a CPU's generator, mt19937, takes the
    lower 32: there a step of 16 x 64 has two prompts whose seeds meet once in 280,000 steps, on a GPU never.
"""

import gc
import logging
import os
import warnings

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read at import: keeps the engine in this process
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["VLLM_USE_MODELSCOPE"] = "0"  # model.path is a directory or in Hugging Face's cache: ModelScope is not asked
os.environ.pop("VLLM_PORT", None)  # Kubernetes writes an address there if a service is named vllm; this engine needs none
warnings.filterwarnings("ignore", message=".*torch.distributed.reduce_op.*")
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # it warns that a CPU has no Triton

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

from grpo.chat import Chat
from grpo.config import Config
from grpo.guards.parity import SyncError
from grpo.run.engine_faults import why_not
from grpo.run.identity import fingerprint
from grpo.speed.engine import (
    LORA_A,
    arguments,
    as_they_end,
    held_lora,
    layer_outputs,
    place_lora,
    prepare_cpu,
    start_lightly,
    two_products_a_layer_cpu,
    two_products_a_layer_gpu,
)
from grpo.speed.engine import lora_pairs as _pairs
from grpo.speed.shared_base import EngineWeights
from grpo.types import Prompt, Sample, UserError


class Served(Protocol):
    """What the engine needs of a policy: its LoRA."""

    scale: float  # alpha / r
    lora: Callable[[], dict[str, torch.Tensor]]  # by PEFT's names, float32
    save: Callable[[Path], None]  # in PEFT's format


class Sampler:
    """One engine, one LoRA slot."""

    _running, _ended = 0, []  # how many engines of this process are in use, and those that are not

    def __init__(self, chat: Chat, config: Config, context: int):
        """Start vLLM on the base of `chat`, for prompts with completions of up to `context` tokens. `serve` gives it a LoRA.

        Raises UserError where vLLM is not for the device or does not find the memory, or as `check_environment` does.
        """
        if current_platform.device_type != chat.device.type:
            raise UserError(f"model.device: the policy is on the {chat.device.type}, and the installed vLLM is for "
                            f"{current_platform.device_type or 'no device found here'}; run `make setup` on this machine")
        self._chat, self._rollout = chat, config.rollout
        on_gpu = chat.device.type == "cuda"
        start_lightly()
        if on_gpu:
            two_products_a_layer_gpu()
        else:
            prepare_cpu(config)
        try:
            self._llm = LLM(**arguments(chat.path, chat.dtype, config, context, on_gpu))
        except (ValueError, RuntimeError, AssertionError, SafetensorError) as error:  # vLLM has no types of its own
            if told := why_not(error, chat.path, config, on_gpu):
                raise told from None
            raise
        Sampler._running += 1
        if not on_gpu:
            self._llm.apply_model(two_products_a_layer_cpu)

    def serve(self, policy: Served) -> None:
        """Register the policy's LoRA, and sample from the policy from now on. Once an engine."""
        self._policy, self._swaps = policy, 0
        with tempfile.TemporaryDirectory() as folder:
            policy.save(Path(folder))
            self._request = LoRARequest("policy", 1, folder)
            self._llm.llm_engine.add_lora(self._request)
        self.swap_lora(policy.lora())

    def swap_lora(self, lora: dict[str, torch.Tensor]) -> None:
        """Serve these LoRA tensors (PEFT's names, float32) from now on. Raises SyncError if any finds no place."""
        pairs = _pairs(lora, self._policy.scale)
        (placed,) = self._llm.apply_model(lambda model: place_lora(model, self._request.lora_int_id, pairs))
        if placed != len(lora):
            raise SyncError(f"vLLM took {placed} of the LoRA's {len(lora)} tensors; the names do not match its layers")
        if not self._llm.reset_prefix_cache():
            raise SyncError("vLLM kept its prefix cache across a LoRA swap, though no request was running")
        self._swaps += 1

    def sample(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], group_size: int, max_tokens: int | None = None
    ) -> list[list[Sample]]:
        """G completions for each prompt, and the log-probability of each token under the sampled distribution.

        What is sampled depends on the policy, the prompts and their seeds (< 2^62), not on what ran before. Completions
        have `rollout.max_new_tokens` at most, or `max_tokens` where that is less.
        """
        return self._generate(prompts, [self._params(group_size, seed, max_tokens) for seed in seeds])

    def as_they_end(self, prompts: Sequence[Prompt], seeds: Sequence[int], size: int) -> Iterator[tuple[int, int, Sample]]:
        """The same, each completion as soon as it has ended: its prompt's place, its own in the group of `size`, itself."""
        params = [self._params(size, seed) for seed in seeds]
        requests = self._llm.enqueue(self._inputs(prompts), params, self._request, use_tqdm=False)
        for place, index, completion in as_they_end(self._llm, requests):
            yield place, index, _sample(completion)

    def greedy(self, prompts: Sequence[Prompt]) -> list[Sample]:
        """The most probable completion of each prompt, token by token."""
        return [samples[0] for samples in self._generate(prompts, [self._params()] * len(prompts))]

    def served_lora(self) -> dict[str, torch.Tensor]:
        """What the engine's LoRA buffers hold now, by PEFT's names: A, and B alpha/r, in the engine's dtype."""
        pairs = _pairs(self._policy.lora(), self._policy.scale)
        return self._llm.apply_model(lambda model: held_lora(model, self._request.lora_int_id, pairs))[0]

    @torch.no_grad()
    def module_outputs(self, inputs: Mapping[int, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What each layer of the engine that has a LoRA makes of `inputs[width]`, rows x width: rows x its own width.

        By the name of the layer's A. This is the layer alone, called by hand.
        """
        pairs = _pairs(self._policy.lora(), self._policy.scale)
        widths = {name: a.shape[1] for name, (a, _) in pairs.items()}
        outputs = self._llm.apply_model(lambda model: layer_outputs(model, widths, inputs))
        return {LORA_A.format(name): output for name, output in outputs[0].items()}

    def weights(self) -> EngineWeights | None:
        """The engine's base weights, to be shared. None on a CPU, where vLLM repacks them."""
        if self._chat.device.type == "cpu":
            return None
        return self._llm.apply_model(lambda model: EngineWeights(
            dict(model.named_parameters()), getattr(model, "packed_modules_mapping", {})))[0]

    def fingerprint(self) -> str:
        """Of the engine's base weights, as they are in memory now; comparable with the same engine's alone.

        On a CPU, vLLM repacks linear layers out of reach, and the embeddings and norms are what is hashed.
        """
        return self._llm.apply_model(lambda model: fingerprint(model.named_parameters()))[0]

    def memory(self) -> tuple[int, int]:
        """Bytes of the engine's weights, and of its KV cache."""
        (weights,) = self._llm.apply_model(lambda model: sum(p.nbytes for p in model.parameters()))
        (cache,) = self._llm.collective_rpc(lambda worker: sum(t.nbytes for t in worker.model_runner.kv_caches))
        return weights, cache

    def close(self) -> None:
        """End the use of the engine. It is stopped, and its memory is free, once all of this process are ended.

        vLLM's engines share a process group, which the first that stops takes with it.
        """
        Sampler._running -= 1
        self._ended.append(self._llm)
        del self._llm
        if not Sampler._running:
            while self._ended:
                self._ended.pop().llm_engine.engine_core.shutdown()
            gc.collect()
            cleanup_dist_env_and_memory()

    def _params(self, n: int = 1, seed: int | None = None, max_tokens: int | None = None) -> SamplingParams:
        """Of a request; without a seed it is greedy."""
        most = self._rollout.max_new_tokens
        return SamplingParams(
            n=n, seed=seed, temperature=0.0 if seed is None else self._rollout.temperature, top_p=1.0, top_k=0,
            max_tokens=min(most, max_tokens or most), stop_token_ids=self._chat.stop_ids, logprobs=0, flat_logprobs=True,
            detokenize=False)

    def _salt(self) -> str:
        """Part of every key of the prefix cache: prompts computed under another LoRA are never found."""
        return f"lora {self._swaps}"

    def _inputs(self, prompts: Sequence[Prompt]) -> list[dict[str, object]]:
        return [{"prompt_token_ids": list(p.token_ids), "cache_salt": self._salt()} for p in prompts]

    def _generate(self, prompts: Sequence[Prompt], params: list[SamplingParams]) -> list[list[Sample]]:
        outputs = self._llm.generate(self._inputs(prompts), params, lora_request=self._request, use_tqdm=False)
        return [[_sample(c) for c in sorted(out.outputs, key=lambda c: c.index)] for out in outputs]


def _sample(completion) -> Sample:
    return Sample(tuple(completion.token_ids), tuple(completion.logprobs.logprobs), completion.finish_reason)

