"""A tokenizer learns the words of a new corpus and forgets none of its own.

New tokens stand after all old ones, so no row of a model moves. They are learnt by going on where
the base stopped: every word of the corpus is first written in the base's own tokens, and byte-pair
merging (Sennrich et al. 2016) continues from there, each base token a letter. A merge that comes
after all of the base's can only join what the base would have written anyway. Text in which no new
merge applies is therefore the very ids it was, and every new token is a row of old ones, which is
what its embedding starts from (`models.new_rows`).

A pair is merged because it is the one that saves the corpus most tokens at that point: a syllable
in three bytes comes before a long word that is common but already short. (Learning half as many
again and giving up those that save least changed tokens a character by 0.02 %; so it is not done.)

Byte-level BPE (GPT-2, LLaMA 3, ours), BPE with byte fallback (LLaMA 2, Gemma) and Unigram (Kudo
2018) are taken as they are written in tokenizer.json. In the latter two a character that the base
spells in bytes is one more candidate, and what saves least gives way to it; a Unigram piece gets
the logarithm of its share of the corpus as its score and is left out where the base's own pieces
would be preferred to it. WordPiece is not handled: its continuations («##») are other tokens than
the words they spell.
"""

import copy
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any, Literal, NamedTuple

from onsil.corpus import document_text, load_corpus
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, stage
from onsil.tokenizer.train import load_tokenizer

EXPANSION, BASE = "expansion.json", "base"
LEAST = 2  # uses without which a pair is no candidate
LETTERS = 0x20000  # base token i is the letter chr(LETTERS + i) while merges are learnt
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
SPACED = re.compile("▁*[^▁]+|▁+")
SCRIPTS = {
    "hangul": re.compile("[\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e]"),
    "han": re.compile("[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff]"),
    "latin": re.compile("[A-Za-z\u00c0-\u024f]"),
    "digit": re.compile("[0-9]"),
}


class Expansion(NamedTuple):
    """A tokenizer with new tokens. `spelled`: for each new id the old ids that it stands for;
    `saved`: how many tokens of the corpus it saves, against writing its parts."""

    tokenizer: Any
    spelled: dict[int, list[int]]
    saved: dict[int, int]


class Base(NamedTuple):
    """A tokenizer to be continued: itself, its tokenizer.json, and what its model is."""

    tokenizer: Any
    spec: dict[str, Any]
    kind: Literal["bytes", "fallback", "unigram"]


class Candidate(NamedTuple):
    """A token that could be added: its spelling in tokenizer.json, the two it joins (none for a
    character that was bytes), and the tokens that each use saves."""

    surface: str
    parts: tuple[str, ...]
    saves: int


def expand(tokenizer, texts: Iterable[str], many: int) -> Expansion:
    """`tokenizer` (of the library tokenizers; left as it is) with up to `many` new tokens for
    `texts`; fewer when they use no more of them twice. Raises OnsilError for a kind of tokenizer
    that cannot be continued, and for texts that have nothing to add."""
    base = base_of(tokenizer)
    words, known = in_letters(base, words_of(base, texts))
    candidates = learnt(base, words, known, many)
    uses = used(candidates, words)
    kept = chosen(candidates, uses, many)
    uses = used(kept, words)
    made = written_out(base, kept, uses)
    if base.kind == "unigram":
        kept = {k: c for k, c in kept.items() if is_reached(made, c.surface)}
        made = written_out(base, kept, uses)
    if not kept:
        raise _nothing_new(sum(words.values()))
    spelled, saved = {}, {}
    for letters, candidate in kept.items():
        number = made.token_to_id(candidate.surface)
        spelled[number] = [token.id for token in tokenizer.model.tokenize(candidate.surface)]
        saved[number] = uses[letters] * candidate.saves
    return Expansion(made, spelled, saved)


