"""Examples on the pages of docs/: they run, and say what stands beside them."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"


def runs_as_it_says(page: str) -> None:
    """Run a page's Python in the folder one is in, block after block, and hold what is printed
    against the comment after each `print(…)`."""
    text = (DOCS / page).read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    said: list[str] = []
    known: dict[str, Any] = {"print": lambda *words: said.append(" ".join(map(str, words)))}
    for example in examples:
        exec(example, known)
    promised = re.findall(r"^print\(.*\)  # (.*)$", "\n".join(examples), re.MULTILINE)
    assert said == promised and examples
