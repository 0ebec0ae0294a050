"""The trained readers: an encoder points at the answer, or judges whether a passage has one.

Each of the best passages is read with the question (`render_pair`); the head scores every token as
first and last of the answer and <|cls|> as "not here". The margin of the best span over "not here"
chooses the passage, together with its place in the search, and is one more feature for the gate.
"""

from pathlib import Path

import torch

from onsil.retrieval.bm25 import BM25
from onsil.retrieval.passages import Passage, reading_text
from onsil.retrieval.ranking import Hit, evidence
from onsil.retrieval.readers import Reader, Reading, typed_sentence
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.template import Rendered, render_pair
from onsil.training.finetuning import load_reader
from onsil.training.objectives import Batch, span_scores

READ, LONGEST_SPAN = 2, 90
# What one unit of fit counts in units of margin; chosen on dev (docs/log.md, "reader").
SEARCH_WEIGHT = 4.0


def best_span(scores_T2: torch.Tensor, first: int) -> tuple[float, int, int]:
    """(margin over "not here", first token, last token) of the best span from token `first` on."""
    start_T, end_T = scores_T2[:, 0].clone(), scores_T2[:, 1]
    null = float(start_T[0] + end_T[0])
    start_T[:first] = -1e9
    pair_TT = start_T[:, None] + end_T[None, :]
    length = torch.ones_like(pair_TT).triu() - torch.ones_like(pair_TT).triu(LONGEST_SPAN)
    pair_TT = pair_TT.masked_fill(length == 0, -1e9)
    pair_TT[:, -1] = -1e9  # the closing separator is no answer
    at = int(pair_TT.argmax())
    a, b = divmod(at, pair_TT.size(1))
    return float(pair_TT[a, b]) - null, a, b


def scores_of(model, head, tokenizer, question: str, passages: list[Passage]):
    """For every passage (task, scores (T, 2), first token inside its text); one batch."""
    texts = [reading_text(p) for p in passages]
    tasks: list[Rendered] = [
        render_pair(tokenizer, question, text, context=model.shape.context) for text in texts
    ]
    batch = Batch(
        torch.tensor([[x for t in tasks for x in t.ids]]),
        [len(t.ids) for t in tasks],
        segments=torch.tensor([[x for t in tasks for x in t.segments]]),
    )
    with torch.no_grad():
        scores = span_scores(model, head, batch)
    for task, scores_T2, passage, text in zip(tasks, scores, passages, texts, strict=True):
        lead = len(text) - len(passage.text)
        inside = [i for i, start in enumerate(task.starts) if start >= lead]
        yield task, scores_T2, inside[0] if inside else None


def reader_of(model, head, tokenizer) -> Reader:
    """A reader from an encoder and its span head: the answer is where it points."""

    def read(index: BM25, question: str, hits: list[Hit]) -> Reading | None:
        passages = [hit.passage for hit in hits[:READ]]
        best: tuple[float, float, Passage, str] | None = None
        scored = scores_of(model, head, tokenizer, question, passages)
        for hit, (task, scores_T2, first) in zip(hits, scored, strict=False):
            if first is None:
                continue
            margin, a, b = best_span(scores_T2, first)
            fit = margin + SEARCH_WEIGHT * (hit.fit - hits[0].fit)
            answer = reading_text(hit.passage)[task.starts[a] : task.ends[b]].strip()
            if answer and (best is None or fit > best[0]):
                best = (fit, margin, hit.passage, answer)
        if best is None:
            return None
        _, margin, passage, answer = best
        return Reading(answer, passage, (*evidence(index, question, hits, passage), margin))

    return read


def verifier_of(model, head, tokenizer) -> Reader:
    """The typed sentence, with the encoder's margin as one more feature: it does not choose the
    words of the answer, it judges whether this passage answers at all."""

    def read(index: BM25, question: str, hits: list[Hit]) -> Reading | None:
        reading = typed_sentence(index, question, hits)
        if reading is None:
            return None
        scored = scores_of(model, head, tokenizer, question, [reading.passage])
        _, scores_T2, first = next(iter(scored))
        margin = 0.0 if first is None else best_span(scores_T2, first)[0]
        return Reading(reading.answer, reading.passage, (*reading.features, margin))

    return read


TRAINED = {"span_encoder": reader_of, "verified_sentence": verifier_of}


def trained_reader(name: str, reader: Path, tokenizer: Path) -> Reader:
    """One of `TRAINED` from the folders of a grown model."""
    model, head = load_reader(reader)
    return TRAINED[name](model, head, load_tokenizer(tokenizer))
