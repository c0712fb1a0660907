"""Every setting of the algorithm: one frozen tree, checked when it is loaded.

A wrong key, type, value or combination raises UserError before anything heavy is imported (grpo/run/schema.py).
"""

import datetime
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from grpo.presets import PRESETS, refuse_idle
from grpo.run.rollouts import WhichSteps
from grpo.run.schema import PathName, Section, read_config, to_yaml, validated


class Run(Section):
    """Where, how long, and from which seed."""

    dir: PathName = Field(min_length=1, description="the folder the run writes to", examples=["runs/mine"])
    steps: int = Field(ge=1, description="how many GRPO steps the whole run has", examples=[100])
    seed: int = Field(0, ge=0, lt=2**32, description="decides data order and sampling")
    give_up_after: int = Field(10, ge=0, description="steps in a row without a signal after which a run stops that has "
                                                     "learned nothing yet, or is wrong throughout; 0: never")


class Model(Section):
    """The frozen base."""

    path: PathName = Field(min_length=1, description="a Hugging Face causal-LM directory or hub name",
                           examples=["models/tiny"])
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the base weights, here and in vLLM; auto is bfloat16 on a GPU, float32 on a CPU")
    date: Annotated[datetime.date, Field(strict=False)] | None = Field(  # text, in YAML and JSON
        None, description="what a chat template is told that asks for today's date, YYYY-MM-DD; by default the day on which "
                          "the run starts", examples=["2024-07-26"])


class Lora(Section):
    """The trained part: W + (alpha / rank) B A (arXiv 2106.09685)."""

    rank: int = Field(32, ge=1, le=512, description="r: rows of A and columns of B; 512 is vLLM's most")
    alpha: int = Field(64, ge=1, description="the update is (alpha / rank) B A")
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1,
        description="names of the linear layers that get a LoRA")

    @field_validator("alpha")
    @classmethod
    def _scale_is_exact(cls, alpha: int, info: ValidationInfo) -> int:
        rank = info.data.get("rank", alpha)
        if math.frexp(alpha / rank)[0] != 0.5:
            raise ValueError(f"alpha / rank must be a power of two, so that scaling B is exact in bfloat16; "
                             f"with rank {rank} try {rank} or {2 * rank}")
        return alpha


class Rollout(Section):
    """What is sampled in a step."""

    prompts_per_step: int = Field(16, ge=1, description="P")
    group_size: int = Field(64, ge=2, description="G: advantages are relative to the group, so one is too few")
    max_new_tokens: int = Field(256, ge=1, description="a longer completion is truncated")
    temperature: float = Field(1.0, ge=0.01, description="of the distribution that is sampled and trained")
    max_sequences: int = Field(1024, ge=1, description="how many completions vLLM decodes at once")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share one engine; more than one is not built")
    gpu_memory_share: float = Field(
        0.3, gt=0, lt=1, description="of the GPU, for vLLM: the base, which the trainer shares, and its KV cache")
    cpu_kv_cache_gib: int = Field(1, ge=1, description="KV cache where there is no GPU")

    @field_validator("tensor_parallel_size")
    @classmethod
    def _one_gpu_an_engine(cls, size: int) -> int:
        if size > 1:
            raise ValueError("a base must fit one GPU, where vLLM and the trainer share it; several GPUs train on several "
                             "prompts at once with torchrun, and docs/scale.md says what a larger base would take")
        return size


