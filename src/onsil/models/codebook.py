"""Vectors to codes and back: the nearest of K learned vectors, and what is left over, again.

A codebook names a vector by the row of its table that lies nearest (VQ, van den Oord et al. 2017).
A residual quantiser names what the first book left over by a second, and so on (RVQ, Zeghidour et
al. 2021): each level halves what the ear or eye misses, and fewer levels are a coarser picture of
the same thing. The running averages from which the rows are learned are kept beside them.

Letters: B batch, T positions, D width, K codes of a book, Q levels. Left out here: learning, which
moves a row to the mean of the vectors it names and gives an unused one a new place.
"""

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Codebook(nn.Module):
    """K vectors D wide. `cluster_size` and `embed_avg` are how often a row was nearest and the sum
    of what it was nearest to, both running; `inited` is 1 once rows have come from data."""

    inited: Tensor
    cluster_size: Tensor
    embed: Tensor
    embed_avg: Tensor

    def __init__(self, codes: int, width: int):
        super().__init__()
        self.register_buffer("inited", torch.zeros(1))
        self.register_buffer("cluster_size", torch.zeros(codes))
        self.register_buffer("embed", torch.zeros(codes, width))
        self.register_buffer("embed_avg", torch.zeros(codes, width))

    def initialise(self, generator: torch.Generator) -> None:
        """Rows normal(0, 1), each as if it had been nearest once."""
        self.inited.zero_()
        self.cluster_size.fill_(1.0)
        self.embed_avg.copy_(self.embed.normal_(0.0, 1.0, generator=generator))

    def nearest(self, x_BTD: Tensor) -> Tensor:
        """Codes B T. The square is multiplied out, |x|² − 2xe + |e|², as published: where two rows
        lie equally near, rounding decides, and it should decide alike."""
        x_ND, rows_DK = x_BTD.reshape(-1, x_BTD.size(-1)), self.embed.T
        near_NK = -(
            x_ND.pow(2).sum(1, keepdim=True)
            - 2 * x_ND @ rows_DK
            + rows_DK.pow(2).sum(0, keepdim=True)
        )
        return near_NK.max(-1).indices.view(x_BTD.shape[:-1])

    def rows(self, codes_BT: Tensor) -> Tensor:
        """The vectors B T D that codes name."""
        return F.embedding(codes_BT, self.embed)


class ResidualQuantiser(nn.Module):
    """Q codebooks, each for what those before it left over."""

    def __init__(self, levels: int, codes: int, width: int):
        super().__init__()
        self.levels = nn.ModuleList(Codebook(codes, width) for _ in range(levels))

    @property
    def books(self) -> list[Codebook]:
        return [book for book in self.levels if isinstance(book, Codebook)]

    def encode(self, x_BTD: Tensor, levels: int) -> Tensor:
        """Codes B Q T of the first `levels` books."""
        codes, rest = [], x_BTD
        for book in self.books[:levels]:
            codes.append(book.nearest(rest))
            rest = rest - book.rows(codes[-1])
        return torch.stack(codes, 1)

    def decode(self, codes_BQT: Tensor) -> Tensor:
        """The sum B T D of what the codes name, over as many levels as there are."""
        told = zip(self.books, codes_BQT.unbind(1), strict=False)
        return reduce(torch.add, (book.rows(codes) for book, codes in told))
