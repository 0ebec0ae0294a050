"""Corpus to tokenizer, and the renderer that turns tasks into ids and targets."""

from onsil.tokenizer.train import load_tokenizer, train_tokenizer

__all__ = ["load_tokenizer", "train_tokenizer"]
