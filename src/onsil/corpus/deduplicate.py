"""The same thing twice teaches nothing: exact copies, near copies, and lines on every page.

Near copies are proposed by MinHash (rensa) over character 5-grams and confirmed by the exact
Jaccard similarity. An amended rule resembles its older version almost to the letter, so one is a
copy only when it says nothing of its own: each of its sentences stands in the one that is kept,
spaces and punctuation aside, with the same numbers.
"""

import hashlib
import re
from collections import Counter

from onsil.documents.types import Document

SIMILAR, PERMUTATIONS, BANDS, SHINGLE = 0.9, 128, 32, 5
REPEATED_SHARE, REPEATED_LEAST, REPEATED_LONGEST = 0.3, 3, 80
TELLS = re.compile(r"\d|[:：]|(?<!니)다\.?$")  # but not «이 문서는 … 금합니다.»


def _bare(document: Document) -> str:
    cells = (c for b in document.blocks for r in b.rows for c in r)
    return re.sub(r"\s+", "", "".join([*(b.text for b in document.blocks), *cells]))


def _sentences(document: Document) -> set[str]:
    """Every sentence and cell, letters and digits alone."""
    texts = [
        *(b.text for b in document.blocks),
        *(c for b in document.blocks for r in b.rows for c in r),
    ]
    return {re.sub(r"[\W_]+", "", one) for text in texts for one in re.split(r"[.?!\n]", text)}


def repeated_lines(documents: list[Document]) -> Counter[str]:
    """Short paragraphs that stand in at least three and 30 % of the documents, with how many. What
    tells something (a number, «담당 부서: 총무과», a sentence of a rule) never is one of them:
    rules of one day all say from when they are in force."""
    seen: Counter[str] = Counter()
    for document in documents:
        said = {b.text.strip() for b in document.blocks if b.kind == "paragraph"}
        seen.update(text for text in said if not TELLS.search(text))
    least = max(REPEATED_LEAST, REPEATED_SHARE * len(documents))
    return Counter(
        {t: n for t, n in seen.items() if t and n >= least and len(t) < REPEATED_LONGEST}
    )


def copies(documents: list[Document]) -> dict[int, tuple[str, str]]:
    """`{place in the list: (reason, path of the one kept)}` for every document that repeats one
    of an earlier path."""
    from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue]

    removed: dict[int, tuple[str, str]] = {}
    exact: dict[str, str] = {}
    index = RMinHashLSH(threshold=SIMILAR, num_perm=PERMUTATIONS, num_bands=BANDS)
    kept: list[tuple[str, str, set[str], Counter[str]]] = []
    for i, document in sorted(enumerate(documents), key=lambda numbered: numbered[1].path):
        bare = _bare(document)
        digest = hashlib.sha256(bare.encode()).hexdigest()
        if digest in exact:
            removed[i] = ("exact copy", exact[digest])
            continue
        exact[digest] = document.path
        shingles = {bare[i : i + SHINGLE] for i in range(max(1, len(bare) - SHINGLE + 1))}
        numbers = Counter(re.findall(r"\d+", bare))
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=42)
        sketch.update(sorted(shingles))
        for candidate in sorted(index.query(sketch)):
            path, there, theirs, their_numbers = kept[candidate]
            alike = len(shingles & theirs) / len(shingles | theirs)
            told = all(one in there for one in _sentences(document))
            if alike >= SIMILAR and numbers == their_numbers and told:
                removed[i] = ("near copy", path)
                break
        else:
            index.insert(len(kept), sketch)
            letters = re.sub(r"[\W_]+", "", bare)
            kept.append((document.path, letters, shingles, numbers))
    return removed
