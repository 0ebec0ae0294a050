"""A tiny real model behind a real server, for the tests of the doors. Not a test itself."""

import atexit
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from test_grow import PLAN, onsil

from onsil.lineage import Run, Workspace, stage
from onsil.models.checkpoint import save
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer.templates import ONSIL
from onsil.tokenizer.train import train
from onsil.tokenizer.turns import mark_ids, save_template

TRAP = "<img src=x onerror=\"document.title='broken'\">"
DOCUMENTS = {
    "휴가규정.md": "# 휴가 규정\n\n## 제3조(연차의 이월)\n"
    "쓰지 않은 연차는 다음 해에 5일까지 이월한다.\n\n"
    "## 제4조(병가)\n병가는 1년에 60일까지 쓸 수 있다.\n",
    "출장규정.md": "# 출장 규정\n\n## 제5조(숙박비)\n숙박비는 하루 80,000원까지 지급한다.\n",
    "함정.md": f"# 함정 {TRAP}\n\n## 제1조(상징물)\n기관의 상징물은 {TRAP} 소나무로 한다.\n",
}


@cache
def _grown() -> Path:
    """A folder with documents and a workspace grown from them, once for all tests of a run."""
    folder = Path(tempfile.mkdtemp(prefix="onsil-served-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    documents, plan = folder / "docs", folder / "plan.json"
    documents.mkdir()
    for name, text in DOCUMENTS.items():
        (documents / name).write_text(text)
    plan.write_text(json.dumps(PLAN | {"decoder_epochs": 1, "encoder_epochs": 1}))
    command = onsil(folder / "ws", "grow", str(documents), "--name", "desk", "--plan", str(plan))
    subprocess.run(command, check=True, capture_output=True)
    return folder


def grow_small(folder: Path) -> Path:
    """A workspace of one's own with `desk`, grown in seconds the first time and copied after."""
    shutil.copytree(_grown(), folder, dirs_exist_ok=True)
    return folder / "ws"


@stage(version=1)
def random_pen(*, vocabulary: int, context: int, out: Path, run: Run) -> dict:
    """A chat model that learnt nothing: weights, tokenizer, template."""
    text = [*DOCUMENTS.values(), "Which tree is the symbol? {}[]:,.0123456789 abcdefghijklm"] * 3
    words = train(text, vocabulary)
    words.save(str(out / "tokenizer.json"))
    shape = decoder_shape(words.get_vocab_size(), 64, 2, context)
    save(Transformer(shape).initialise(0), out, {})
    save_template(ONSIL, out)
    marks = mark_ids(words, ONSIL)
    ends = {"eos_token_id": marks[ONSIL.stop], "pad_token_id": marks[ONSIL.pad]}
    (out / "generation_config.json").write_text(json.dumps(ends))
    return {}


def make_pen(folder: Path, context: int = 512) -> Path:
    """A workspace with `pen`, a model that writes (nonsense), in a moment."""
    ws = Workspace(folder / "ws")
    ws.register("pen", random_pen(ws, vocabulary=600, context=context))
    return folder / "ws"


@contextmanager
def server(
    home: Path, *arguments: str, first: str = "", name: str = "desk", **environment: str
) -> Iterator[tuple[str, str]]:
    """`onsil serve NAME` on a free port: (its address, its sign-in link). `first`: a line of Python
    that the process runs before, to make a limit short enough for a test."""
    program = f"{first}\nfrom onsil.cli import main\nmain()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "serve", name, "--port", "0", *arguments],
        env=os.environ | {"ONSIL_HOME": str(home), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        said = "".join(process.stdout.readline() for _ in range(3))
        link = re.search(r"https?://\S+sign-in\S+", said)
        assert link, said + process.stderr.read()
        yield link.group().partition("/sign-in")[0], link.group()
    finally:
        process.terminate()
        process.communicate(timeout=20)
