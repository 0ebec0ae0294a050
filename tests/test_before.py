"""n-gram and recurrent models as artefacts: kept, read back, measured like a decoder."""

import json

import pytest
from test_grow import OFFICE, PLAN

from onsil.corpus import curate, load_corpus
from onsil.documents import read
from onsil.errors import OnsilError
from onsil.lineage import Workspace, file_lineage
from onsil.models.ngram import NGram
from onsil.models.recurrent import RecurrentLM
from onsil.tokenizer import train_tokenizer
from onsil.training.before import measured, read_splits, train_ngram, train_recurrent
from onsil.training.plan import adopt_plan
from onsil.training.pretraining import pretrain


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    ws = Workspace(tmp_path_factory.mktemp("before") / "ws")
    corpus = curate(ws, documents=read(ws, OFFICE))
    tokenizer = train_tokenizer(ws, corpus=corpus)
    return ws, {"corpus": corpus, "tokenizer": tokenizer}


def noted(ws, artifact) -> dict:
    return (ws.record(artifact.key) or {})["notes"]


def test_the_ngram_kept_is_the_baseline_of_the_decoder(parts):
    ws, made = parts
    model = train_ngram(ws, **made)
    back = NGram.load(model / "ngram.safetensors")
    ids, size, _ = read_splits(**made)
    assert (
        measured(back, ids, size)["heldout_bits_per_byte"]
        == noted(ws, model)["heldout_bits_per_byte"]
    )
    plan = adopt_plan(ws, text=json.dumps(PLAN | {"decoder_epochs": 1}))
    decoder = pretrain(ws, **made, plan=plan, kind="decoder")
    floor = noted(ws, decoder)["ngram_bits_per_byte"]
    assert floor == noted(ws, model)["heldout_bits_per_byte"]
    stages = {n["stage"] for n in file_lineage(model / "ngram.safetensors")["nodes"].values()}
    assert {"curate@", "train_tokenizer@"} <= {stage.rstrip("0123456789") for stage in stages}


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_recurrent_model_learns_and_is_read_back(parts, cell):
    ws, made = parts
    bits = []
    for epochs in (1, 6):
        plan = adopt_plan(ws, text=json.dumps(PLAN | {"decoder_epochs": epochs}))
        model = train_recurrent(ws, **made, plan=plan, cell=cell)
        back = RecurrentLM.load(model.path)
        ids, size, _ = read_splits(**made)
        bits.append(measured(back, ids, size)["heldout_bits_per_byte"])
        assert bits[-1] == noted(ws, model)["heldout_bits_per_byte"]
        assert back.shape.cell == cell
    assert bits[1] < bits[0]


def test_a_run_that_fails_names_the_documents_of_its_step(parts):
    """A learning rate that blows the weights up: the message says what was being read."""
    ws, made = parts
    plan = adopt_plan(ws, text=json.dumps(PLAN | {"learning_rate": 1e30}))
    with pytest.raises(OnsilError, match="Training stopped at step") as caught:
        pretrain(ws, **made, plan=plan, kind="encoder")
    assert any(f"({d.path}" in str(caught.value) for d in load_corpus(made["corpus"]).train)
