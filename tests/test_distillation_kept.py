"""What a teacher wrote down, read by a student of a shorter context: cut, nothing lost."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_distillation_stages import LINES, PLAN, given_corpus, given_plan, given_words

from onsil.corpus import document_text, load_corpus
from onsil.lineage import Artifact, Workspace, stage
from onsil.models.checkpoint import load, save
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.training.distillation import by_what_was_written, distill, teach
from onsil.training.objectives import causal_batch
from onsil.training.soft_targets import Kept, kept_loss, kept_of, soft_loss

LONG = [" ".join(LINES[i : i + 8]) for i in range(0, len(LINES), 8)]


@stage(version=1)
def given_teacher(*, out: Path, run) -> dict:
    save(Transformer(decoder_shape(300, 32, 1, 64)).initialise(0), out, run.ancestry)
    return {}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Workspace, dict, Artifact]:
    ws = Workspace(tmp_path_factory.mktemp("ws") / ".onsil")
    run = {
        "corpus": given_corpus(ws, lines=LONG),
        "tokenizer": given_words(ws, lines=LONG, vocabulary=300),
    }
    kept = teach(ws, teacher=given_teacher(ws), **run, top=5, permission="ours", context=64)
    return ws, run, kept


@pytest.mark.parametrize(("planned", "built"), [(16, 64), (64, 16), (9, 9)])
def test_pieces_are_cut_to_what_the_student_reads_and_each_word_keeps_its_teacher(
    written, planned, built
):
    ws, run, kept = written
    student = Transformer(decoder_shape(300, 32, 1, built)).initialise(1)
    course = by_what_was_written(student, kept.path, replace(PLAN, context=planned), 1.0, 0.25)
    assert max(course.sizes) == min(planned, built)
    words, teacher = load_tokenizer(run["tokenizer"].path), load(given_teacher(ws).path)[0]
    texts = [document_text(d) for d in load_corpus(run["corpus"]).train]
    ids = [*words.encode(texts[0]).ids, 1][:64]
    assert len(ids) > 40
    told = kept_of(teacher, causal_batch([ids]), 5)
    step, total, targets = min(planned, built) - 1, 0.0, 0
    cuts = range(0, len(ids) - 1, step)
    for at in cuts:
        batch = causal_batch([ids[at : at + step + 1]])
        part = Kept(*(row[at : at + step] for row in told))
        loss, number = kept_loss(student, batch, part, 1.0, 0.25)
        total, targets = total + float(loss.detach()), targets + number
    loss, number = course.loss_of(0, list(range(len(cuts))))
    assert number == targets == len(ids) - 1
    assert float(loss.detach()) == pytest.approx(total, rel=1e-4)


def test_the_stage_reads_nothing_beyond_the_context_of_the_plan(written, monkeypatch):
    ws, run, kept = written
    read: list[int] = []
    real = Transformer.encode

    def watching(self, ids, *rest, lengths=None, **more):
        read.extend(lengths or (rest[1] if len(rest) > 1 and rest[1] else [ids.size(1)]))
        return real(self, ids, *rest, **({"lengths": lengths} if lengths else {}), **more)

    monkeypatch.setattr(Transformer, "encode", watching)
    plan = given_plan(ws, plan=replace(PLAN, context=16, decoder_epochs=1))
    made = distill(ws, teacher=kept, **run, plan=plan)
    assert load(made.path)[0].shape.context == 16 and max(read) == 15


def test_rows_beyond_the_words_of_a_padded_teacher_are_not_kept():
    teacher = Transformer(decoder_shape(64, 32, 1, 64)).initialise(0)
    student = Transformer(decoder_shape(50, 32, 1, 64)).initialise(1)
    batch = causal_batch([list(range(5, 45))])
    assert int(kept_of(teacher, batch, 32).ids_NK.max()) >= 50
    kept = kept_of(teacher, batch, 50, 2.0, words=50)
    assert int(kept.ids_NK.max()) < 50
    assert torch.allclose(kept.logs_NK.exp().sum(-1), torch.ones(len(kept.logs_NK)), atol=1e-5)
    told, number = kept_loss(student, batch, kept, 2.0)
    wanted, same = soft_loss(student, teacher, batch, 2.0)
    assert number == same and torch.allclose(told, wanted, rtol=1e-4)
