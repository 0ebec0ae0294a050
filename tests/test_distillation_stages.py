"""Distillation as stages: students that learn, runs that are killed, and who may teach."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from test_distillation import decoder

from onsil.corpus import document_text, load_corpus
from onsil.documents.types import Block, Document, write_documents
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, Workspace, stage
from onsil.lineage.spelling import file_digest
from onsil.models.checkpoint import load, save
from onsil.models.prompted import PROMPT
from onsil.models.shape import Shape
from onsil.models.transformer import Transformer
from onsil.tokenizer.train import load_tokenizer, train
from onsil.training import distillation
from onsil.training.base import shipped
from onsil.training.distillation import check_words, compose, distill, teach
from onsil.training.objectives import causal_batch
from onsil.training.permission import check_teacher, teacher_licence
from onsil.training.plan import Plan
from onsil.training.pretraining import pretrain
from onsil.training.soft_targets import (
    kept_loss,
    kept_of,
    soft_loss,
)

LINES = [
    f"{who}은 {day}요일에 {what}을 {how}."
    for who in ("철수", "영희", "민수", "지영")
    for day in "월화수목금토"
    for what in ("책", "빵", "옷")
    for how in ("샀다", "보았다", "골랐다")
]
PLAN = Plan(
    width=32, depth=1, context=64, batch_tokens=256, learning_rate=0.01, decoder_epochs=2,
    encoder_epochs=2, reader_epochs=0, reader_lessons=0, generator_lessons=0, compute="fp32",
    threads=1, compiled=False, seed=0, minutes=1.0, tokens_per_second=1, predicted_seconds=1,
)  # fmt: skip


@stage(version=1)
def given_corpus(*, lines: list[str], out: Path, run) -> dict:
    documents = [
        Document(f"{n}", f"{n:064}", "text", "", (Block("paragraph", line),))
        for n, line in enumerate(lines)
    ]
    write_documents(documents, out / "documents.jsonl")
    split = {d.path: "train" if n % 5 else "heldout" for n, d in enumerate(documents)}
    (out / "split.json").write_text(json.dumps(split))
    return {}


@stage(version=1)
def given_words(*, lines: list[str], vocabulary: int, out: Path, run) -> dict:
    train(lines, vocabulary).save(str(out / "tokenizer.json"))
    return {}


@stage(version=1)
def given_plan(*, plan: Plan, out: Path, run) -> dict:
    (out / "plan.json").write_text(json.dumps(asdict(plan)))
    return {}


@stage(version=1)
def given_checkpoint(*, shape: Shape, card: str, words: str, out: Path, run) -> dict:
    """A published checkpoint: weights without a lineage, a card, a tokenizer."""
    model = Transformer(shape).initialise(1)
    save(model, out, {})
    from safetensors.torch import load_file, save_file

    save_file(load_file(out / "model.safetensors"), out / "model.safetensors", {"format": "pt"})
    if card:
        (out / "README.md").write_text(f"---\nlicense: {card}\n---\n")
    if words:
        (out / "tokenizer.json").write_text(words)
    return {}


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A workspace with a corpus, a tokenizer, plans, and a decoder and an encoder that learned."""
    ws = Workspace(tmp_path_factory.mktemp("ws") / ".onsil")
    corpus = given_corpus(ws, lines=LINES)
    words = given_words(ws, lines=LINES, vocabulary=300)
    long = given_plan(ws, plan=replace(PLAN, width=64, depth=2, decoder_epochs=8))
    plan = given_plan(ws, plan=PLAN)
    teachers = {
        kind: pretrain(ws, corpus=corpus, tokenizer=words, plan=long, kind=kind)
        for kind in ("decoder", "encoder")
    }
    return ws, {"corpus": corpus, "tokenizer": words, "plan": plan}, teachers


def notes_of(ws: Workspace, made) -> dict:
    return ws.record(made.key)["notes"]


def test_a_student_of_the_plans_size_learns_from_its_teacher(grown):
    ws, run, teachers = grown
    alone = pretrain(ws, **run, kind="decoder")
    taught = distill(ws, **run, teacher=teachers["decoder"])
    student, _ = load(taught.path)
    assert student.shape.width == PLAN.width and student.shape.depth == PLAN.depth
    notes = notes_of(ws, taught)
    assert notes["teacher"]["licence"] == "grown here" and notes["steps"] >= 20
    assert json.loads((taught / "curve.json").read_text())[-1][0] == notes["steps"]
    untrained = notes_of(ws, alone)["untrained_bits_per_byte"]
    assert notes["heldout_bits_per_byte"] < untrained / 2


