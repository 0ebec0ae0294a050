"""A model and a prompt to tokens: decoding, greedy, drawn, and under a grammar."""

from onsil.inference.copying import copied_answer
from onsil.inference.generation import Writer, load_writer, written
from onsil.inference.sampling import Sampling

__all__ = ["Sampling", "Writer", "copied_answer", "load_writer", "written"]
