"""The adapter in vLLM's asynchronous engine, which has a process of its own: many callers, one LoRA, swapped while serving.

The engine's process may die. Then `up` is False, what was asked of it fails with EngineDown, and it is started again, after
1, 2, 4, ... 60 s. With adapter/serve/worker.py the only file of adapter/ that touches vLLM.
"""

import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine has a process anyway: no further one within it
os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # nothing of the gateway, its threads least of all, is inherited
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads of the engine leave the cores to the gateway,
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) - 1)))  # which has one to itself
os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # vLLM's own, in the engine's process
os.environ["VLLM_USE_MODELSCOPE"] = "0"
os.environ.pop("VLLM_PORT", None)  # see grpo/sampler.py

import asyncio
import logging
import tempfile
import time
import uuid
import warnings
from contextlib import suppress
from pathlib import Path

warnings.filterwarnings("ignore", message=".*torch.distributed.reduce_op.*")
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # it warns that a CPU has no Triton

from safetensors import SafetensorError
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from adapter.confidence import Calibration, calibration_of
from adapter.model import LONGEST_PROMPT
from adapter.serve.gate import EngineDown, TooLong, Written
from adapter.trained import TrainedAdapter
from grpo.guards.parity import SyncError
from grpo.policy import WEIGHTS
from grpo.run.engine_faults import why_not
from grpo.speed.engine import LORA_A, LORA_B, arguments, digest, lora_pairs, prepare_cpu, start_lightly
from grpo.types import Problem, UserError

WORKER = "adapter.serve.worker.LoraWorker"  # vLLM imports it, in the engine's process
LORA_ID = 1
LOG = logging.getLogger(__name__)
LOOK_S = 0.2  # between two looks at whether the engine is alive
LONGEST_PAUSE_S = 60.0  # before it is started again
EMPTYING_S = 5.0  # for the engine to let go of its prefix cache


