"""English words without their endings: allowances and allowance are one term.

Porter's second stemmer («English» of Snowball, Porter 2001), by the snowballstemmer library. Korean
needs none: bm25.py says why.
"""

from functools import lru_cache
from threading import Lock

import snowballstemmer

_STEMMER = snowballstemmer.stemmer("english")
_ONE_AT_A_TIME = Lock()  # a stemmer works on the word in place


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """The stem of a lower-case word of the Latin alphabet."""
    with _ONE_AT_A_TIME:
        return _STEMMER.stemWord(word)
