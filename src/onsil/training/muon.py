"""Muon: momentum whose directions are all given the same length, and neurons the same share.

The update of a matrix is its momentum made nearly orthogonal (Jordan et al. 2024), so that no
direction starves. Three refinements are taken from nanochat, measured together (docs/log.md,
"Training against nanochat"): rows are brought to one length first (MuonEq); five polynomials chosen
for fast convergence replace the one of Newton and Schulz (Polar Express, Amsel et al. 2025); rows
or columns, whichever there are more of, are divided by a running mean of their own size (NorMuon,
Li et al. 2025). The size is then the one AdamW's would have, 0.2·√(longer side) times orthogonal
(Liu et al. 2025), so one learning rate serves both. Weights decay only where the step shrinks them
anyway. Matrices of one shape are worked out together: small ones cost more to call for than to do.

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
STACK = 2**21  # numbers worked out at once


class Muon(torch.optim.Optimizer):
    """`momentum` and `lr` are words of a group, and may change from step to step."""

    def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert closure is None
        for group in self.param_groups:
            moved = [weight for weight in group["params"] if weight.grad is not None]
            for shape in dict.fromkeys(weight.shape for weight in moved):
                alike = [weight for weight in moved if weight.shape == shape]
                many = max(1, STACK // alike[0].numel())
                for i in range(0, len(alike), many):
                    self._move(alike[i : i + many], group)

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """One step of matrices of one shape, worked out in one stack."""
        rate, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        many = -1 if weights[0].size(0) >= weights[0].size(1) else -2
        states = [self.state[weight] for weight in weights]
        ahead = []
        for weight, state in zip(weights, states, strict=True):
            if not state:
                state["momentum_buffer"] = torch.zeros_like(weight)
                state["size_sq"] = settled(torch.zeros_like(weight).mean(many, keepdim=True))
            assert weight.grad is not None
            mean = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
            ahead.append(weight.grad.lerp(mean, momentum))
        step_NRC = orthogonal(torch.stack(ahead)).type_as(weights[0])
        size_sq = torch.stack([state["size_sq"] for state in states])
        step_NRC = evened(step_NRC, size_sq, many).mul_(0.2 * max(weights[0].shape) ** 0.5)
        for weight, state, step, size in zip(weights, states, step_NRC, size_sq, strict=True):
            state["size_sq"].copy_(size)
            step.add_(weight * (step * weight >= 0), alpha=decay)
            weight.sub_(step, alpha=rate)


def orthogonal(matrix_NRC: Tensor) -> Tensor:
    """Nearly the nearest matrices whose shorter side is orthonormal, in bfloat16."""
    x = (matrix_NRC / length(matrix_NRC, -1)).bfloat16()
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) * 1.01 + LEAST)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    for a, b, c in POLAR:
        square = x @ x.mT
        both = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, both, x, beta=a)
    return x.mT if tall else x


def evened(step_NRC: Tensor, size_sq: Tensor, many: int) -> Tensor:
    """Every row (or column) over the running size of its own, which is updated in place; the whole
    of each matrix at √(shorter side)."""
    whole = min(step_NRC.shape[-2:]) ** 0.5
    step_NRC = step_NRC * (whole / length(step_NRC, (-2, -1)))
    size_sq.lerp_(settled(step_NRC.square().mean(many, keepdim=True)), 1 - SLOWNESS)
    step_NRC = step_NRC * size_sq.clamp(min=1e-10).rsqrt()
    return step_NRC * (whole / length(step_NRC, (-2, -1)))


def settled(mean: Any) -> Tensor:
    """A mean over rows that lie on several workers (a DTensor), the same on each of them."""
    if type(mean) is Tensor:
        return mean
    from torch.distributed.tensor import Replicate  # a third of a second, and few have workers

    told = [Replicate() if placed.is_partial() else placed for placed in mean.placements]
    return mean.redistribute(placements=told)


def length(x: Tensor, along: int | tuple[int, int]) -> Tensor:
    """Euclidean, never so small that dividing by it would overflow."""
    return torch.linalg.vector_norm(x, dim=along, keepdim=True).clamp(min=LEAST)
