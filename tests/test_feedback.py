"""Feedback: what is kept, what the owner adopts of it, and what the next grow is taught."""

import json
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from served import grow_small
from typer.testing import CliRunner

from onsil.cli import app
from onsil.errors import OnsilError
from onsil.evaluation.examination import WARNED
from onsil.evaluation.questions import Question
from onsil.grow import grow
from onsil.instruction import load_lessons
from onsil.instruction.feedback import adopted_for, lessons_from
from onsil.lineage import Artifact, Workspace, children, history
from onsil.retrieval.gate import borrowed_evidence
from onsil.serving.feedback import (
    LARGEST,
    adopt,
    adopted_rows,
    checked,
    drop,
    keep,
    read_feedback,
)
from onsil.serving.guard import Refused
from onsil.training.finetuning import some_of
from onsil.training.plan import FEEDBACK

QUESTION = "쓰지 않은 연차는 며칠까지 이월되나요?"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return grow_small(tmp_path_factory.mktemp("feedback"))


@pytest.fixture
def ws(home, tmp_path) -> Workspace:
    """A workspace of its own to write to."""
    shutil.copytree(home, tmp_path / "ws")
    return Workspace(tmp_path / "ws")


def said(**changed) -> dict:
    return {"request_id": "r1", "verdict": "bad", "question": QUESTION} | changed


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"verdict": "maybe"}, "verdict"),
        ({"question": " "}, "question"),
        ({"request_id": ""}, "request_id"),
        ({"correct": "가" * 2001}, "correct"),
        ({"answer": 5}, "answer"),
        ({"answer": "\ud800"}, "answer"),
        ({"owner": "me"}, "owner"),
    ],
)
def test_feedback_that_cannot_be_meant_is_named(changed, named):
    with pytest.raises(Refused) as refused:
        checked(said(**changed))
    assert refused.value.status == 400 and refused.value.param == named


def test_the_last_word_of_a_person_counts_and_identifiers_are_masked(tmp_path):
    keep(tmp_path, "desk", "kim-1", said(correct="010-1234-5678"))
    keep(tmp_path, "desk", "kim-1", said(verdict="good"))
    keep(tmp_path, "desk", "lee-1", said(correct="hong@example.com", question="줄\u2028바꿈\x85"))
    path = tmp_path / "feedback" / "feedback.jsonl"
    with path.open("a") as f:
        f.write('{"cut')
    assert [r["verdict"] for r in read_feedback(tmp_path, "desk")] == ["good", "bad"]
    assert "1234" not in path.read_text() and "hong" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open("ab") as f:
        f.truncate(LARGEST)
    with pytest.raises(Refused) as refused:
        keep(tmp_path, "desk", "kim-1", said())
    assert refused.value.status == 507


CITED = {"document": "휴가규정.md", "heading": "제3조(연차의 이월)"}


def corpus_of(ws: Workspace) -> Path:
    record = ws.record(ws.resolve("desk")[2].key) or {}
    return ws.artifact(record["arguments"]["corpus"]["artifact"]).path


def lessons(ws: Workspace, rows: list[dict], gold=()) -> tuple[list, dict]:
    return lessons_from(rows, corpus_of(ws), gold)


def test_a_right_answer_is_a_lesson_where_it_stands(ws):
    rows = [
        said(correct="5일까지", **CITED),
        said(verdict="good", answer="60일까지", question="병가는 며칠인가요?"),
        said(verdict="good", question="주차장은 몇 층인가요?", **CITED),
        said(),  # a mere no
        said(correct="화성에서만"),  # in no passage
        said(correct="0일까지", question="병가는 며칠인가요?"),  # inside of 60일
    ]
    made, counts = lessons(ws, rows)
    assert counts == {"lessons": 3, "not placed": 3}
    right, good, none = made
    assert right.passage[slice(*right.answer)] == "5일까지" and right.heading == CITED["heading"]
    assert good.passage[slice(*good.answer)] == "60일까지" and good.document == "휴가규정.md"
    assert none.answer is None and none.document == "휴가규정.md"
    assert {lesson.kind for lesson in made} == {FEEDBACK}


