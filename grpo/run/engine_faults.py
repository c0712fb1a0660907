"""Why vLLM does not start, in words that name what to change."""

from typing import TYPE_CHECKING

from safetensors import SafetensorError

from grpo.run.memory import ran_out
from grpo.types import UserError

if TYPE_CHECKING:
    from grpo.config import Config


def why_not(error: Exception, model: str, config: "Config", on_gpu: bool) -> UserError | None:
    """What vLLM's complaint at its start means for a person, and what to change. None where that is not known."""
    said, rollout = " ".join(str(error).split()), config.rollout
    if isinstance(error, SafetensorError):
        return UserError(f"model.path = {model}: weights that cannot be read ({error}); copy them anew")
    if "Cannot find any model weights" in said and set(model) & set("*?["):
        return UserError(f"model.path = {model}: vLLM takes *, ? and [ in a path for a pattern; rename the directory")
    if "Cannot find any model weights" in said:
        return UserError(f"model.path = {model}: no causal language model there (no weights in safetensors); give a Hugging "
                         "Face model directory, such as models/tiny")
    if "were not initialized from checkpoint" in said:
        return UserError(f"model.path = {model}: weights that config.json asks for are not in its safetensors files "
                         f"({said.partition('checkpoint')[2].strip(': ')[:200]}); copy the model anew")
    if "Error in memory profiling" in said:
        return UserError("another process gave memory of this GPU back while vLLM measured what is free; start again, and "
                         "processes that share a GPU one after the other")
    if "gloo" in said:
        return UserError(f"vLLM finds no network interface for its process group ({said.rpartition('] ')[2][-150:]}); bring "
                         "the loopback up (`ip link set lo up`), or correct or unset GLOO_SOCKET_IFNAME")
    if ran_out(error) or any(w in said for w in ("Free memory", "available memory", "KV cache", "cache blocks")):
        cure = (f"raise rollout.gpu_memory_share (now {rollout.gpu_memory_share}), or lower rollout.max_sequences"
                if on_gpu else f"lower rollout.cpu_kv_cache_gib (now {rollout.cpu_kv_cache_gib}), or make room")
        return UserError(f"vLLM does not fit: {said[:300]}; {cure}")
    return None
