"""A layer that mixes each token with the few before it: LFM2's gated short convolution.

    y_t = o(c_t · Σ_j taps_j · (b · x)_{t−j}),  b, c, x = products of the layer's input

(LFM2, Liquid AI 2025; as `modeling_lfm2.py` of transformers 5.23 computes it.) Each channel has
`taps` weights of its own. What a later token needs of the earlier ones is taps − 1 rows, however
long the text is, and a single layer of attention above one can look for what followed the same
tokens before.

Left out: biases (no published checkpoint has them).
"""

from typing import Any

import torch
from torch import Tensor, nn

from onsil.models.attention import Linear, Views
from onsil.models.shape import Shape


class ShortConvolution(nn.Module):
    """Stands where `Attention` would; letters as in transformer.py, K is the number of taps."""

    def __init__(self, shape: Shape):
        super().__init__()
        D = shape.width
        self.bcx = Linear(D, 3 * D, bias=False)
        self.taps = nn.Parameter(torch.zeros(D, 1, shape.taps))  # the last is the token's own
        self.o = Linear(D, D, bias=False)

    def forward(self, x_BTD: Tensor, _source, views: Views, _table, cache: Any) -> Tensor:
        return self.convolved(x_BTD, views.q_BT, cache)

    def convolved(self, x_BTD: Tensor, at_BT: Tensor, cache: Any = None) -> Tensor:
        """B T D. `cache`: the K − 1 rows before the first, B K−1 D."""
        b_BTD, c_BTD, z_BTD = self.bcx(x_BTD).chunk(3, -1)
        z_BTD = b_BTD * z_BTD
        ahead = self.taps.size(-1) - 1
        first = cache[0] if cache else z_BTD.new_zeros(z_BTD.size(0), ahead, z_BTD.size(-1))
        z_BTD = torch.cat((first, z_BTD), 1)
        if cache is not None:
            cache[:] = (z_BTD[:, z_BTD.size(1) - ahead :],)
        return self.o(c_BTD * mixed(z_BTD, self.taps, at_BT))


def mixed(z_BSD: Tensor, taps_D1K: Tensor, at_BT: Tensor) -> Tensor:
    """B T D: each row with the K − 1 before it, each times its tap. `z` has K − 1 rows in front;
    `at`: positions, so that no document looks into the one before it."""
    T, taps = at_BT.size(1), taps_D1K.to(z_BSD.dtype).squeeze(1).T
    y_BTD = z_BSD[:, -T:] * taps[-1]
    for back in range(1, len(taps)):
        start = z_BSD.size(1) - T - back
        earlier = z_BSD[:, start : start + T].masked_fill((at_BT < back)[..., None], 0)
        y_BTD = y_BTD + earlier * taps[-1 - back]
    return y_BTD