@pytest.mark.parametrize(
    ("asked", "answers", "place"),
    [
        ("쓰지 않은 연차는, 며칠까지 이월되나요", ("다른 답",), "휴가규정.md"),  # the same letters
        ("쓰지 않은 연차는 이월되지 않나요?", (), "휴가규정.md"),  # the same terms
        ("남은 휴가는 얼마나 넘기죠?", ("5일",), "폴더/휴가규정.md"),  # its answer at its place
    ],
)
def test_what_gold_asks_is_not_taught(ws, asked, answers, place):
    where = ((place, CITED["heading"]),) if answers else ()
    gold = [Question("g1", "test", asked, answers, where, "none")]
    piece = said(correct="5일까지", **CITED)
    assert lessons(ws, [piece], gold) == ([], {"asked in gold": 1})
    for other in (
        Question(
            "g2", "test", "숙박비는 하루 얼마인가요?", ("5일",), (("출장규정.md", "제5조"),), ""
        ),
        Question("g3", "dev", "병가는 며칠까지 쓰나요?", ("60일",), where, ""),
    ):
        assert lessons(ws, [piece], [other])[1] == {"lessons": 1}


def test_a_lesson_about_a_held_out_document_is_not_taught(ws):
    shutil.copytree(corpus_of(ws), ws.root / "held")
    split = ws.root / "held" / "split.json"
    split.chmod(0o600)
    split.write_text(
        split.read_text().replace('"휴가규정.md": "train"', '"휴가규정.md": "heldout"')
    )
    found = lessons_from([said(correct="5일까지", **CITED)], split.parent, ())
    assert found == ([], {"held out": 1})


def test_what_is_adopted_adds_up_and_can_be_dropped(ws):
    first = keep(ws.root, "desk", "owner", said(correct="5일까지"))
    second = keep(ws.root, "desk", "owner", said(request_id="r2", correct="60일까지"))
    other = keep(ws.root, "hr", "owner", said(request_id="r3", correct="5일까지"))
    assert adopt(ws, "desk", [first]) == ("desk.feedback@v1", {"lessons": 1})
    both = adopt(ws, "desk", [second])
    assert both == ("desk.feedback@v2", {"lessons": 2}) == adopt(ws, "desk")  # of hr's nothing
    assert [row["id"] for row in adopted_rows(ws, "desk")] == [first, second]
    assert drop(ws, "desk", [second]) == ("desk.feedback@v1", {"lessons": 1})
    assert [row["id"] for row in adopted_rows(ws, "desk")] == [first]
    again = keep(ws.root, "desk", "owner", said(correct="6일까지"))  # a change of mind
    adopt(ws, "desk", [again])
    assert [row["id"] for row in adopted_rows(ws, "desk")] == [again]
    for call, wrong in ((adopt, other), (adopt, "feedback-x"), (drop, first)):
        with pytest.raises(OnsilError, match=f"no such feedback: {wrong}"):
            call(ws, "desk", [again, wrong])
    drop(ws, "desk", [again])
    assert adopted_for(ws, "desk") is None and not list((ws.root / "feedback").glob("?" * 20 + "*"))


def test_of_two_words_within_a_millisecond_the_later_counts(ws, monkeypatch):
    """Ids are drawn by chance and tell nothing of the order."""
    times, ids = iter((1e9 + 1e-5, 1e9 + 2e-5)), iter(("f" * 32, "0" * 32))
    here = "onsil.serving.feedback."
    monkeypatch.setattr(f"{here}time", SimpleNamespace(time=lambda: next(times)))
    drawn = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=next(ids)))
    monkeypatch.setattr(f"{here}uuid", drawn)
    for right in ("5일까지", "60일까지"):
        adopt(ws, "desk", [keep(ws.root, "desk", "owner", said(correct=right))])
    assert [row["correct"] for row in adopted_rows(ws, "desk")] == ["60일까지"]


def test_what_others_send_stays_on_its_line_of_the_terminal(ws, monkeypatch):
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    odd = "연차?\x1b]0;owned\x07\nfeedback-000000000000  good  adopted\u202e"
    keep(ws.root, "desk", "kim-1", said(question=odd, correct="\x1b]52;c;cm0=\x07", **CITED))
    (line,) = CliRunner().invoke(app, ["feedback", "desk"]).output.splitlines()
    assert line.isprintable() and "연차?" in line and "owned" in line


