"""The policy: a frozen base model and a LoRA, the only thing that is trained.

The LoRA's numbers are float32, so that small updates are not rounded away. The forward pass sees them rounded to the
base's dtype, exactly as vLLM will: the policy that is trained is the policy that samples.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it warns of kernels unused here

import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from grpo.chat import Chat, read_from
from grpo.config import Lora, Model
from grpo.run.identity import fingerprint
from grpo.run.model_files import check_shapes, copy_tokenizer, portable_name
from grpo.speed import attention
from grpo.speed.head import logit_form
from grpo.speed.shared_base import CannotShareError, EngineWeights, empty_model, shared_base
from grpo.speed.window import COMPUTED
from grpo.types import UserError

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"  # PEFT's file names


class Policy(Chat):
    """Base, LoRA and tokenizer.

    Attributes: `decoder` and `head`, which take tokens to hidden states to logits; `logit_scale`, by which the model
    multiplies these, and `logit_cap`, their soft cap, or 0; `parameters`, the LoRA, float32, by PEFT's names;
    `shares_base`, whether the base is the engine's, and `held`, a line that says so.
    """

    def __init__(self, model: Model, lora: Lora, device: torch.device, seed: int, engine: EngineWeights | None = None):
        """Take the base, and start a LoRA with A random and B = 0: a policy equal to the base.

        The base is read from `model.path`, unless `engine` holds it on this device already, in a layout that can be shared.
        Raises UserError where the directory holds no causal LM, or has no layer of the target names, or a weight is not
        finite.
        """
        super().__init__(model, device)
        base, self.shares_base, self.held = self._base(engine)
        base.requires_grad_(False)
        self.logit_scale, self.logit_cap = _check(base, model, lora)
        for name, weight in base.named_parameters():
            if not weight.sum(dtype=torch.float32).isfinite():  # which takes no memory, and has NaN where a weight has
                raise UserError(f"model.path = {model.path}: {name} holds a number that is not finite; copy the model anew, "
                                "or give another")
        torch.manual_seed(seed)
        self.settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets),
                                   lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
        self.model = get_peft_model(base, self.settings, autocast_adapter_dtype=True).eval()
        self.scale = lora.alpha / lora.rank
        self.decoder, self.head = base.get_decoder(), base.get_output_embeddings()
        self.parameters: dict[str, nn.Parameter] = {
            name.replace(".default", ""): p for name, p in self.model.named_parameters() if p.requires_grad}
        self._rounded: dict[str, nn.Parameter] = {} if self.dtype == torch.float32 else {
            name: self._round(name, p) for name, p in self.parameters.items()}

    def _base(self, engine: EngineWeights | None) -> tuple[PreTrainedModel, bool, str]:
        """The frozen base, whether it is the engine's, and a line that says so."""
        if engine is not None:
            try:
                return shared_base(self.path, self.dtype, engine), True, "the frozen base is in memory once: it is vLLM's"
            except CannotShareError as error:
                why = str(error)
        else:
            why = "on a CPU vLLM repacks it" if self.device.type == "cpu" else "no engine lends it"
        with read_from(self.path, "causal language model"):
            base = AutoModelForCausalLM.from_pretrained(
                self.path, dtype=self.dtype, use_safetensors=True, attn_implementation=attention.NAME,
                trust_remote_code=False)
        try:
            return base.to(self.device), False, f"the frozen base is held as a copy beside vLLM's: {why}"
        except torch.OutOfMemoryError:
            raise UserError(f"a second copy of the base does not fit beside vLLM's ({why}); lower rollout.gpu_memory_share, "
                            "or give a smaller model") from None

    def _round(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        """Put a rounded copy of a parameter in its place in the model. Its gradient adds up in the parameter's own."""
        def pass_on(rounded: nn.Parameter) -> None:
            grad, rounded.grad = rounded.grad.float(), None
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)

        rounded = nn.Parameter(parameter.detach().to(self.dtype))
        rounded.register_post_accumulate_grad_hook(pass_on)
        module, _, own = name.rpartition(".")
        setattr(self.model.get_submodule(f"{module}.default"), own, rounded)
        return rounded

    @torch.no_grad()
    def round_lora(self) -> None:
        """Let the model see the parameters as they are now, in its dtype. Every training pass begins with it."""
        for name, rounded in self._rounded.items():
            rounded.copy_(self.parameters[name])

    def lora(self) -> dict[str, torch.Tensor]:
        """The LoRA's tensors by PEFT's names, float32, detached; the policy's own memory, not copies."""
        return {name: p.detach() for name, p in self.parameters.items()}

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Within it, the LoRA is off: the reference policy of the KL, with no second model."""
        with self.model.disable_adapter():
            yield

    def fingerprint(self) -> str:
        """Of the frozen base, as it is in memory now."""
        return fingerprint((name, p) for name, p in self.model.named_parameters() if not p.requires_grad)

    def export(self, folder: Path) -> None:
        """`save`, with the tokenizer, the chat template and a hash of the base: AutoPeftModelForCausalLM needs no more.

        The hash, `fingerprint`, is in adapter_config.json beside the base's class: PEFT warns of keys that it does not know.
        """
        base = self.model.get_base_model()
        self.save(folder, auto_mapping={"base_model_class": type(base).__name__, "parent_library": type(base).__module__,
                                        "base_fingerprint": self.fingerprint(), "base_dtype": str(base.dtype)})
        copy_tokenizer(self.path, folder)

    def save(self, folder: Path, **more: object) -> None:
        """Write the LoRA in PEFT's format: loads with PeftModel.from_pretrained and in vLLM. more: of its settings."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WEIGHTS).write_bytes(save({name: t.cpu().contiguous() for name, t in self.lora().items()}))
        where = {"inference_mode": True, "base_model_name_or_path": portable_name(self.path)}
        settings = self.settings.to_dict() | where | more
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
        (folder / SETTINGS).write_text(json.dumps(plain, indent=1, default=str) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, in place. Raises UserError where names or shapes are another LoRA's."""
        with safe_open(folder / WEIGHTS, "pt") as file:
            self.load_open(file, folder / WEIGHTS)

    def load_open(self, file: safe_open, path: Path, beside: str = "") -> None:
        """The same from an open file, which may hold `beside` too. Names and shapes are compared before a number is read."""
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys() if name != beside}  # noqa: SIM118 - no dict
        if shapes != {name: list(p.shape) for name, p in self.parameters.items()}:
            raise UserError(f"{path}: the LoRA of another base, rank or targets; go on with the run's own config")
        self.load_tensors({name: file.get_tensor(name) for name in shapes})

    @torch.no_grad()
    def load_tensors(self, lora: dict[str, torch.Tensor]) -> None:
        """Copy LoRA tensors, named and shaped as `lora` gives them, into the policy."""
        for name, p in self.parameters.items():
            p.copy_(lora[name])