def base_of(tokenizer) -> Base:
    """Raises OnsilError for a model that is none of the three kinds."""
    spec = json.loads(tokenizer.to_str())
    model = spec["model"]
    if model["type"] == "Unigram":
        return Base(tokenizer, spec, "unigram")
    if model["type"] == "BPE" and model["byte_fallback"]:
        return Base(tokenizer, spec, "fallback")
    if model["type"] == "BPE" and '"ByteLevel"' in json.dumps(spec["pre_tokenizer"]):
        return Base(tokenizer, spec, "bytes")
    raise _no_such_kind(model["type"])


def is_reached(tokenizer, surface: str) -> bool:
    """Whether a token's own spelling is written as that token."""
    written = [token.id for token in tokenizer.model.tokenize(surface)]
    return written == [tokenizer.token_to_id(surface)]


# ── learning ────────────────────────────────────────────────────────────────────────────────────


def words_of(base: Base, texts: Iterable[str]) -> Counter[str]:
    """What no merge crosses, as the base's model is given it, with its number in the texts."""
    normalizer, cut = base.tokenizer.normalizer, base.tokenizer.pre_tokenizer
    words: Counter[str] = Counter()
    for text in texts:
        text = normalizer.normalize_str(text) if normalizer else text
        parts = [part for part, _ in cut.pre_tokenize_str(text)] if cut else [text]
        for part in parts:
            words.update([part] if base.kind == "bytes" else SPACED.findall(part))
    return words


def in_letters(base: Base, words: Counter[str]) -> tuple[Counter[str], dict[str, str]]:
    """The words with a letter for each base token; and the letters of the characters for which the
    base has none, by character."""
    known: dict[str, str] = {}
    first = LETTERS + max(base.tokenizer.get_vocab().values()) + 1
    unknown = base.spec["model"]["unk_id"] if base.kind == "unigram" else None

    def spelled(text: str) -> str:
        return "".join(known.setdefault(c, chr(first + len(known))) for c in text)

    def lettered(word: str) -> str:
        letters, pending = "", b""
        for token in base.tokenizer.model.tokenize(word):
            byte = BYTE.fullmatch(token.value) if base.kind != "bytes" else None
            if byte:
                pending += bytes([int(byte[1], 16)])
                continue
            letters += spelled(pending.decode())
            letters += spelled(token.value) if token.id == unknown else chr(LETTERS + token.id)
            pending = b""
        return letters + spelled(pending.decode())

    found: Counter[str] = Counter()
    for word, count in words.items():
        found[lettered(word)] += count
    return found, known