def test_the_owner_sees_adopts_and_drops_at_the_terminal(ws, monkeypatch):
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    typed = CliRunner()

    def said_to(*words: str) -> str:
        result = typed.invoke(app, list(words))
        assert result.exit_code == 0, result.output
        return result.output

    assert "Nobody has said anything" in said_to("feedback", "desk")
    one = keep(ws.root, "desk", "owner", said(correct="5일까지", **CITED))
    assert "adopted" not in said_to("feedback", "desk")
    assert "taught: 1" in said_to("feedback", "desk", "--adopt", "all")
    (line,) = said_to("feedback", "desk").splitlines()
    assert one in line and "adopted" in line and QUESTION in line and "5일까지" in line
    assert "desk.feedback" not in said_to("models")  # a name, and no model
    assert "taught: 0" in said_to("feedback", "desk", "--drop", one)
    assert "adopted" not in said_to("feedback", "desk")


def test_what_was_adopted_is_taught_by_the_next_grow(home, ws):
    """Ask, correct, adopt, grow: the lineage names the lessons, and what gold asks is left out."""
    told: list[str] = []
    documents, plan = home.parent / "docs", (home.parent / "plan.json").read_text()

    def again() -> Artifact:
        return grow(ws, documents, "desk", plan_text=plan, tell=told.append).model

    assert again().digest == ws.resolve("desk@v1")[2].digest
    keep(ws.root, "desk", "owner", said(correct="5일까지", **CITED))
    keep(ws.root, "desk", "owner", said(request_id="r2", question="병가는 며칠?", correct="60일"))
    adopt(ws, "desk")
    row = {"question": QUESTION, "answerable": True, "answers": ["5일"], **CITED}
    gold = [row | {"id": split, "split": split} for split in ("dev", "test")]
    lost = [f"q{n}" for n in range(3, 10)]  # more than are named while it grows
    gone = {"split": "test", "question": "?", "heading": "제99조"}
    gold += [row | gone | {"id": name} for name in lost]
    (documents / "gold.jsonl").write_text("\n".join(map(json.dumps, gold)))
    made = again()
    words = "adopted answers taught: 1; left out: 1 asked in the examination."
    assert any(words in line for line in told)
    where = f"no passage stands at {CITED['document']} > 제99조"
    warned = [line.strip() for line in told if "no passage stands" in line]
    assert warned == [f"gold.jsonl {name}: {where}" for name in lost[:WARNED]]
    records = {record["stage"]: record for _, record in history(ws, made.key)}
    card = json.loads((ws.artifact(records["evaluate"]["object"]) / "card.json").read_text())
    assert card["gold"]["nowhere"] == lost
    assert card["gold"]["borrowed"] == len(borrowed_evidence()[1])  # one question is not enough
    adopted = adopted_for(ws, "desk")
    assert adopted and records["adopt_feedback"]["object"] == adopted.digest
    taught = records["finetune"]["arguments"]["lessons"]["artifact"]
    assert taught == records["instruct"]["arguments"]["lessons"]["artifact"]
    assert taught == records["add_feedback"]["object"] != records["write_lessons"]["object"]
    asked = records["gather_questions"]["arguments"]["lessons"]["artifact"]
    assert asked == records["write_lessons"]["object"]  # the examination never sees it
    given = [row for row in load_lessons(ws.artifact(taught).path) if row.kind == FEEDBACK]
    assert [(row.question, row.passage[slice(*row.answer)]) for row in given] == [
        ("병가는 며칠?", "60일")
    ]
    report = next(iter(children(ws, made, "write_report")))
    assert words in (ws.artifact(report["object"]).path / "report.html").read_text()
    drop(ws, "desk", [row["id"] for row in adopted_rows(ws, "desk")])
    (documents / "gold.jsonl").unlink()
    assert again().digest == ws.resolve("desk@v1")[2].digest


def test_a_lesson_of_feedback_is_read_however_few_are():
    rules = [{"kind": "number", "n": n} for n in range(100)]
    given = [{"kind": FEEDBACK, "n": n} for n in range(3)]
    assert some_of(rules, 4) == [rules[n] for n in (0, 25, 50, 75)]
    some = some_of([*rules, *given], 10)
    assert len(some) == 10 and some[-3:] == given
    assert some_of([*rules, *given], 2) == given
