"""How each module's LoRA fares: its update beside the weight, its gradient, and how many directions it uses."""

import math
from typing import TYPE_CHECKING

import torch

from grpo.types import Metrics

if TYPE_CHECKING:
    from grpo.policy import Policy

Health = dict[str, tuple[float, float | None, float | None]]  # by module: relative norm, gradient norm, effective rank


class LoraHealth:
    """Of a policy's modules, against the norms of the weights they are added to."""

    def __init__(self, policy: "Policy"):
        self._policy = policy
        modules = {name: m for name, m in policy.model.named_modules() if hasattr(m, "lora_A")}
        self._names = list(modules)
        self._weight_norms = torch.stack([torch.linalg.vector_norm(m.get_base_layer().weight.detach(), dtype=torch.float32)
                                          for m in modules.values()])
        # what an effective rank takes grows with r cubed: beyond 32 a step looks at some modules, and at all in turn
        self._every = max(1, policy.parameters[f"{self._names[0]}.lora_A.weight"].shape[0] // 32) ** 2

    @torch.no_grad()
    def measure(self, step: int, gradient_norms: dict[str, torch.Tensor]) -> tuple[Health, Metrics]:
        """Each module's numbers, and {"lora/relative_norm": norm of all updates over norm of all their weights}.

        gradient_norms: by parameter; a module's is that of its A and B together, None where there was no gradient. The norm
        is Frobenius', of (alpha/r) B A. The effective rank is exp(H), H the entropy of the singular values of B A as shares
        of their sum (Roy and Vetterli, 2007): 1 to r, and 0 where B A = 0; None where it is another module's turn.
        """
        squares, grams, due = [], [], range(-step % self._every, len(self._names), self._every)
        for place, name in enumerate(self._names):
            dtype = torch.float64 if place in due else torch.float32  # norms can do with less
            a, b = (self._policy.parameters[f"{name}.lora_{x}.weight"].to(dtype) for x in "AB")
            gram_a, gram_b = a @ a.T, b.T @ b
            squares.append(torch.dot(gram_a.flatten(), gram_b.flatten()).double())  # |B A|^2 is the trace of A A' B' B
            grams += [gram_a, gram_b] if place in due else []
        norms = self._policy.scale * torch.stack(squares).clamp(min=0).sqrt().float()
        found = torch.stack([*gradient_norms.values()]).tolist() if gradient_norms else []  # one look at the GPU for all
        norm_of = dict(zip(gradient_norms, found, strict=True))
        gradients = [math.hypot(*(norm_of[f"{name}.lora_{x}.weight"] for x in "AB")) if found else None
                     for name in self._names]
        rank_of = dict(zip(due, _effective_ranks(torch.stack(grams)) if grams else [], strict=True))
        health = {name.removeprefix("base_model.model.").removeprefix("model."):
                  (float(f"{ratio:.4g}"), None if gradient is None else float(f"{gradient:.4g}"), rank_of.get(place))
                  for place, (name, ratio, gradient) in enumerate(
                      zip(self._names, (norms / self._weight_norms).tolist(), gradients, strict=True))}
        return health, {"lora/relative_norm": (norms.norm() / self._weight_norms.norm()).item()}


def _effective_ranks(grams: torch.Tensor) -> list[float]:
    """From A A' and B' B of each module, r x r. On the host, whose LAPACK is made for matrices as small as these."""
    grams = grams.cpu()
    grams_a, grams_b = grams[::2], grams[1::2]
    # the singular values of B A are the roots of the eigenvalues of R (B'B) R, R the root of A A': r x r, not out x in
    values, vectors = torch.linalg.eigh(grams_a)
    root = vectors * values.clamp(min=0).sqrt()[:, None] @ vectors.mT
    singular = torch.linalg.eigvalsh(root @ grams_b @ root).clamp(min=0).sqrt()
    share = singular / singular.sum(1, keepdim=True).clamp(min=1e-300)
    ranks = torch.exp(torch.special.entr(share).sum(1)) * (singular.sum(1) > 0)
    return [round(rank, 3) for rank in ranks.tolist()]
