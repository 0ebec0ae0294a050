"""Judges learn what the rows say, refuse rows that say nothing, and resume to the same bits."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from onsil.documents.types import FileRef
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, Workspace, stage
from onsil.lineage.spelling import file_digest
from onsil.models.checkpoint import save
from onsil.models.heads import new_head
from onsil.models.shape import encoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.train import CLS, MASK, SEP, train
from onsil.training import judging as room
from onsil.training.judging import (
    Case,
    Judging,
    adopt_labelled,
    case_batch,
    cases_of,
    cut_words,
    cuts_of,
    disturbed,
    fitting,
    judge,
    judge_loss,
    load_judge,
    rows_in,
    scores_of,
    train_judge,
    tune,
)
from onsil.training.objectives import steps_by_length

NAMES = ("부정", "긍정")
KIND = {
    "정말 지루하다": "부정",
    "돈이 아깝다": "부정",
    "참 재미있다": "긍정",
    "또 보고 싶다": "긍정",
}
OPENINGS = ("배우가", "어제 본 이 영화는", "친구와 함께 극장에서 봤는데", "음악이")
JUDGING = Judging(epochs=6, rate=3e-3, batch_tokens=48)


@stage(version=1)
def word_list(*, out: Path, run: Run) -> dict:
    text = [f"{a} {b}" for a in OPENINGS for b in KIND] * 3
    train(text, 400).save(str(out / "tokenizer.json"))
    return {}


@stage(version=1)
def fresh(*, context: int, out: Path, run: Run) -> dict:
    save(Transformer(encoder_shape(400, 64, 2, context)).initialise(0), out, {})
    return {}


def labelled(ws: Workspace, rows: list[dict], folder: Path) -> Artifact:
    file = folder / "mine.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
    ref = FileRef("mine.jsonl", file_digest(file))
    return adopt_labelled(ws, file=ref, run={"source": folder, "say": None})


def kind_rows(split: str = "train") -> list[dict]:
    return [
        {"text": f"{a} {b}", "label": label, "split": split}
        for a in OPENINGS
        for b, label in KIND.items()
    ]


class Bench:
    """A workspace with an encoder, a tokenizer and sixteen labelled reviews."""

    def __init__(self, root: Path):
        self.root, self.ws = root, Workspace(root / "ws")
        self.words, self.encoder = word_list(self.ws), fresh(self.ws, context=64)
        self.rows = labelled(self.ws, [*kind_rows(), *kind_rows("heldout")], root)
        self.tokenizer = load_tokenizer(self.words.path)

    def tune(self, judging: Judging = JUDGING, **others: Any) -> Artifact:
        given: dict[str, Any] = {
            "model": self.encoder, "tokenizer": self.words, "labelled": self.rows,
            "names": NAMES, "judging": judging,
        }  # fmt: skip
        return train_judge(self.ws, **(given | others))

    def right(self, made: Artifact) -> float:
        encoder, head, words = load_judge(made.path)
        cases = cases_of(rows_in(self.rows, "heldout"), words, head.names, 64)
        said = judge(encoder, head, cases).argmax(1)
        return float((said == torch.tensor([case.label for case in cases])).float().mean())


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


# ── it learns ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("head", ["votes", "sequence"])
def test_a_judge_learns_and_a_shuffled_one_does_not(bench, head, tmp_path):
    judging = replace(JUDGING, head=head, epochs=12)
    learnt = bench.right(bench.tune(judging))
    wrong = kind_rows()
    labels = [row["label"] for row in wrong]
    random.Random(3).shuffle(labels)
    wrong = [row | {"label": label} for row, label in zip(wrong, labels, strict=True)]
    shuffled = bench.right(bench.tune(judging, labelled=labelled(bench.ws, wrong, tmp_path)))
    assert learnt == 1.0 and shuffled < 0.9


def test_a_number_is_learnt_from_pairs(bench, tmp_path):
    rows = [
        {"text": a, "other": b, "label": 4.5 if label == "긍정" else 1.0, "split": "train"}
        for a in OPENINGS
        for b, label in KIND.items()
    ]
    made = bench.tune(
        replace(JUDGING, epochs=12), labelled=labelled(bench.ws, rows, tmp_path), names=("별점",)
    )
    encoder, head, words = load_judge(made.path)
    cases = cases_of(rows, words, head.names, 64)
    told = judge(encoder, head, cases)[:, 0]
    wanted = torch.tensor([case.label for case in cases])
    alone = float((wanted - wanted.mean()).square().mean())  # the mean for everything
    assert float((told - wanted).square().mean()) < 0.5 * alone


def test_it_goes_on_from_a_crash_to_the_same_bits(bench, monkeypatch, tmp_path):
    judging = replace(JUDGING, seed=5, cut=0.2)
    whole, other, seen = bench.tune(judging), Bench(tmp_path), 0

    def stops(*given):
        nonlocal seen
        seen += 1
        if seen == 9:
            raise KeyboardInterrupt
        return judge_loss(*given)

    monkeypatch.setattr(room, "judge_loss", stops)
    with pytest.raises(KeyboardInterrupt):
        other.tune(judging)
    again = other.tune(judging)
    record = other.ws.record(again.key)
    steps = record["notes"]["steps"] if record else 0
    assert again.digest == whole.digest
    assert seen == steps + 1  # the ninth step twice, no other


# ── it refuses ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rows", "names", "told"),
    [
        (kind_rows("heldout"), NAMES, "0 rows"),
        ([row | {"label": "긍정"} for row in kind_rows()], NAMES, "one answer"),
        (kind_rows(), ("부정", "중립"), "'긍정'"),
        (kind_rows(), ("닮음",), "finite"),
        ([row | {"label": 1e400} for row in kind_rows()], ("닮음",), "inf"),
    ],
    ids=["empty", "one answer", "unknown", "no number", "infinite"],
)
def test_rows_that_cannot_be_learnt_are_refused(bench, rows, names, told, tmp_path):
    with pytest.raises(OnsilError) as e:
        bench.tune(labelled=labelled(bench.ws, rows, tmp_path), names=names)
    assert told in str(e.value).replace("all with the answer", "one answer")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"text": "a", "label": "b"}',
        '{"text": "a", "label": "b", "split": "test"}',
        '{"text": 1, "label": "b", "split": "train"}',
        '{"text": "a", "label": null, "split": "train"}',
    ],
)
def test_a_line_that_is_no_row_is_named(line, tmp_path):
    good = json.dumps(kind_rows()[0])
    (tmp_path / "mine.jsonl").write_text(f"{good}\n{line}\n")
    ref = FileRef("mine.jsonl", file_digest(tmp_path / "mine.jsonl"))
    with pytest.raises(OnsilError, match="Line 2"):
        adopt_labelled(Workspace(tmp_path / "ws"), file=ref, run={"source": tmp_path})


# ── what a row becomes ──────────────────────────────────────────────────────────────────────────


def test_a_pair_is_rendered_with_segments_and_shortened_at_the_longer_one(bench):
    row = {"text": OPENINGS[2] * 6, "other": "음악이", "label": "긍정"}
    a, b = (bench.tokenizer.encode(row[name]).ids for name in ("text", "other"))
    (whole,) = cases_of([row], bench.tokenizer, NAMES, 512)
    assert whole == Case([CLS, *a, SEP, *b, SEP], [0] * (len(a) + 2) + [1] * (len(b) + 1), 1)
    (short,) = cases_of([row], bench.tokenizer, NAMES, 20)
    assert len(short.ids) == 20 and short.ids[-len(b) - 1 :] == [*b, SEP]
    (even,) = cases_of([row | {"other": row["text"]}], bench.tokenizer, NAMES, 23)
    assert even == Case([CLS, *a[:10], SEP, *a[:10], SEP], [0] * 12 + [1] * 11, 1)
    (single,) = cases_of([{"text": "음악이", "label": "부정"}], bench.tokenizer, NAMES, 20)
    assert single == Case([CLS, *b, SEP], [0] * (len(b) + 2), 0)


def test_every_row_is_in_every_epoch_once_beside_rows_of_its_length():
    draw = random.Random(0)
    sizes = [draw.randint(3, 12) for _ in range(400)]
    steps = steps_by_length(sizes, 64, 3, 1)
    assert sorted(i for step in steps for i in step) == sorted([*range(400)] * 3)
    assert all(sum(sizes[i] for i in step) <= 64 for step in steps)
    mixed = [len({sizes[i] for i in step}) for step in steps]
    assert max(mixed) == 2 and sum(n == 2 for n in mixed) <= 3 * 9
    third = len(steps) // 3
    order = [sizes[step[0]] for step in steps[:third]]
    assert order != sorted(order)  # short ones are not always first
    assert {frozenset(s) for s in steps[:third]} != {frozenset(s) for s in steps[third : 2 * third]}
    assert steps == steps_by_length(sizes, 64, 3, 1) != steps_by_length(sizes, 64, 3, 2)
    assert steps_by_length([99, 2], 10, 1, 0) in ([[1], [0]], [[0], [1]])


def test_words_cut_in_two_are_the_same_text(bench):
    text = "어제 본 이 영화는 정말 재미있다"
    ids, cuts = bench.tokenizer.encode(text).ids, cuts_of(bench.tokenizer)
    draw = random.Random(0)
    some = [cut_words(ids, cuts, 0.5, draw) for _ in range(20)]
    assert all(bench.tokenizer.decode(x) == text for x in some)
    assert len({tuple(x) for x in some}) > 5 and all(len(x) >= len(ids) for x in some)
    assert cut_words(ids, cuts, 0.0, draw) == ids


def test_hidden_tokens_are_words_and_their_share_is_kept(bench):
    case = Case([CLS, *range(20, 60), SEP], [0] * 42, 1)
    special = room.specials_of(bench.tokenizer)
    many = [disturbed(case, Judging(hidden=0.25), {}, special, str(i)) for i in range(200)]
    hidden = sum(x.ids.count(MASK) for x in many) / 200 / 40
    assert 0.22 < hidden < 0.28
    assert all(x.ids[0] == CLS and x.ids[-1] == SEP and len(x.ids) == 42 for x in many)
    assert disturbed(case, Judging(hidden=0.0), {}, special, "0") == case
    long = fitting(case, 10)
    assert long.ids == [*case.ids[:9], SEP] and len(long.segments) == 10


@torch.no_grad()
def test_votes_of_a_row_do_not_know_its_neighbours(bench):
    model = Transformer(encoder_shape(400, 64, 2, 64)).initialise(1)
    for task in ("token", "sequence"):
        encoder, head = new_head(model, task, NAMES, seed=1)
        cases = cases_of(kind_rows(), bench.tokenizer, NAMES, 64)
        together = scores_of(encoder, head, cases)
        for case, row in zip(cases, together, strict=True):
            alone = head(encoder.encode(case_batch([case]).ids, case_batch([case]).segments))
            wanted = alone[0].mean(0) if task == "token" else alone[0]
            assert (row - wanted).abs().max() < 1e-5
        assert torch.allclose(judge(encoder, head, cases, 40), together, atol=1e-5)


def test_the_settings_matter(bench, tmp_path):
    def loss_after(judging: Judging, number: int) -> float:
        model = Transformer(encoder_shape(400, 64, 2, 64)).initialise(0)
        encoder, head = new_head(model, "token", NAMES)
        cases = cases_of(kind_rows(), bench.tokenizer, NAMES, 64)
        folder = tmp_path / str(number)
        folder.mkdir()
        loop, _ = tune(encoder, head, cases, bench.tokenizer, judging, folder)
        return list(loop)[-1].loss

    plain = replace(JUDGING, epochs=1)
    others = [{"hidden": 0.3}, {"cut": 0.5}, {"seed": 1}, {"rate": 1e-3}, {"epochs": 2}]
    losses = [loss_after(plain, 0)]
    losses += [loss_after(replace(plain, **other), i) for i, other in enumerate(others, 1)]
    assert len(set(losses)) == len(losses)


def test_the_page_runs(monkeypatch, tmp_path):
    page = Path(__file__).resolve().parents[1] / "docs" / "encoders.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    example = "\n".join(examples)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(example)
    said: list[str] = []
    known: dict[str, Any] = {"__name__": "example", "print": lambda told: said.append(str(told))}
    exec(compile(example, str(tmp_path / "example.py"), "exec"), known)
    assert known["answers"] == ["긍정", "부정"]
    assert said == re.findall(r"^print\(.*\)  # (.*)$", example, re.MULTILINE) and len(said) == 6


def test_pairs_are_judged_by_a_net_that_knows_one_kind_of_segment():
    words = train([f"{a} {b}" for a in OPENINGS for b in KIND] * 3, 400)
    rows = [{"text": a, "other": b, "label": KIND[b]} for a in OPENINGS for b in KIND]
    shape = replace(encoder_shape(words.get_vocab_size(), 32, 1, 64), segments=1)
    net, head = new_head(Transformer(shape).initialise(0), "sequence", NAMES)
    cases = cases_of(rows, words, NAMES, 64)
    loss, number = judge_loss(net, head, cases)
    assert number == len(rows) and torch.isfinite(loss)


def test_a_tokenizer_without_our_marks_is_refused_by_name():
    words = Tokenizer(models.WordLevel({"참": 0, "<|pad|>": 1, "<|end|>": 2}))
    with pytest.raises(OnsilError, match=r"no <\|cls\|>, <\|sep\|>, <\|mask\|>"):
        cases_of([{"text": "참", "label": "긍정"}], words, NAMES, 64)
