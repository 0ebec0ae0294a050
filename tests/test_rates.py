"""Whatever goes on from a model steps as the width of that model wants, whatever the plan's is."""

import json

import pytest
from test_grow import OFFICE, PLAN
from test_preference import make_decoder, preferences

from onsil.corpus import curate
from onsil.documents import read
from onsil.documents.types import FileRef
from onsil.instruction import write_lessons
from onsil.lineage import Workspace
from onsil.tokenizer import train_tokenizer
from onsil.training.before import train_recurrent
from onsil.training.distillation import distill
from onsil.training.finetuning import finetune, instruct
from onsil.training.online import reinforce
from onsil.training.plan import adopt_plan
from onsil.training.preference import (
    JUDGE_RATE,
    POLICY_RATE,
    adopt_preferences,
    align,
    train_reward,
)
from onsil.training.pretraining import pretrain

SMALL = PLAN | {"width": 32, "depth": 1, "decoder_epochs": 1, "encoder_epochs": 1}
WIDE = PLAN | {"width": 256, "learning_rate": 0.001}  # a narrower model takes twice that


class Asked(Exception):
    """Training would have begun, at this rate."""


def refused(parameters, loss_of, steps, rate, *rest, **more):
    raise Asked(rate)


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("rates")
    ws = Workspace(folder / "ws")
    corpus = curate(ws, documents=read(ws, OFFICE))
    words, small = train_tokenizer(ws, corpus=corpus), adopt_plan(ws, text=json.dumps(SMALL))
    made = {"corpus": corpus, "tokenizer": words, "plan": small}
    models = {kind: pretrain(ws, **made, kind=kind) for kind in ("decoder", "encoder")}
    (folder / "p.jsonl").write_text(preferences(20), encoding="utf-8")
    preferred = adopt_preferences(ws, file=FileRef("p.jsonl", "0"), run={"source": folder})
    plan = adopt_plan(ws, text=json.dumps(WIDE))
    tuned = {"tokenizer": words, "plan": plan}
    return models | {
        "ws": ws,
        "texts": tuned | {"corpus": corpus},
        "lessons": tuned | {"lessons": write_lessons(ws, corpus=corpus)},
        "preferences": tuned | {"lessons": preferred, "decoder": make_decoder(ws, tokenizer=words)},
    }


def student(desk: dict, kind: str):
    return distill(desk["ws"], **desk["texts"], teacher=desk[kind], student=desk[kind])


RUNS = {
    "reader": (lambda d: finetune(d["ws"], encoder=d["encoder"], **d["lessons"]), 1 / 2),
    "generator": (lambda d: instruct(d["ws"], decoder=d["decoder"], **d["lessons"]), 1 / 2),
    "student, decoder": (lambda d: student(d, "decoder"), 1),
    "student, encoder": (lambda d: student(d, "encoder"), 1 / 3),
    "judge": (lambda d: train_reward(d["ws"], **d["preferences"]), JUDGE_RATE),
    "policy, DPO": (lambda d: align(d["ws"], **d["preferences"]), POLICY_RATE),
    "policy, GRPO": (lambda d: reinforce(d["ws"], **d["preferences"], rounds=1), POLICY_RATE),
    "recurrent, of the plan's width": (lambda d: train_recurrent(d["ws"], **d["texts"]), 1 / 2),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_narrower_model_than_the_plans_takes_the_rate_of_its_own_width(desk, name, monkeypatch):
    for room in ("finetuning", "distillation", "preference", "online", "before"):
        monkeypatch.setattr(f"onsil.training.{room}.train", refused)
    run, share = RUNS[name]
    with pytest.raises(Asked) as asked:
        run(desk)
    assert asked.value.args[0] == pytest.approx(0.002 * share)