class Engine:
    """`adapter` and `calibration` are what is served, read at one time; `calibration` has the threshold to go by.

    `refused`, who asks for a reload says why it took no other LoRA; "" where it did.
    """

    def __init__(self, run: Path, threshold: str | None = None):
        """Read the run. threshold: that its overrides have to reach, a number or "auto", as calibration_of takes it.

        Raises UserError as TrainedAdapter and calibration_of do. `start` starts vLLM.
        """
        self._link, self._threshold, self.refused = run, threshold, ""
        self.adapter, self.calibration = self._read()
        config, added = self.adapter.config, self.adapter.tokenizer.added_tokens_decoder.values()
        self.markers = frozenset(token.content for token in added if token.special and token.content.strip())
        self._longest = min(self.adapter.max_tokens - config.rollout.max_new_tokens, LONGEST_PROMPT)
        self._params = {calibrated: SamplingParams(  # nothing but a confidence needs log-probs, and they cost time
            temperature=0.0, max_tokens=config.rollout.max_new_tokens, stop_token_ids=self.adapter.stop_ids,
            logprobs=0 if calibrated else None, flat_logprobs=calibrated, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY) for calibrated in (False, True)}
        self._llm: AsyncLLM | None = None
        self._keeper: asyncio.Task | None = None
        self._beginning: asyncio.Task | None = None
        self._running, self._idle = 0, asyncio.Event()
        self._open, self._reloading = asyncio.Lock(), asyncio.Lock()  # the first is held while the LoRA changes
        self.swaps, self.starts = 0, 0

    @property
    def up(self) -> bool:
        """Whether it answers."""
        return self._llm is not None and not self._llm.errored

    @property
    def step(self) -> int:
        """Of the LoRA that answers."""
        return self.adapter.step

    async def start(self) -> None:
        """Start vLLM, and keep it running from now on. Raises UserError where it does not start, SyncError where it does not
        take the LoRA."""
        await self._begin()
        self._keeper = asyncio.create_task(self._keep())

    async def complete(self, problem: Problem) -> Written:
        """The most probable completion. One that is cancelled takes no more of the engine's time.

        Raises EngineDown, TooLong, or UserError where the chat template refuses the messages.
        """
        prompt = self.adapter.encode(problem)
        if len(prompt.token_ids) > self._longest:
            raise TooLong(f"{len(prompt.token_ids)} tokens")
        async with self._open:
            if not self.up:
                raise EngineDown
            llm, step, calibration, self._running = self._llm, self.step, self.calibration, self._running + 1
            inputs = tokens_input(list(prompt.token_ids), cache_salt=f"lora {self.swaps}")
        params = self._params[calibration is not None]
        try:
            async for output in llm.generate(inputs, params, uuid.uuid4().hex, lora_request=self._request):
                (completion,) = output.outputs
        except EngineDeadError:
            raise EngineDown from None
        finally:
            self._running -= 1
            self._idle.set()
        ids = tuple(completion.token_ids)
        logp = () if calibration is None else tuple(completion.logprobs.logprobs)
        return Written(self.adapter.decode(ids), logp, step, calibration)

    async def reload(self) -> int:
        """Serve the LoRA that the run keeps by now, by its own calibration; its step. What is in flight ends under the one
        it began with, what comes meanwhile waits.

        Raises UserError where the gateway could not be started with that LoRA, or has to be, and the LoRA before goes on
        being served; EngineDown; SyncError.
        """
        async with self._reloading:
            fresh = await asyncio.to_thread(self._read)
            _check_takes(fresh[0], self.adapter, self._link)
            await self._swap(*fresh)
            return self.step

    def _read(self) -> tuple[TrainedAdapter, Calibration | None]:
        run = self._link.resolve() if self._link.is_symlink() else self._link  # once: it may lead elsewhere in a moment
        adapter = TrainedAdapter(run)
        return adapter, calibration_of(run, adapter.step, self._threshold)

    async def _swap(self, adapter: TrainedAdapter, calibration: Calibration | None) -> None:
        async with self._open:
            if not self.up:
                raise EngineDown
            while self._running:
                self._idle.clear()
                await self._idle.wait()
            self.adapter, self.calibration = adapter, calibration
            try:
                await self._place(self._llm)
            except SyncError:
                await asyncio.to_thread(self._llm.shutdown)  # it serves neither: the keeper starts anew
                raise
            except EngineDeadError:
                raise EngineDown from None

    async def close(self) -> None:
        """Stop vLLM."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper, *([self._beginning] if self._beginning else [])})
        if self.up:
            with suppress(EngineDeadError):
                await self._llm.collective_rpc("let_go")
        if self._llm is not None:
            await asyncio.to_thread(self._llm.shutdown)

    async def _keep(self) -> None:
        """Start the engine again whenever it died."""
        pause = 1.0
        while True:
            await asyncio.sleep(LOOK_S)
            if self.up:
                continue
            LOG.error("the adapter's engine is down; it is started again in %.0f s", pause)
            await asyncio.sleep(pause)
            self._beginning = asyncio.create_task(self._begin())
            await asyncio.wait({self._beginning})
            if error := self._beginning.exception():
                LOG.error("the adapter's engine does not start: %s", " ".join(str(error).split())[:300])
            pause = min(2 * pause, LONGEST_PAUSE_S) if error else 1.0

    async def _begin(self) -> None:
        if self._llm is not None:
            await asyncio.to_thread(self._llm.shutdown)
        llm = await asyncio.to_thread(self._make)
        with tempfile.TemporaryDirectory() as folder:
            self.adapter.save(Path(folder))
            self._request = LoRARequest("policy", LORA_ID, folder)
            await llm.add_lora(self._request)
        try:
            await self._place(llm)
        except SyncError:
            await asyncio.to_thread(llm.shutdown)
            raise
        self._llm, self.starts = llm, self.starts + 1

    def _make(self) -> AsyncLLM:
        adapter, on_gpu = self.adapter, self.adapter.device.type == "cuda"
        start_lightly()
        if not on_gpu:
            prepare_cpu(adapter.config)
        told = arguments(adapter.path, adapter.dtype, adapter.config, self._longest + adapter.config.rollout.max_new_tokens,
                         on_gpu)
        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**told, worker_cls=WORKER))
        except (ValueError, RuntimeError, AssertionError, TimeoutError, SafetensorError) as error:  # it has no own types
            raise why_not(error, adapter.path, adapter.config, on_gpu) or UserError(
                f"vLLM does not start ({' '.join(str(error).split())[:200]}); its own lines above say why") from None

    async def _place(self, llm: AsyncLLM) -> None:
        """Put the adapter's LoRA into the engine, and prove that it is there. Raises SyncError."""
        adapter, self.swaps = self.adapter, self.swaps + 1
        with tempfile.TemporaryDirectory() as folder:
            adapter.save(Path(folder))
            file = str(Path(folder) / WEIGHTS)
            ((placed, found),) = await llm.collective_rpc("place", args=(LORA_ID, file, adapter.scale))
        wanted = {}
        for name, (a, b) in lora_pairs(adapter.lora(), adapter.scale).items():
            wanted |= {LORA_A.format(name): digest(a.to(adapter.dtype)), LORA_B.format(name): digest(b.to(adapter.dtype))}
        if placed != len(wanted) or found != wanted:
            raise SyncError(f"vLLM does not hold the LoRA that it was given: {placed} of {len(wanted)} tensors found a place"
                            f", {sum(found.get(name) == value for name, value in wanted.items())} are as they were given")
        until = time.monotonic() + EMPTYING_S
        while not await llm.reset_prefix_cache():
            if time.monotonic() > until:
                raise SyncError("vLLM kept its prefix cache across a LoRA swap")
            await asyncio.sleep(0.02)


def _check_takes(fresh: TrainedAdapter, served: TrainedAdapter, run: Path) -> None:
    """Raises UserError where a LoRA cannot take the place of the one that is served without a new start."""
    forms = [(one.path, one.dtype, one.shapes, one.scale, one.config.rollout.max_new_tokens) for one in (fresh, served)]
    if forms[0] != forms[1]:
        raise UserError(f"{run}: another base, form of LoRA or rollout.max_new_tokens than what is served; start the "
                        "gateway again")
    new, old = ({"target": one.task_class, **one.task_class.asks(one.settings)} for one in (fresh, served))
    if other := [key for key in new.keys() | old.keys() if new.get(key) != old.get(key)]:
        raise UserError(f"{run}: another prompt or verifier than what is served: task.{min(other)} differs; start the "
                        "gateway again")
