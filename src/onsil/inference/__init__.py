"""A model and a prompt to tokens: decoding, greedy, drawn, and under a grammar."""

from onsil.inference.copying import copied_answer
from onsil.inference.generation import Writer, load_writer, written
from onsil.inference.sampling import Sampling, check_drawing

__all__ = ["Sampling", "Writer", "check_drawing", "copied_answer", "load_writer", "written"]
