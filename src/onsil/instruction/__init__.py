"""Corpus to lessons: what a document teaches about itself."""

from onsil.instruction.lessons import load_lessons, write_lessons

__all__ = ["load_lessons", "write_lessons"]
