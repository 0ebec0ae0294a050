"""placeholder"""

from typing import Protocol

from torch import Tensor


class Matcher(Protocol):
    finished: bool

    def masked(self, scores_V: Tensor) -> Tensor: ...

    def accept(self, token: int) -> None: ...


class Grammar(Protocol):
    def start(self) -> Matcher: ...
