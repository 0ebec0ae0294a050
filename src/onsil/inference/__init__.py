"""A model and a prompt to tokens: decoding, greedy and under a grammar."""

from onsil.inference.copying import copied_answer

__all__ = ["copied_answer"]
