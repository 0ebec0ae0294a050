"""The generating reader: a decoder reads the best passage and the question, and says the answer in
the passage's own words (`inference.copying`)."""

from pathlib import Path

from onsil.inference import copied_answer
from onsil.models.checkpoint import load
from onsil.models.transformer import Transformer
from onsil.retrieval.bm25 import BM25
from onsil.retrieval.passages import reading_text
from onsil.retrieval.ranking import Hit, evidence
from onsil.retrieval.readers import Reader, Reading
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.template import render_turn
from onsil.tokenizer.train import specials_of


def generator_of(model: Transformer, tokenizer) -> Reader:
    """A reader from a decoder tuned by `instruct`. Its margin over stopping is a feature."""
    stop = specials_of(tokenizer).end

    def read(index: BM25, question: str, hits: list[Hit]) -> Reading | None:
        if not hits:
            return None
        passage = hits[0].passage
        text = reading_text(passage)
        turn = render_turn(tokenizer, question, text, context=model.shape.context)
        lead = len(text) - len(passage.text)
        first = next((i for i, (start, _) in enumerate(turn.places) if start >= lead), None)
        if first is None:
            return None
        copied, margin = copied_answer(model, list(turn.ids), list(turn.source[first:]), stop)
        places = turn.places[first:]
        answer = text[places[copied.start][0] : places[copied.stop - 1][1]].strip()
        return Reading(answer, passage, (*evidence(index, question, hits, passage), margin))

    return read


def load_generator(folder: Path, tokenizer: Path) -> Reader:
    return generator_of(load(folder)[0].eval(), load_tokenizer(tokenizer))