def check_base(chat: Chat, model: Model, lora: Lora) -> PreTrainedModel:
    """The base without its weights, and all that can be said of it before they are in memory.

    Raises UserError where it cannot be trained.
    """
    with read_from(chat.path, "causal language model"):
        base = empty_model(chat.path, chat.dtype)
    check_shapes(chat.path, {name: list(p.shape) for name, p in base.named_parameters()})
    _check(base, model, lora)
    return base


def _check(base: PreTrainedModel, model: Model, lora: Lora) -> tuple[float, float]:
    """The factor and the soft cap of its logits."""
    for place, kind in enumerate(getattr(base.config, "layer_types", None) or []):
        if kind not in COMPUTED:
            raise UserError(f"model.path = {model.path}: its layer {place} is {kind} ({base.config.model_type}), which the "
                            f"training pass does not compute; give a model whose layers are {' or '.join(sorted(COMPUTED))}")
    form = logit_form(base)
    if form is None:
        raise UserError(f"model.path = {model.path}: {type(base).__name__} makes logits otherwise than by its LM head and "
                        "a factor or a soft cap, which the training pass does not; give a model without that")
    names = {name.rsplit(".", 1)[-1] for name, module in base.named_modules()
             if isinstance(module, nn.Linear) and module is not base.get_output_embeddings()}
    if missing := sorted(set(lora.targets) - names):
        raise UserError(f"lora.targets: {missing[0]} is no linear layer of {model.path} that can have a LoRA; "
                        f"it has {', '.join(sorted(names))}")
    return form
