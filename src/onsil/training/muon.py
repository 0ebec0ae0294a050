"""Muon: momentum whose directions are all given the same length, and neurons the same share.

The update of a matrix is its momentum made nearly orthogonal (Jordan et al. 2024), so that no
direction starves. Three refinements are taken from nanochat, measured together (docs/log.md,
"Training against nanochat"): rows are brought to one length first (MuonEq); five polynomials chosen
for fast convergence replace the one of Newton and Schulz (Polar Express, Amsel et al. 2025); rows
or columns, whichever there are more of, are divided by a running mean of their own size (NorMuon,
Li et al. 2025). The size is then the one AdamW's would have, 0.2·√(longer side) times orthogonal
(Liu et al. 2025), so one learning rate serves both. Weights decay only where the step shrinks them
anyway.

Left out: anything but matrices.
"""

from typing import Any

import torch
from torch import Tensor

# a, b, c of x ← a·x + (b·xxᵀ + c·(xxᵀ)²)·x, one row a step (Amsel et al. 2025, five steps).
POLAR = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
LEAST = 1e-6
SLOWNESS = 0.9  # of the running mean of sizes


class Muon(torch.optim.Optimizer):
    """`momentum` and `lr` are words of a group, and may change from step to step."""

    def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert closure is None
        for group in self.param_groups:
            rate, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                many = -1 if weight.size(0) >= weight.size(1) else -2
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                    state["size_sq"] = torch.zeros_like(weight).mean(many, keepdim=True)
                mean = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
                step = orthogonal(weight.grad.lerp(mean, momentum)).type_as(weight)
                step = evened(step, state["size_sq"], many).mul_(0.2 * max(weight.shape) ** 0.5)
                step.add_(weight * (step * weight >= 0), alpha=decay)
                weight.sub_(step, alpha=rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the nearest matrix whose shorter side is orthonormal, in bfloat16."""
    rows = torch.linalg.vector_norm(matrix, dim=-1, keepdim=True).clamp(min=LEAST)
    x = (matrix / rows).bfloat16()
    x = x / (torch.linalg.vector_norm(x) * 1.01 + LEAST)
    tall = x.size(0) > x.size(1)
    x = x.mT if tall else x
    for a, b, c in POLAR:
        square = x @ x.mT
        both = torch.addmm(square, square, square, beta=b, alpha=c)
        x = torch.addmm(x, both, x, beta=a)
    return x.mT if tall else x


def evened(step: Tensor, size_sq: Tensor, many: int) -> Tensor:
    """Every row (or column) over the running size of its own, the whole at √(shorter side)."""
    whole = min(step.shape) ** 0.5
    step = step * (whole / torch.linalg.vector_norm(step).clamp(min=LEAST))
    size_sq.lerp_(step.square().mean(many, keepdim=True), 1 - SLOWNESS)
    step = step * size_sq.clamp(min=1e-10).rsqrt()
    return step * (whole / torch.linalg.vector_norm(step).clamp(min=LEAST))
