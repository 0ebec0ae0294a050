"""Jupyter notebooks to blocks: prose as Markdown, code as paragraphs, outputs left out.

Outputs can be made again and are mostly numbers and pictures; what the author wrote is in the
cells. Left out besides: raw cells, attachments.
"""

import json
from typing import Any

from onsil.documents.markdown import read_markdown
from onsil.documents.text import decode
from onsil.documents.types import Block
from onsil.errors import OnsilError


def read_ipynb(data: bytes) -> tuple[str, list[Block]]:
    """The title of the notebook's metadata, and its cells in order."""
    try:
        notebook = json.loads(decode(data)[0])
        cells = notebook["cells"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise _not_a_notebook(f"{type(error).__name__}: {error}") from error
    blocks: list[Block] = []
    for cell in cells:
        source = _source(cell.get("source", ""))
        if cell.get("cell_type") == "markdown":
            blocks += read_markdown(source.encode())[1]
        elif cell.get("cell_type") == "code" and source.strip():
            blocks.append(Block("paragraph", source.strip("\n")))
    title = notebook.get("metadata", {}).get("title", "")
    return title if isinstance(title, str) else "", blocks


def _source(source: Any) -> str:
    return "".join(source) if isinstance(source, list) else str(source)


def _not_a_notebook(what: str) -> OnsilError:
    return OnsilError(
        en=(
            f"this is not a notebook of version 4 ({what})",
            "A notebook is JSON with a list of cells; before version 4 they stood elsewhere.",
            "Open it in Jupyter and save it again.",
        ),
        ko=(
            f"버전 4 노트북 파일이 아닙니다({what}).",
            "노트북은 셀 목록이 담긴 JSON이며, 버전 4 이전에는 셀이 다른 자리에 있었습니다.",
            "주피터(Jupyter)에서 열어 다시 저장해 주세요.",
        ),
    )
