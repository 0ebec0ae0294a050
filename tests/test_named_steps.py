"""Whatever is trained: a step that fails names what it had, and a checkpoint whose data it is of.

Each stage gets a learning rate that blows the weights up after its first step.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from test_grow import OFFICE, PLAN
from test_judging import JUDGING, Bench
from test_online import run as rewarded
from test_preference import make_decoder, make_tokenizer, preferences

from onsil.corpus import curate, load_corpus
from onsil.documents import read
from onsil.documents.types import FileRef
from onsil.errors import OnsilError
from onsil.instruction import write_lessons
from onsil.lineage import Workspace
from onsil.tokenizer import train_tokenizer
from onsil.training.before import train_recurrent
from onsil.training.continuing import Continuation, continue_pretraining
from onsil.training.distillation import distill, teach
from onsil.training.distributed import pretrain_parallel
from onsil.training.finetuning import finetune, instruct
from onsil.training.loop import digest_of
from onsil.training.parallel import worker
from onsil.training.plan import adopt_plan
from onsil.training.preference import adopt_preferences, align, train_reward
from onsil.training.pretraining import pretrain

SMALL = PLAN | {"width": 32, "depth": 1, "batch_tokens": 128, "context": 64}
SMALL |= {"reader_epochs": 1, "reader_lessons": 60, "generator_lessons": 60}
WILD = {"learning_rate": 1e30}


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> dict:
    ws = Workspace(tmp_path_factory.mktemp("named") / "ws")
    corpus = curate(ws, documents=read(ws, OFFICE))
    words, calm = train_tokenizer(ws, corpus=corpus), adopt_plan(ws, text=json.dumps(SMALL))
    made = {"corpus": corpus, "tokenizer": words, "plan": calm}
    parts = {kind: pretrain(ws, **made, kind=kind) for kind in ("decoder", "encoder")}
    wild = adopt_plan(ws, text=json.dumps(SMALL | WILD))
    lessons = write_lessons(ws, corpus=corpus)
    parts |= {"corpus": corpus, "tokenizer": words, "plan": wild, "lessons": lessons}
    return parts | {"ws": ws}


def pretraining(desk: dict, kind: str) -> None:
    pretrain(desk["ws"], **some(desk, "corpus", "tokenizer", "plan"), kind=kind)


def in_parallel(desk: dict) -> None:
    with worker():
        told = some(desk, "corpus", "tokenizer", "plan")
        pretrain_parallel(desk["ws"], **told, kind="decoder")


def recurrent(desk: dict) -> None:
    train_recurrent(desk["ws"], **some(desk, "corpus", "tokenizer", "plan"))


def reader(desk: dict) -> None:
    finetune(desk["ws"], **some(desk, "encoder", "tokenizer", "lessons", "plan"))


def generator(desk: dict) -> None:
    instruct(desk["ws"], **some(desk, "decoder", "tokenizer", "lessons", "plan"))


def student(desk: dict, level: str) -> None:
    words = {"teacher_tokenizer": desk["tokenizer"], "level": level}
    told = some(desk, "corpus", "tokenizer", "plan") | words
    distill(desk["ws"], **told, teacher=desk["decoder"])


def continued(desk: dict) -> None:
    how = Continuation(epochs=6, rate=1e30, batch_tokens=128, context=64)
    told = some(desk, "corpus", "tokenizer") | {"model": desk["decoder"]}
    continue_pretraining(desk["ws"], **told, replay=desk["corpus"], how=how)


def some(desk: dict, *names: str) -> dict:
    return {name: desk[name] for name in names}


RUNS: dict[str, Callable[[dict], None]] = {
    "decoder": lambda desk: pretraining(desk, "decoder"),
    "encoder": lambda desk: pretraining(desk, "encoder"),
    "in parallel": in_parallel,
    "recurrent": recurrent,
    "reader": reader,
    "generator": generator,
    "student, words": lambda desk: student(desk, "token"),
    "student, spans": lambda desk: student(desk, "span"),
    "continued": continued,
}


def stopped(ws: Workspace, run: Callable[[], None]) -> tuple[str, list[str]]:
    """What the run that must fail says, and the data of the checkpoints it leaves."""
    before = set(ws.root.glob("work/**/latest.json"))
    with pytest.raises(OnsilError, match="Training stopped at step") as caught:
        run()
    left = set(ws.root.glob("work/**/latest.json")) - before
    return caught.value.en[0], [json.loads(file.read_text())["data"] for file in left]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_fails_names_its_documents_and_its_data(desk, name):
    said, data = stopped(desk["ws"], lambda: RUNS[name](desk))
    documents = {d.path for d in load_corpus(desk["corpus"]).train}
    named = re.search(r"(?:targets|finite) \((.*)\)\.$", said)
    assert named and set(named[1].removesuffix(" …").split(", ")) <= documents
    assert data and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in data)


def test_kept_words_are_named_by_their_shard_and_row(desk):
    kept = teach(desk["ws"], **some(desk, "corpus", "tokenizer"), teacher=desk["decoder"])
    told = some(desk, "corpus", "tokenizer", "plan")
    said, _ = stopped(desk["ws"], lambda: distill(desk["ws"], **told, teacher=kept))
    assert re.search(r"\(kept-00000 row \d+", said)


@pytest.mark.parametrize("learn", [train_reward, align])
def test_preferences_are_named_by_their_lines(learn, tmp_path):
    ws = Workspace(tmp_path / "ws")
    (tmp_path / "p.jsonl").write_text(preferences(40), encoding="utf-8")
    told = {"file": FileRef("p.jsonl", "0"), "run": {"source": tmp_path}}
    parts = {"tokenizer": make_tokenizer(ws), "lessons": adopt_preferences(ws, **told)}
    plan = adopt_plan(ws, text=json.dumps(SMALL | WILD))
    decoder = make_decoder(ws, tokenizer=parts["tokenizer"])
    said, data = stopped(ws, lambda: learn(ws, **parts, decoder=decoder, plan=plan))
    assert re.search(r"targets \(preferences\.jsonl:\d+", said) and len(data[0]) == 64


def test_prompts_are_named_by_their_numbers(tmp_path):
    with pytest.raises(OnsilError, match=r"step 1: loss nan, .* \(prompt \d+, prompt \d"):
        rewarded(tmp_path, rewards=lambda asked, answers: [float("nan")] * len(asked))


def test_labelled_rows_are_named_by_their_numbers(tmp_path):
    bench = Bench(tmp_path)
    said, data = stopped(bench.ws, lambda: bench.tune(replace(JUDGING, rate=1e30)))
    assert re.search(r"targets \(row \d+", said) and len(data[0]) == 64


def test_a_digest_is_of_all_that_it_is_told():
    how = Continuation()
    told = [([1, 2], "a"), ([1], [2], "a"), ([1, 2], "b"), (how,), (replace(how, seed=1),)]
    digests = {digest_of(*data) for data in told}
    assert len(digests) == len(told) and digest_of(*told[0]) in digests