class Algorithm(Section):
    """Which equations: each name is a function in the file of its equation.

    `algorithm: NAME` takes a preset of grpo/presets.py; keys beside `preset: NAME` go on top of it.
    """

    preset: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "maxrl"] | None = Field(
        None, description="a published algorithm, grpo/presets.py, for the keys that are not given", examples=["dapo"])
    advantage: Literal["grpo", "centred", "batch_std", "rloo", "maxrl"] = Field(
        "grpo", description="a function of grpo/advantage.py")
    ratio: Literal["token", "sequence"] = Field("token", description="of what pi / pi_old is, grpo/loss.py")
    loss: Literal["clip", "dual_clip", "cispo", "reinforce"] = Field("clip", description="a function of grpo/loss.py")
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        "token_mean", description="how token losses become one number, grpo/batch.py")
    eps_low: float = Field(0.2, gt=0, lt=1, description="the ratio is clipped below at 1 - eps_low")
    eps_high: float = Field(0.2, gt=0, description="and above at 1 + eps_high")
    dual_clip_at: float = Field(3.0, gt=1, description="c of dual_clip: with A < 0 a token's surrogate is at least c A")
    beta: float = Field(0.0, ge=0, description="weight of the KL to the base model")
    kl: Literal["k1", "k2", "k3", "unbiased"] = Field("k3", description="the KL's estimator, grpo/loss.py")
    correction: Literal["none", "truncated", "masked"] = Field(
        "none", description="weight for the mismatch of sampler and trainer, grpo/loss.py")
    correction_low: float = Field(0.5, ge=0, lt=1, description="below it a token is masked")
    correction_high: float = Field(2.0, gt=1, description="above it a token is masked, or its weight truncated")
    overlong: Literal["kept", "masked", "penalised"] = Field(
        "kept", description="truncated completions: trained on, left out, or penalised as a completion nears the limit")
    overlong_buffer: float = Field(0.2, gt=0, le=1, description="share of rollout.max_new_tokens over which it is lowered")
    refills: int = Field(0, ge=0, description="rounds of fresh prompts for groups without a signal (dynamic sampling)")
    epochs: int = Field(1, ge=1, description="optimizer steps on each batch of rollouts")

    @model_validator(mode="before")
    @classmethod
    def _on_top_of_a_preset(cls, value: Any) -> Any:
        value = {"preset": value} if isinstance(value, str) else value
        return {**PRESETS.get(str(value.get("preset")), {}), **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _fits_together(self) -> "Algorithm":
        if self.ratio == "sequence" and self.loss == "reinforce":
            raise ValueError("loss reinforce has no ratio; with ratio sequence choose clip, dual_clip or cispo")
        if self.advantage == "maxrl" and self.overlong == "penalised":
            raise ValueError("advantage maxrl needs rewards of 0 or more, and overlong penalised takes some below; "
                             "choose overlong masked")
        refuse_idle(self.model_dump(), {name: field.default for name, field in Algorithm.model_fields.items()})
        return self


Decay = Annotated[float, Field(ge=0, lt=1)]


class Optim(Section):
    """AdamW with 8-bit moments."""

    lr: float = Field(1e-4, gt=0, description="peak learning rate; docs/lr_and_rank.md has a sweep")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps over which lr rises linearly")
    decay: Literal["constant", "linear"] = Field("constant", description="lr after the warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW's")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")

    @field_validator("betas", mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class Train(Section):
    """Memory against speed; none of it changes the result beyond rounding."""

    micro_batch_tokens: int = Field(4096, ge=1, description="tokens in a forward pass, prompts included")
    head_chunk_tokens: int = Field(2048, ge=1, description="tokens whose logits exist at once")
    recompute_layers: int = Field(
        -1, ge=-1, description="layers that keep no activations (gradient checkpointing); -1: as few as let it fit")
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="torch.compile the layers, which fuses what surrounds their products; auto: on a GPU, from a "
                            "billion parameters on")


class Eval(Section):
    """Greedy accuracy: by that on the validation problems a LoRA is chosen; that on the test problems is reported."""

    every: int = Field(50, ge=1, description="steps between evaluations on the validation problems; at both ends too")
    keep: Literal["best", "last"] = Field(
        "best", description="whose LoRA adapter/ holds: that of the step with the best validation accuracy, or the last's")
    test_every: int | None = Field(
        None, ge=1, description="steps between evaluations on the test problems, which are asked at step 0 and, with the "
                                "LoRA that is kept, at the end anyway", examples=[50])


class Records(Section):
    """What is written down for grpo.report, grpo.compare and adapter.evaluate."""

    rollouts: WhichSteps = Field("auto", description="steps: all, none, N (1, N + 1, ...), auto (what 5 GiB hold)")


class Checkpoint(Section):
    """When state is saved; always at the end."""

    every: int = Field(200, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="how many of the newest stay")


class TaskRef(BaseModel):
    """Which task, and its own settings: the other keys, which the task checks itself."""

    model_config = ConfigDict(extra="allow", frozen=True)
    target: str = Field(pattern=r"^[^:]+(:[A-Za-z_]\w*)?$", examples=["corrector"],
                        description="corrector, gym, symbols, module:Class, path/to/file.py:Class, or an installed entry "
                                    "point of grpo.tasks")

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"target": value} if isinstance(value, str) else value


class Config(Section):
    """The whole tree."""

    run: Run
    model: Model
    lora: Lora = Lora()
    rollout: Rollout = Rollout()
    algorithm: Algorithm = Algorithm()
    optim: Optim = Optim()
    train: Train = Train()
    eval: Eval = Eval()
    records: Records = Records()
    checkpoint: Checkpoint = Checkpoint()
    task: TaskRef

    def dump(self) -> str:
        """The resolved tree as YAML; `load` reads it back to an equal tree."""
        return to_yaml(self.model_dump(mode="json"))


def load(path: str | Path, overrides: list[str] = ()) -> Config:
    """Read a YAML file and apply `key.path=value` overrides. Raises UserError."""
    return validated(Config, read_config(path, overrides, {"algorithm": "preset", "task": "target"}, ["algorithm"]))
