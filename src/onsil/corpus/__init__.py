"""Documents to a curated corpus: one spelling, no repeats, no identifiers, split by document."""

from onsil.corpus.curate import Corpus, curate, document_text, load_corpus

__all__ = ["Corpus", "curate", "document_text", "load_corpus"]
