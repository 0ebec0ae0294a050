"""Corpus to index; question to passages to an answer with its citation, or an abstention."""

from onsil.retrieval.answering import Answerer

__all__ = ["Answerer"]
