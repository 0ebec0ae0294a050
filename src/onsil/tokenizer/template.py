"""The one renderer: a question and a passage become ids, segments and targets together.

    <|cls|> question <|sep|> passage <|sep|>                    for an encoder (`render_pair`)
    <|cls|> passage <|sep|> question <|sep|> answer <|end|>     for a decoder (`render_turn`)

Training, evaluation and answering all call these two, so what the reader learned on is what it
is asked. Segments tell question (0), passage (1) and the parts of the passage that the question
also has (2): the word-overlap feature of DrQA (Chen et al. 2017) written as a BERT token type.
"""

from dataclasses import dataclass
from functools import lru_cache

from onsil.tokenizer.train import specials_of

NO_TARGET = -100


@dataclass(frozen=True)
class Rendered:
    """One reading task. `starts[i], ends[i]`: characters of the passage that token i stands for
    (−1 outside it). `target`: indexes of the answer's first and last token; (0, 0), the cls
    token, when the passage does not answer; None when nobody asked for a target."""

    ids: tuple[int, ...]
    segments: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    target: tuple[int, int] | None = None


def grams(text: str) -> set[str]:
    """Pairs of neighbouring letters or digits inside a word, lower-cased; lone ones alone."""
    found: set[str] = set()
    for word in "".join(c if c.isalnum() else " " for c in text.lower()).split():
        found |= {word[i : i + 2] for i in range(len(word) - 1)} or {word}
    return found


@lru_cache(maxsize=4096)
def shared_characters(question: str, passage: str) -> tuple[bool, ...]:
    """Which characters of the passage lie in a letter pair that the question also has."""
    wanted, low = grams(question), passage.lower()
    hit = [False] * len(passage)
    for i in range(len(low) - 1):
        if low[i : i + 2] in wanted:
            hit[i] = hit[i + 1] = True
    return tuple(hit)


def render_pair(
    tokenizer,
    question: str,
    passage: str,
    answer: tuple[int, int] | None = None,
    supervised: bool = False,
    context: int = 384,
) -> Rendered:
    """Ids and target of one reading task, at most `context` tokens (the passage gives way).

    `answer`: character range in `passage`, or None for "not here". With `supervised`, an answer
    that the cut removed becomes "not here", so a target always points at what can be seen.
    """
    special = specials_of(tokenizer)
    asked = tokenizer.encode(question).ids[: context // 3]
    read = tokenizer.encode(passage)
    room = context - len(asked) - 3
    offsets = read.offsets[:room]
    hit = shared_characters(question, passage)
    lead = len(asked) + 2
    ids = (special.cls, *asked, special.sep, *read.ids[:room], special.sep)
    segments = (0,) * lead + tuple(2 if any(hit[a:b]) else 1 for a, b in offsets) + (1,)
    starts = (-1,) * lead + tuple(a for a, _ in offsets) + (-1,)
    ends = (-1,) * lead + tuple(b for _, b in offsets) + (-1,)
    target = None
    if supervised:
        target = (0, 0)
        if answer is not None:
            first, last = answer
            inside = [i for i, (a, b) in enumerate(offsets) if b > first and a < last]
            if inside and offsets[inside[-1]][1] >= last:
                target = (lead + inside[0], lead + inside[-1])
    return Rendered(ids, segments, starts, ends, target)


@dataclass(frozen=True)
class Turn:
    """One answered question for a decoder. `ids` end with the prompt, or after the answer when one
    was given; `targets[i]` is what token i should predict, `NO_TARGET` inside the prompt.
    `source`: the tokens of the passage as far as they fit, each with its characters in `places`."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    source: tuple[int, ...]
    places: tuple[tuple[int, int], ...]


def render_turn(
    tokenizer,
    question: str,
    passage: str,
    answer: tuple[int, int] | None = None,
    supervised: bool = False,
    context: int = 384,
) -> Turn:
    """Prompt and, with `supervised`, the answer as the very tokens it has in the passage, closed by
    <|end|>; an answer of None, or one the cut removed, is <|end|> alone."""
    special = specials_of(tokenizer)
    asked = tokenizer.encode(question).ids[: context // 3]
    read = tokenizer.encode(passage)
    room = max(1, context - len(asked) - 3 - context // 6)  # a sixth is for the answer
    source, places = tuple(read.ids[:room]), tuple(read.offsets[:room])
    prompt = (special.cls, *source, special.sep, *asked, special.sep)
    if not supervised:
        return Turn(prompt, (NO_TARGET,) * len(prompt), source, places)
    said: tuple[int, ...] = ()
    if answer is not None:
        inside = [i for i, (a, b) in enumerate(places) if b > answer[0] and a < answer[1]]
        if inside and places[inside[-1]][1] >= answer[1] and len(inside) < context // 6:
            said = source[inside[0] : inside[-1] + 1]
    ids = (*prompt, *said)
    return Turn(ids, (NO_TARGET,) * (len(prompt) - 1) + (*said, special.end), source, places)