def learnt(
    base: Base, words: Counter[str], known: dict[str, str], many: int
) -> dict[str, Candidate]:
    """Up to `many` merges in the order they are learnt, and the characters, by their letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = len(set().union(*words))
    trainer = trainers.BpeTrainer(
        vocab_size=alphabet + many, min_frequency=LEAST, show_progress=False
    )
    learner.train_from_iterator(_repeated(words), trainer)
    vocabulary = base.tokenizer.get_vocab()
    names = {chr(LETTERS + number): token for token, number in vocabulary.items()}
    names |= {letter: character for character, letter in known.items()}
    seen: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            seen[letter] += count
    candidates = {
        letter: Candidate(character, (), len(character.encode()) - 1)
        for character, letter in known.items()
        if seen[letter] >= LEAST
    }
    taken = set(vocabulary) | set(known)
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        surface = "".join(names[letter] for letter in left + right)
        built = all(len(part) == 1 or part in candidates for part in (left, right))
        # A spelling that is there has its id already; what builds on it another way goes too.
        if surface not in taken and built:
            taken.add(surface)
            candidates[left + right] = Candidate(surface, (left, right), 1)
    return candidates


def _repeated(words: Counter[str], room: int = 1 << 16) -> Iterator[str]:
    """Every word as often as it occurs, so many letters at a time."""
    for word, count in words.items():
        at_once = max(1, room // (len(word) + 1))
        for done in range(0, count, at_once):
            yield f"{word} " * min(at_once, count - done)


def used(candidates: dict[str, Candidate], words: Counter[str]) -> Counter[str]:
    """How often each candidate is written in the end when all of them are there."""
    from tokenizers import models

    vocabulary = {letter: i for i, letter in enumerate(sorted(set().union(*words)))}
    merges = [c.parts for c in candidates.values() if c.parts]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    model = models.BPE(vocab=vocabulary, merges=[(left, right) for left, right in merges])
    uses: Counter[str] = Counter()
    for word, count in words.items():
        for token in model.tokenize(word):
            uses[token.value] += count
    return uses


def chosen(candidates: dict[str, Candidate], uses: Counter[str], many: int) -> dict[str, Candidate]:
    """The `many` whose loss would cost most tokens. One token goes after the other: of those on
    which nothing is built the one that saves least; its uses become uses of its parts."""
    kept, uses = dict(candidates), uses.copy()
    built_on = Counter(part for c in candidates.values() for part in set(c.parts))
    order = {letters: -rank for rank, letters in enumerate(candidates)}

    def entry(letters: str) -> tuple[int, int, str]:
        return uses[letters] * candidates[letters].saves, order[letters], letters

    heap = [entry(letters) for letters in candidates if not built_on[letters]]
    heapify(heap)
    while len(kept) > many or (heap and heap[0][0] == 0):
        _, _, letters = heappop(heap)
        del kept[letters]
        for part in candidates[letters].parts:
            uses[part] += uses[letters]
        for part in set(candidates[letters].parts):
            built_on[part] -= 1
            if part in kept and not built_on[part]:
                heappush(heap, entry(part))
    return kept


# ── writing ─────────────────────────────────────────────────────────────────────────────────────


def written_out(base: Base, kept: dict[str, Candidate], uses: Counter[str]):
    """The base's tokenizer.json with the kept tokens after its own, as a tokenizer."""
    from tokenizers import Tokenizer

    spec = copy.deepcopy(base.spec)
    old, model = base.tokenizer.get_vocab(), spec["model"]
    own = {piece[0] for piece in model["vocab"]} if base.kind == "unigram" else set(model["vocab"])
    # Special tokens beside the model's vocabulary would be numbered anew after a longer one.
    beside = sorted((number, token) for token, number in old.items() if token not in own)
    if base.kind == "unigram":
        lowest = min(score for _, score in model["vocab"])
        # Below any way of spelling it in known characters: text shall not become a special token.
        model["vocab"] += [[token, lowest * (len(token) + 1)] for _, token in beside]
        total = sum(uses.values())
        for letters, candidate in kept.items():
            score = math.log(max(1, uses[letters]) / total)
            model["vocab"].append([candidate.surface, max(lowest, score)])
    else:
        model["vocab"] |= {token: number for number, token in beside}
        surfaces = {letters: c.surface for letters, c in kept.items()}
        names = {chr(LETTERS + number): token for token, number in old.items()} | surfaces
        first = max(old.values()) + 1
        for number, candidate in enumerate(kept.values(), first):
            model["vocab"][candidate.surface] = number
            if candidate.parts:
                model["merges"].append([names[part] for part in candidate.parts])
    made = Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
    made.encode_special_tokens = True
    assert all(made.token_to_id(token) == number for token, number in old.items())
    for number, token in beside:
        if number in made.encode(token, add_special_tokens=False).ids:
            raise _could_be_forged(token)
    made.encode_special_tokens = base.tokenizer.encode_special_tokens
    return made


# ── measuring ───────────────────────────────────────────────────────────────────────────────────


def fertility(tokenizer, texts: Sequence[str]) -> dict[str, float]:
    """Tokens a character, of all text ("all") and of each script in it. A token is shared out
    equally among the characters it stands for; one byte of a character counts as a token of it."""
    tokens, characters = Counter(), Counter()
    for text, encoded in zip(
        texts, tokenizer.encode_batch(list(texts), add_special_tokens=False), strict=True
    ):
        scripts = [script_of(character) for character in text]
        characters.update(scripts)
        characters["all"] += len(text)
        tokens["all"] += len(encoded.ids)
        for start, end in encoded.offsets:
            for script in scripts[start:end]:
                tokens[script] += 1 / (end - start)
    return {name: round(tokens[name] / many, 4) for name, many in sorted(characters.items())}