def test_options_of_a_stage_change_the_student_and_are_its_identity(grown):
    ws, run, teachers = grown
    made = {
        distill(ws, **run, teacher=teachers["decoder"], **options).digest
        for options in ({}, {"temperature": 2.0}, {"hard": 0.5}, {"student": teachers["decoder"]})
    }
    assert len(made) == 4


def test_going_on_from_the_teacher_itself_changes_little(grown):
    """At the teacher there is nothing to learn but weight decay, and what AdamW makes of gradients
    that are rounding alone: 1.4 % with one order of additions, 3 % with another."""
    ws, run, teachers = grown
    student = distill(ws, **run, teacher=teachers["decoder"], student=teachers["decoder"])
    before = notes_of(ws, teachers["decoder"])["heldout_bits_per_byte"]
    assert notes_of(ws, student)["heldout_bits_per_byte"] == pytest.approx(before, rel=0.05)


def test_an_encoder_teaches_an_encoder(grown):
    ws, run, teachers = grown
    student = distill(ws, **run, teacher=teachers["encoder"])
    assert not load(student.path)[0].shape.causal
    assert "heldout_bits_per_byte" not in notes_of(ws, student)
    with pytest.raises(OnsilError, match="student is a decoder, the teacher a encoder"):
        distill(ws, **run, teacher=teachers["encoder"], student=teachers["decoder"])


def test_what_was_written_down_teaches_what_the_teacher_would(grown):
    """With all words kept the student is the same up to rounding; with few it still learns."""
    ws, run, teachers = grown
    shared = {key: run[key] for key in ("corpus", "tokenizer")}
    there = distill(ws, **run, teacher=teachers["decoder"])
    bits = notes_of(ws, there)["heldout_bits_per_byte"]
    for top, slack in ((300, 0.01), (8, 0.1)):
        kept = teach(ws, **shared, teacher=teachers["decoder"], top=top, context=PLAN.context)
        student = distill(ws, **run, teacher=kept)
        assert notes_of(ws, student)["heldout_bits_per_byte"] == pytest.approx(bits, rel=slack)
        assert notes_of(ws, student)["teacher"]["licence"] == "grown here"
    mixed = {"temperature": 2.0, "hard": 0.25}
    kept = teach(
        ws, **shared, teacher=teachers["decoder"], top=300, context=PLAN.context, temperature=2.0
    )
    curves = [
        json.loads((distill(ws, **run, teacher=of, **mixed) / "curve.json").read_text())
        for of in (teachers["decoder"], kept)
    ]
    losses = [[loss for _, loss in curve] for curve in curves]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    with pytest.raises(OnsilError, match="encoder: its words cannot be kept"):
        teach(ws, **shared, teacher=teachers["encoder"])


def test_kept_words_are_written_in_several_files_and_read_by_piece(grown, monkeypatch):
    ws, run, teachers = grown
    monkeypatch.setattr(distillation, "SHARD", 4 * 600)
    kept = teach(
        ws, corpus=run["corpus"], tokenizer=run["tokenizer"], teacher=teachers["decoder"],
        top=4, context=PLAN.context, temperature=2.0,
    )  # fmt: skip
    assert len(list(kept.path.glob("kept-*.safetensors"))) > 3
    teacher, student = load(teachers["decoder"].path)[0], decoder(9, words=300)
    course = distillation.by_what_was_written(student, kept.path, PLAN, 2.0, 0.25)
    words = load_tokenizer(run["tokenizer"].path)
    texts = [document_text(d) for d in load_corpus(run["corpus"]).train]
    pieces = [[*words.encode(text).ids, 1] for text in texts]
    assert course.sizes == [len(piece) for piece in pieces]
    chosen = [3, len(pieces) - 1, 40]
    total, targets = course.loss_of(0, chosen)
    batch = causal_batch([pieces[i] for i in chosen])
    wanted, number = kept_loss(student, batch, kept_of(teacher, batch, 4, 2.0), 2.0, 0.25)
    assert targets == number and total.item() == pytest.approx(wanted.item())


