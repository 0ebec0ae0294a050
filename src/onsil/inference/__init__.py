"""A model and a prompt to tokens: decoding, greedy, drawn, and under a grammar."""

from onsil.inference.copying import copied_answer
from onsil.inference.generation import Sampling, Writer, load_writer, written

__all__ = ["Sampling", "Writer", "copied_answer", "load_writer", "written"]
