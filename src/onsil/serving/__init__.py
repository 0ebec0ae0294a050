"""Doors: a grown model behind HTTP, for programs (OpenAI's chat) and for people (a page)."""