def test_other_words_are_refused_word_by_word_and_taught_by_spans(grown):
    ws, run, teachers = grown
    other = given_words(ws, lines=LINES, vocabulary=340)
    run = run | {"tokenizer": other}
    with pytest.raises(OnsilError) as refused:
        distill(ws, **run, teacher=teachers["decoder"])
    size = load_tokenizer(other.path).get_vocab_size()
    assert f"300 words and the student {size};" in str(refused.value) and size > 300
    assert 'level="span"' in str(refused.value) and "compose" in str(refused.value)
    with pytest.raises(OnsilError, match="no tokenizer"):
        distill(ws, **run, teacher=teachers["decoder"], level="span")
    student = distill(
        ws, **run, teacher=teachers["decoder"], level="span",
        teacher_tokenizer=grown[1]["tokenizer"], hard=0.3,
    )  # fmt: skip
    alone = notes_of(ws, pretrain(ws, **run, kind="decoder"))
    halfway = (alone["untrained_bits_per_byte"] + alone["heldout_bits_per_byte"]) / 2
    assert notes_of(ws, student)["heldout_bits_per_byte"] < halfway


def test_equal_sizes_with_other_words_are_refused_too(grown):
    ws = grown[0]
    words, other = (
        load_tokenizer(given_words(ws, lines=lines, vocabulary=300).path)
        for lines in (LINES, LINES[::-1] + [line[::-1] for line in LINES] * 2)
    )
    assert words.get_vocab_size() == other.get_vocab_size()
    with pytest.raises(OnsilError, match="ids differ"):
        check_words(words, other, 300)
    check_words(words, words, 320)  # a table padded to a round number


def test_a_teacher_writes_a_corpus_that_can_be_trained_on(grown):
    ws, run, teachers = grown
    asked = {"teacher": teachers["decoder"], "texts": 40, "opening": 4, "length": 40}
    shared = {key: run[key] for key in ("corpus", "tokenizer")}
    made = compose(ws, **shared, **asked)
    corpus, before = load_corpus(made), load_corpus(run["corpus"])
    assert len(corpus.train) == 40 and corpus.heldout == before.heldout
    words = load_tokenizer(run["tokenizer"].path)
    begun = words.encode(document_text(before.train[0])).ids[:4]
    assert document_text(corpus.train[0]).startswith(words.decode(begun).rstrip("\ufffd"))
    likely = compose(ws, **shared, **asked, temperature=0.0)
    assert likely.digest != made.digest
    true = {line.rsplit(" ", 1)[0] for line in LINES}
    said = [document_text(d).rsplit(" ", 1)[0] for d in load_corpus(likely).train]
    assert sum(line in true for line in said) > 30  # it learned the grammar and writes it
    student = pretrain(ws, **run | {"corpus": made}, kind="decoder")
    assert notes_of(ws, student)["heldout_bits_per_byte"] < 5