def script_of(character: str) -> str:
    """ "hangul", "han", "latin", "digit" or "other"."""
    return next((name for name, of in SCRIPTS.items() if of.match(character)), "other")


@stage(version=1)
def expand_tokenizer(*, base: Artifact, corpus: Artifact, many: int, out: Path, run: Run) -> dict:
    """tokenizer.json with up to `many` new tokens for the training split of a corpus, the one it
    was made of in base/, and expansion.json: for each new token its id, the old ids it stands for
    and the tokens it saves. The notes have the fertility on the held-out split, before and after.
    """
    held, words = load_corpus(corpus), load_tokenizer(base.path)
    expansion = expand(words, [document_text(d) for d in held.train], many)
    expansion.tokenizer.save(str(out / "tokenizer.json"))
    (out / BASE).mkdir()
    shutil.copyfile(base / "tokenizer.json", out / BASE / "tokenizer.json")
    rows = [
        {"id": i, "token": expansion.tokenizer.id_to_token(i), "spelled": ids, "saved": saved}
        for (i, ids), saved in zip(expansion.spelled.items(), expansion.saved.values(), strict=True)
    ]
    text = json.dumps(rows, ensure_ascii=False, indent=0)
    (out / EXPANSION).write_text(text + "\n", encoding="utf-8")
    texts = [document_text(d) for d in held.heldout]
    before, after = fertility(words, texts), fertility(expansion.tokenizer, texts)
    return {
        "vocabulary": [words.get_vocab_size(), expansion.tokenizer.get_vocab_size()],
        "tokens_a_character": {name: [before[name], after[name]] for name in after},
    }


def load_expansion(folder: Path | Artifact) -> dict[int, list[int]]:
    """`{new id: the old ids it stands for}` of what `expand_tokenizer` made; nothing elsewhere."""
    if not (folder / EXPANSION).is_file():
        return {}
    rows = json.loads((folder / EXPANSION).read_text(encoding="utf-8"))
    return {row["id"]: row["spelled"] for row in rows}


def _no_such_kind(kind: str) -> OnsilError:
    return OnsilError(
        en=(
            f"A {kind} tokenizer without bytes cannot be continued.",
            "New tokens are made of old ones; here a character that is unknown stays unknown.",
            "Take a base with byte-level BPE, BPE with byte fallback, or Unigram.",
        ),
        ko=(
            f"바이트가 없는 {kind} 토크나이저는 이어서 학습할 수 없습니다.",
            "새 토큰은 옛 토큰을 이어 만드는데, 여기서는 모르는 글자가 끝까지 모르는 글자입니다.",
            "바이트 수준 BPE, byte fallback이 있는 BPE, Unigram 가운데 하나인 모델을 쓰세요.",
        ),
    )


def _could_be_forged(token: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{token!r} stands beside the vocabulary and would have to move into it.",
            "This model does not know all of its characters, so plain text would become it.",
            "Rename the special token with characters that the vocabulary has.",
        ),
        ko=(
            f"어휘 밖에 있는 특수 토큰 {token!r}을 어휘 안으로 옮겨야 합니다.",
            "이 모델은 그 글자를 다 알지 못해서, 보통 글이 특수 토큰으로 바뀔 수 있습니다.",
            "어휘에 있는 글자로 특수 토큰의 이름을 바꿔 주세요.",
        ),
    )


def _nothing_new(words: int) -> OnsilError:
    return OnsilError(
        en=(
            f"The corpus ({words:,} words) has nothing to add to this tokenizer.",
            "No two of its tokens stand side by side twice, so a new row would never be trained.",
            "Give more text, or continue with the tokenizer as it is.",
        ),
        ko=(
            f"말뭉치(낱말 {words:,}개)에서 이 토크나이저에 더할 것을 찾지 못했습니다.",
            "나란히 두 번 나온 토큰이 없어, 새 행을 만들어도 학습되지 않습니다.",
            "글을 더 주거나 토크나이저를 그대로 두고 이어서 학습하세요.",
        ),
    )
