"""Folders that write, folders that make vectors, and the end of a process that does both."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import SENTENCE, WORDS, V, engines, ids_of, small, told
from family_cases import ENCODERS, PAIRS, make
from test_base import published
from torch.nn import functional as F

from onsil.errors import OnsilError
from onsil.inference import written
from onsil.inference.engine import Request
from onsil.inference.loading import load_engine
from onsil.inference.refusals import TooLong
from onsil.models.adapters import new_prompt, save_prompt
from onsil.models.checkpoint import load, save
from onsil.models.shape import encoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer.templates import ONSIL
from onsil.tokenizer.turns import Message, save_template
from onsil.training.supervised import load_chat


@pytest.fixture
def engine_of():
    yield from engines()


# ── folders ─────────────────────────────────────────────────────────────────────────────────────


def saved(model, folder: Path, words: bool = True) -> Path:
    folder.mkdir(parents=True)
    save(model, folder, {})
    if words:
        WORDS.save(str(folder / "tokenizer.json"))
    return folder


def answered(served, text: str, limit: int = 8) -> str:
    ids = served.prompts.text(text)
    return told(served.engine.submit(Request(ids, limit, stop=served.prompts.stop)))[0]


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_a_grown_folder_writes_with_its_decoder_and_reads_with_its_encoder(compute, tmp_path):
    saved(small(), tmp_path / "decoder", False)
    encoder = Transformer(encoder_shape(V, 64, 2)).initialise(1)
    saved(encoder, tmp_path / "encoder", False)
    (tmp_path / "tokenizer").mkdir()
    WORDS.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    served = load_engine(tmp_path, 2, compute)
    try:
        assert served.kind == "decoder" and not served.prompts.chats
        wanted = WORDS.decode(list(written(small(), list(ids_of(SENTENCE)), limit=8)))
        if compute == "fp32":
            assert answered(served, SENTENCE) == wanted.rstrip("\ufffd")
        assert answered(served, SENTENCE)
        rows = served.engine.embed([ids_of(SENTENCE), (5, 6)])
        with torch.no_grad():
            states = encoder.eval().encode(torch.tensor([ids_of(SENTENCE)]))[0].mean(0)
        wanted = F.normalize(states, dim=0).numpy()
        assert np.allclose(rows[0], wanted, atol=1e-5 if compute == "fp32" else 0.02)
        assert rows.dtype == np.float32 and np.allclose(np.linalg.norm(rows, axis=1), 1)
    finally:
        served.close()


@pytest.mark.parametrize("name", ["gpt_neox", "bert", "llama both ways", "t5"])
def test_published_folders_do_what_they_can(name, tmp_path):
    if name == "t5":
        make(PAIRS[name]).save_pretrained(tmp_path)
        words = published("gpt_neox", tmp_path / "other") / "tokenizer.json"
        (tmp_path / "tokenizer.json").write_bytes(words.read_bytes())
    else:
        published(name, tmp_path)
    served = load_engine(tmp_path, 2)
    try:
        if name in ENCODERS:
            assert served.kind == "encoder"
            with pytest.raises(OnsilError):
                served.engine.submit(Request((5,), 5))
        else:
            text = "연차는"
            ids = served.prompts.text(text)
            model = load(tmp_path)[0].eval()
            start = served.engine.runner.start if name == "t5" else 0
            stop = served.prompts.stop
            wanted = list(written(model, list(ids), stop, 8, start=start))
            for _ in range(2):
                tokens = told(served.engine.submit(Request(ids, 8, stop=stop)))[1]
                assert [token.id for token in tokens] == wanted
        if name != "t5":
            assert np.allclose(np.linalg.norm(served.engine.embed([(5, 6, 7)]), axis=1), 1)
            with pytest.raises(TooLong):
                served.engine.embed([()])
        else:
            with pytest.raises(OnsilError):
                served.engine.embed([(5,)])
    finally:
        served.close()


def test_a_decoders_vectors_are_the_mean_of_its_states_whatever_else_goes_on(engine_of):
    engine = engine_of()
    texts = [ids_of(SENTENCE) * 30, ids_of("연차")]
    alone = engine.embed(texts)
    streams = [engine.submit(Request(ids_of(SENTENCE), 100)) for _ in range(4)]
    assert (engine.embed(texts) == alone).all()
    assert (engine.embed(texts[1:]) == alone[1:]).all()
    for stream in streams:
        stream.cancel()
    with torch.no_grad():
        states = small().encode(torch.tensor([texts[0]]))[0].mean(0)
    assert np.allclose(alone[0], F.normalize(states, dim=0).numpy(), atol=1e-4)


def test_a_learnt_prompt_stands_before_every_text(tmp_path):
    model = small()
    prompt = new_prompt(model, 5, 1)
    folder = saved(model, tmp_path / "chat")
    (folder / "prompt").mkdir()
    save_prompt(prompt, model, folder / "prompt", "base", {})
    model.requires_grad_(True)
    save_template(ONSIL, folder)
    chat = load_chat(folder)
    served = load_engine(folder, 2)
    try:
        ids = served.prompts.chat([{"role": "user", "content": "연차는?"}])
        wanted = chat.answer([Message("user", "연차는?")], 12)
        for _ in range(2):
            request = Request(ids, 12, stop=served.prompts.stop)
            assert told(served.engine.submit(request))[0] == wanted.rstrip("\ufffd")
        assert served.engine.context == model.shape.context - 5
    finally:
        served.close()


def test_a_folder_with_a_damaged_template_leaves_no_engine_running(tmp_path):
    folder = saved(small(), tmp_path / "model")
    (folder / "tokenizer_config.json").write_text("{")
    running = set(threading.enumerate())
    with pytest.raises(OnsilError):
        load_engine(folder, 2)
    assert set(threading.enumerate()) <= running


BUSY = """
import sys, threading
from pathlib import Path
from onsil.inference.engine import Request
from onsil.inference.loading import load_engine

served = load_engine(Path(sys.argv[1]), 2)
begun = threading.Barrier(3)

def forever(work):
    work(0)
    begun.wait()
    number = 0
    while number := number + 1:
        work(number)

for work in (
    lambda n: served.engine.embed([(5, 6, 7) * 100]),
    lambda n: served.grammars.json({"const": str(n)}),
):
    threading.Thread(target=forever, args=(work,), daemon=True).start()
written = [served.engine.submit(Request((5, 6), 1000)) for _ in range(3)]
next(written[0])
begun.wait()
"""


def test_a_process_may_end_while_its_threads_compute(tmp_path):
    """A daemon thread that is torn out of a kernel ends the process with std::terminate."""
    folder = saved(small(), tmp_path / "model")
    run = subprocess.run([sys.executable, "-c", BUSY, str(folder)], capture_output=True, text=True)
    assert run.returncode == 0 and "terminate called" not in run.stderr, run.stderr


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "engine.md").read_text(encoding="utf-8")
    code = page.split("```python")[1].split("```")[0]
    saved(small(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "engine.md", "exec"), {"__name__": "page"})
    assert "(1, 64)" in capsys.readouterr().out