def test_a_killed_run_goes_on_to_the_same_bits(grown, tmp_path):
    class Killed(Exception):
        pass

    _, run, teachers = grown
    bare = distillation.distill.__wrapped__
    whole, parts, scratch = tmp_path / "a", tmp_path / "b", tmp_path / "s"
    for folder in (whole, parts, scratch, tmp_path / "t"):
        folder.mkdir()
    bare(**run, teacher=teachers["decoder"], out=whole, run=Run(tmp_path / "t", {}, {}))
    steps = []

    def dies(text: str) -> None:
        raise Killed(text)

    def counted(model, teacher, batch, *rest):
        steps.append(1)
        if len(steps) == 12:
            dies("")
        return soft_loss(model, teacher, batch, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(distillation, "soft_loss", counted)
        bare(**run, teacher=teachers["decoder"], out=parts, run=Run(scratch, {}, {}))
    bare(**run, teacher=teachers["decoder"], out=parts, run=Run(scratch, {}, {}))
    for name in ("model.safetensors", "curve.json"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


# -- who may teach ------------------------------------------------------------------------------


def folder_saying(tmp_path: Path, config: dict, card: str = "", text: str = "") -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if card:
        (tmp_path / "README.md").write_text(f"---\nlicense: {card}\n---\n# model\n")
    if text:
        (tmp_path / "LICENSE").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("config", "card", "text", "name"),
    [
        ({"model_type": "exaone4"}, "", "", "exaone"),
        ({"model_type": "exaone"}, "other\nlicense_name: exaone", "", "exaone"),
        ({"model_type": "llama"}, "", "EXAONE AI Model License Agreement 1.1 - NC", "exaone"),
        ({"model_type": "gptj", "vocab_size": 64512}, "", "", "cc-by-nc-nd-4.0"),
        ({"model_type": "gptj"}, "cc-by-nc-nd-4.0", "", "cc-by-nc-nd-4.0"),
        ({"model_type": "gpt2", "vocab_size": 51200}, "", "", "cc-by-nc-sa-4.0"),
        ({"model_type": "llama"}, "llama3", "", "llama3"),
        ({"model_type": "gpt2", "vocab_size": 50257}, "", "", "unknown"),
    ],
)
def test_these_teachers_are_refused_and_a_permission_is_noted(tmp_path, config, card, text, name):
    folder = folder_saying(tmp_path, config, card, text)
    with pytest.raises(OnsilError) as refused:
        check_teacher(folder)
    said = "does not say under which licence" if name == "unknown" else name
    assert said in refused.value.en[0] and "permission=" in refused.value.ko[2]
    with pytest.raises(OnsilError):
        check_teacher(folder, "  ")
    noted = check_teacher(folder, "the authors, letter of 2 March")
    assert noted["licence"] == name and noted["permission"] == "the authors, letter of 2 March"


@pytest.mark.parametrize("card", ["apache-2.0", "mit", "gemma", "a-licence-of-their-own"])
def test_these_may_teach(tmp_path, card):
    folder = folder_saying(tmp_path, {"model_type": "gpt2", "vocab_size": 51200}, card)
    assert check_teacher(folder) == {"licence": card, "source": "README.md", "permission": ""}


def test_the_stages_refuse_and_the_permission_is_in_the_lineage(grown):
    ws, run, teachers = grown
    words = (run["tokenizer"] / "tokenizer.json").read_text()
    shape = load(teachers["decoder"].path)[0].shape
    shared = {key: run[key] for key in ("corpus", "tokenizer")}
    silent = given_checkpoint(ws, shape=shape, card="", words=words)
    barred = given_checkpoint(ws, shape=shape, card="cc-by-nc-nd-4.0", words=words)
    for teacher, said in ((silent, "does not say"), (barred, "cc-by-nc-nd-4.0")):
        for asked in (
            lambda t=teacher: distill(ws, **run, teacher=t),
            lambda t=teacher: teach(ws, **shared, teacher=t),
            lambda t=teacher: compose(ws, **shared, teacher=t, texts=2),
        ):
            with pytest.raises(OnsilError, match=said):
                asked()
    student = distill(ws, **run, teacher=barred, permission="the authors")
    nodes = ws.record(student.key)["ancestry"]["nodes"]
    assert nodes[student.key]["arguments"]["permission"] == "the authors"
    assert notes_of(ws, student)["teacher"]["licence"] == "cc-by-nc-nd-4.0"
    kept = teach(ws, **shared, teacher=barred, permission="the authors")
    of_kept = distill(ws, **run, teacher=kept)  # asked when it was written
    nodes = ws.record(of_kept.key)["ancestry"]["nodes"]
    assert "the authors" in {n["arguments"].get("permission") for n in nodes.values()}


@stage(version=1)
def prompted(*, decoder: Artifact, out: Path, run) -> dict:
    shutil.copytree(decoder.path, out, dirs_exist_ok=True)
    (out / PROMPT).mkdir()
    (out / PROMPT / "rows").write_bytes(b"1")
    return {}


def test_a_learnt_prompt_is_not_left_out(grown):
    ws, run, teachers = grown
    teacher = prompted(ws, decoder=teachers["decoder"])
    texts = {name: run[name] for name in ("corpus", "tokenizer")}
    for stage_of, given in (
        (distill, run | {"teacher": teacher}),
        (distill, run | {"teacher": teachers["decoder"], "student": teacher}),
        (teach, texts | {"teacher": teacher}),
        (compose, texts | {"teacher": teacher, "texts": 1}),
    ):
        with pytest.raises(OnsilError, match="has a learnt prompt"):
            stage_of(ws, **given)


def test_a_model_tuned_from_a_stranger_is_none_of_ours(grown, tmp_path):
    """Grown from noise or from the shipped base: ours. From anything else adopted: unknown."""
    _, _, teachers = grown
    assert teacher_licence(teachers["decoder"].path).name == "grown here"
    base = shipped() / "decoder" / "model.safetensors"
    model = load(teachers["decoder"].path)[0]
    for digest, name in ((file_digest(base), "grown here"), ("0" * 64, "unknown")):
        files = [{"sha256": digest}]
        nodes = {"k": {"stage": "adopt_base@2", "arguments": {"files": files}}}
        save(model, tmp_path, {"made_by": "k", "nodes": nodes})
        assert teacher_licence(tmp_path).name == name


# -- the page -----------------------------------------------------------------------------------


def test_the_page_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).resolve().parents[1] / "docs" / "distillation.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    scope: dict = {}
    for block in blocks:
        exec(block, scope)
    told = re.findall(r"^print\(.*\)  # (.+)$", "".join(blocks), re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == told and len(told) == 4
