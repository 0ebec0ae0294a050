"""Beginnings that were read before: pages of keys and values, found by their tokens.

A page holds `PAGE` tokens; its name is a hash of the caller's salt and of all tokens up to its end,
so a page is only found after the same beginning and by the same caller. The salt matters: an answer
that comes sooner tells that somebody has asked the like, and with one cache for all that somebody
may be another tenant (CVE-2025-46570). What was read longest ago goes first, the end of a text
before its beginning. Only prompts are kept: their keys come to the same bits for every reader.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from torch import Tensor

from onsil.inference.slots import BLOCK

PAGE = 4 * BLOCK


class Prefixes:
    """At most `most` bytes of pages."""

    def __init__(self, most: int):
        self.most, self.bytes = most, 0
        self.hits = self.misses = 0  # pages
        self.pages: OrderedDict[bytes, Tensor] = OrderedDict()

    def names(self, ids: Sequence[int], salt: str) -> list[bytes]:
        """The names of the whole pages before the last token: that one is always read."""
        return list(self._names(ids, salt))

    def _names(self, ids: Sequence[int], salt: str) -> Iterator[bytes]:
        name = hashlib.blake2b(salt.encode(), digest_size=16).digest()
        for start in range(0, (len(ids) - 1) // PAGE * PAGE, PAGE):
            told = name + array("q", ids[start : start + PAGE]).tobytes()
            name = hashlib.blake2b(told, digest_size=16).digest()
            yield name

    def found(self, names: list[bytes]) -> list[Tensor]:
        """The pages from the first on, as far as they are here."""
        many = 0
        while many < len(names) and names[many] in self.pages:
            many += 1
        for name in reversed(names[:many]):
            self.pages.move_to_end(name)
        self.hits, self.misses = self.hits + many, self.misses + len(names) - many
        return [self.pages[name] for name in names[:many]]

    def keep(self, name: bytes, page: Tensor) -> None:
        """Remember a page, and forget old ones for it."""
        size = page.numel() * page.element_size()
        if size > self.most or name in self.pages:
            return
        self.pages[name] = page
        self.bytes += size
        while self.bytes > self.most:
            _, old = self.pages.popitem(last=False)
            self.bytes -= old.numel() * old.element_size()
