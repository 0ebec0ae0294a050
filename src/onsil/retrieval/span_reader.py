"""The trained reader: an encoder points at the answer inside the passages that were found.

Each of the best passages is read with the question (`render_pair`); the head scores every token as
first and last of the answer and <|cls|> as "not here". The margin of the best span over "not here"
chooses the passage, together with its place in the search, and is one more feature for the gate.
"""

from pathlib import Path

import torch

from onsil.retrieval.bm25 import BM25
from onsil.retrieval.passages import reading_text
from onsil.retrieval.ranking import Hit, evidence
from onsil.retrieval.readers import Reader, Reading
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.template import Rendered, render_pair
from onsil.training.finetuning import load_reader
from onsil.training.objectives import Batch, span_scores

READ, LONGEST_SPAN = 2, 90
# What the search counts against one unit of margin; chosen on dev (docs/log.md, "reader").
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


def reader_of(model, head, tokenizer) -> Reader:
    """A reader from an encoder and its span head."""

    def read(index: BM25, question: str, hits: list[Hit]) -> Reading | None:
        passages = [hit.passage for hit in hits[:READ]]
        texts = [reading_text(p) for p in passages]
        context = model.shape.context
        tasks: list[Rendered] = [
            render_pair(tokenizer, question, t, context=context) for t in texts
        ]
        batch = Batch(
            torch.tensor([[x for t in tasks for x in t.ids]]),
            [len(t.ids) for t in tasks],
            segments=torch.tensor([[x for t in tasks for x in t.segments]]),
        )
        with torch.no_grad():
            scores = span_scores(model, head, batch)
        best: tuple[float, float, int, str] | None = None
        for n, (task, scores_T2) in enumerate(zip(tasks, scores, strict=True)):
            lead = len(texts[n]) - len(passages[n].text)
            inside = [i for i, a in enumerate(task.starts) if a >= lead]
            if not inside:
                continue
            margin, a, b = best_span(scores_T2, inside[0])
            fit = margin + SEARCH_WEIGHT * (hits[n].fit - hits[0].fit)
            answer = texts[n][task.starts[a] : task.ends[b]].strip()
            if answer and (best is None or fit > best[0]):
                best = (fit, margin, n, answer)
        if best is None:
            return None
        _, margin, n, answer = best
        passage = passages[n]
        features = evidence(index, question, hits, passage)
        return Reading(answer, passage, (*features, margin))

    return read


def span_reader(reader: Path, tokenizer: Path) -> Reader:
    model, head = load_reader(reader)
    return reader_of(model, head, load_tokenizer(tokenizer))
