"""This process's place among those that `torchrun` started.

torchrun says it in variables, which would send vLLM's own process group of one to torchrun's server, there to wait for ever.
They are read once, and taken out of the environment, before vLLM starts.
"""

import os
from pathlib import Path

from grpo.ranks.ranks import ALONE, PATIENCE, Joined, Ranks, lost
from grpo.types import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
             "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")
NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_MAX_RESTARTS")
CURE = "start several processes with torchrun; for one alone unset WORLD_SIZE"


def join() -> Ranks:
    """This process's place, from torchrun's variables, which are taken out of the environment; ALONE without them.

    On machines with GPUs a rank sees one alone. Where there are more ranks than GPUs, several share one. Raises UserError
    where the variables are not as torchrun sets them, RankLostError where the others are not met, RuntimeError where PyTorch
    has started CUDA, which importing bitsandbytes or vLLM does: it is too late to choose a GPU then.
    """
    if "WORLD_SIZE" not in os.environ:
        return ALONE
    _check_numbers()
    import torch

    if torch.cuda.is_initialized():
        raise RuntimeError("join() must come before what starts CUDA: this rank's GPU can no longer be chosen")
    store, rank, size = None, 0, 1
    if int(os.environ["WORLD_SIZE"]) > 1:
        import torch.distributed as dist

        try:
            store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
        except ValueError as error:  # one that is not set
            raise UserError(f"WORLD_SIZE = {os.environ['WORLD_SIZE']} in the environment: {error}; {CURE}") from None
        except RuntimeError as error:
            raise lost(error) from None
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # it remembers the attempt before
            store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0
    here, beside = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    for name in VARIABLES:
        os.environ.pop(name, None)
    if here:  # two engines that compile the same would write the same files
        os.environ["VLLM_CACHE_ROOT"] = f"{os.environ.get('VLLM_CACHE_ROOT', Path.home() / '.cache' / 'vllm')}/rank{here}"
    if gpus := _gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[here % len(gpus)]
    if store:
        return Joined(store, rank, size, here, beside, len(gpus), restarts)
    return Ranks(restarts)


def _check_numbers() -> None:
    """Clusters and shells set some of them too."""
    for name in NUMBERS:
        if not (value := os.environ.get(name, "0")).isdecimal():
            raise UserError(f"{name} = {value[:40]!r} in the environment: expected a number; {CURE}")


def _gpus() -> list[str]:
    """The GPUs that this process may see, by the names CUDA_VISIBLE_DEVICES takes."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(torch.cuda.device_count())) if named is None else named.split(",")
    return [name for name in names if name and not name.startswith("-")]
