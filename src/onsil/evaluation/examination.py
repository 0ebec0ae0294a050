"""The examination: every reader asked every question, the choice made on dev, test scored once.

Writes card.json (everything a report shows) and choice.json (the reader and its gate, all a model
needs to answer). Each trained reader has a control of the same architecture with random weights:
what that still scores is what the search and the gate do without training.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from onsil.corpus import load_corpus
from onsil.corpus.names import shown_path
from onsil.corpus.pii import mask
from onsil.documents.types import FileRef, read_documents
from onsil.errors import say
from onsil.evaluation.metrics import interval, paired_difference, risk_coverage, scorecard
from onsil.evaluation.questions import Question, ask_all, gated, load_gold, misplaced
from onsil.evaluation.report_words import READERS
from onsil.lineage import Artifact, Run, stage
from onsil.models.checkpoint import load
from onsil.models.ngram import Seen
from onsil.models.transformer import Transformer
from onsil.retrieval.bm25 import BM25
from onsil.retrieval.gate import EVIDENCE, borrowed_evidence, calibrate
from onsil.retrieval.generator import generator_of
from onsil.retrieval.passages import passages_of
from onsil.retrieval.ranking import Search, find
from onsil.retrieval.readers import Reader, best_sentence, typed_sentence
from onsil.retrieval.span_reader import TRAINED
from onsil.tokenizer import load_tokenizer
from onsil.training.finetuning import load_reader, new_head
from onsil.training.plan import load_plan

NON_NEURAL = ("best_sentence", "typed_sentence")
NEURAL = (*TRAINED, "generator")
FROM_LESSONS, FEWEST, SEEN_RUN = 240, 30, 8
ENOUGH, WARNED = 100, 5  # dev questions of people; questions named that have no place


@stage(version=6)
def gather_questions(
    *, lessons: Artifact, gold: FileRef | None = None, out: Path, run: Run
) -> dict:
    """questions.jsonl: the folder's gold, or held-out lessons when it has none; and about.json:
    which of the two, and the test questions that stand in the lessons a model is trained on."""
    if gold is not None:
        questions, source = load_gold(run.source / gold.path), "gold.jsonl"
    else:
        questions, source = questions_from_lessons(lessons), "lessons"
    with (out / "questions.jsonl").open("w", encoding="utf-8") as f:
        for question in questions:
            f.write(json.dumps(asdict(question), ensure_ascii=False) + "\n")
    with (lessons / "lessons.jsonl").open(encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    seen = seen_in([row["question"] for row in rows if row["split"] == "train"], questions)
    _write(out / "about.json", {"source": source, "seen": seen})
    return {"source": source, "questions": len(questions), "seen": len(seen)}


def seen_in(training: Sequence[str], questions: Sequence[Question]) -> list[str]:
    """Ids of test questions half of whose runs of `SEEN_RUN` letters stand in the training
    questions: their score says less about new questions (contamination, Brown et al. 2020)."""

    def letters(text: str) -> list[int]:
        return [ord(c) for c in text if c.isalnum()]

    known = Seen([letters(text) for text in training], SEEN_RUN)
    return [
        question.id
        for question in questions
        if question.split == "test" and (known.overlap(letters(question.text)) or 0.0) >= 0.5
    ]


def questions_from_lessons(lessons: Artifact) -> list[Question]:
    """Up to `FROM_LESSONS` held-out lessons, each asked twice: with its document, and without.
    Fewer than `FEWEST` held out, and twice as many of all are: a handful sets no gate."""
    with (lessons / "lessons.jsonl").open(encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    rows = [r for r in rows if r["answer"]]
    held = [r for r in rows if r["split"] == "heldout"]
    held, most = (held, FROM_LESSONS) if len(held) >= FEWEST else (rows, 2 * FEWEST)
    held = held[:: max(1, len(held) // most)][:most]
    questions = []
    for n, row in enumerate(held):
        answer = row["passage"][slice(*row["answer"])]
        place = ((row["document"], row["heading"]),)
        split = "dev" if n % 2 else "test"
        common = (split, row["question"])
        questions.append(Question(f"l{n}", *common, (answer,), place, row["kind"]))
        questions.append(Question(f"l{n}x", *common, (), (), "none", row["document"]))
    return questions


def load_questions(folder: Artifact) -> list[Question]:
    with (folder / "questions.jsonl").open(encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    return [
        Question(
            **row | {"answers": tuple(row["answers"]), "places": tuple(map(tuple, row["places"]))}
        )
        for row in rows
    ]


def examine(
    index: BM25,
    readers: dict[str, Reader],
    questions: Sequence[Question],
    search: Search = find,
    tell: Callable[[str], None] = lambda text: None,
    by_people: bool = True,
) -> tuple[dict, dict, dict]:
    """(rows by reader and split, gates, scorecards). Gates are calibrated on dev alone, those of
    readers without trained parts also on borrowed evidence where people have not asked
    enough; `tell` hears which reader is asked next."""
    rows, gates, cards = {}, {}, {}
    alone = enough(questions, by_people)
    found: dict[str, list] = {"dev": [], "test": []}
    for question in questions:
        hits = search(index, question.text, without=question.without)
        found[question.split].append((question, hits))
    for nth, (name, reader) in enumerate(readers.items(), 1):
        ko, en = READERS.get(name, (name, name))
        tell(f"  {nth}/{len(readers)} {say(en, ko)}")
        asked = {split: ask_all(index, reader, some) for split, some in found.items()}
        read = [r for r in asked["dev"] if r["reading"]]
        features, right = [r["reading"].features for r in read], [r["right"] for r in read]
        if name in NON_NEURAL and not alone:
            known, known_right = borrowed_evidence()
            features, right = [*features, *known], [*right, *known_right]
        gates[name] = calibrate(features, right)
        rows[name] = {s: gated(asked[s], gates[name]) for s in asked}
        cards[name] = {s: scorecard(rows[name][s]) for s in asked}
    return rows, gates, cards


def enough(questions: Sequence[Question], by_people: bool) -> bool:
    """Whether people asked enough on dev to set a gate and to choose a reader by. What the rule
    teacher asks is too easy for either (docs/log.md, "A gate for a folder without questions")."""
    return by_people and sum(q.split == "dev" for q in questions) >= ENOUGH


def best_on_dev(cards: dict, names: Sequence[str]) -> str:
    return max(names, key=lambda n: (cards[n]["dev"]["f1"] or [0.0])[0])


def answering(cards: dict, rows: dict, by_people: bool) -> str:
    """The reader that answers: the best on dev without trained parts, unless people asked enough
    there and the best trained one is clear, question by question (95 %), of that one and of itself
    with random weights: else what it gains is not what it learnt."""
    plain, trained = best_on_dev(cards, NON_NEURAL), best_on_dev(cards, NEURAL)
    others = (plain, f"{trained}_random") if by_people else ()
    gained = [paired_difference(rows[trained]["dev"], rows[other]["dev"]) for other in others]
    return trained if gained and all(gain and gain[1] > 0 for gain in gained) else plain


@stage(version=22)
def evaluate(
    *,
    corpus: Artifact,
    documents: Artifact,
    questions: Artifact,
    tokenizer: Artifact,
    reader: Artifact,
    generator: Artifact,
    decoder: Artifact,
    encoder: Artifact,
    plan: Artifact,
    out: Path,
    run: Run,
) -> dict:
    """card.json and choice.json for one grown reader against the non-neural ones."""
    torch.set_num_threads(load_plan(plan).threads)
    index = BM25(passages_of(load_corpus(corpus).documents))
    words = load_tokenizer(tokenizer.path)
    model, head = load_reader(reader.path)
    blank = Transformer(model.shape).initialise(1).eval()
    readers: dict[str, Reader] = {
        "best_sentence": best_sentence,
        "typed_sentence": typed_sentence,
    }
    for name, made_of in TRAINED.items():
        readers[name] = made_of(model, head, words)
        readers[f"{name}_random"] = made_of(blank, new_head(model.shape.width, 1), words)
    speaker = load(generator.path)[0].eval()
    readers["generator"] = generator_of(speaker, words)
    readers["generator_random"] = generator_of(
        Transformer(speaker.shape).initialise(1).eval(), words
    )
    asked = load_questions(questions)
    about = json.loads((questions / "about.json").read_text(encoding="utf-8"))
    by_people = about["source"] != "lessons"
    rows, gates, cards = examine(index, readers, asked, tell=run.say, by_people=by_people)
    alone = enough(asked, by_people)
    nowhere = misplaced(index.passages, asked)
    for question in nowhere[:WARNED]:
        run.say(nowhere_words(question))
    chosen = answering(cards, rows, alone)
    rival, trained = best_on_dev(cards, NON_NEURAL), best_on_dev(cards, NEURAL)
    difference = paired_difference(rows[trained]["test"], rows[rival]["test"])
    notes = json.loads((decoder / "notes.json").read_text())
    skipped = (documents / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    card = {
        "chosen": chosen,
        "threshold": gates[chosen].threshold,
        "gold": {
            "source": about["source"],
            "dev": sum(q.split == "dev" for q in asked),
            "test": sum(q.split == "test" for q in asked),
            "seen": len(about["seen"]),
            "nowhere": [mask(question.id)[0] for question in nowhere],
            "borrowed": 0 if alone else len(borrowed_evidence()[1]),
        },
        "readers": cards,
        "difference": {"f1": difference, "against": rival, "of": trained},
        "risk_coverage": {name: risk_coverage(rows[name]["test"]) for name in readers},
        "by_type": by_type(rows[chosen]["test"]),
        "samples": samples(rows[chosen]["test"]),
        "language_model": {k: v for k, v in notes.items() if k.endswith("bits_per_byte")}
        | {
            f"{part}_curve": json.loads((made / "curve.json").read_text())
            for part, made in (
                ("decoder", decoder),
                ("encoder", encoder),
                ("reader", reader),
                ("generator", generator),
            )
        },
        "plan": asdict(load_plan(plan)),
        "corpus": json.loads((corpus / "report.json").read_text(encoding="utf-8")),
        "documents": {
            "read": sum(1 for _ in read_documents(documents / "documents.jsonl")),
            "skipped": [unread(json.loads(line)) for line in skipped],
        },
    }
    _write(out / "card.json", card)
    choice = {"reader": chosen, "evidence": EVIDENCE, "gate": asdict(gates[chosen])}
    _write(out / "choice.json", choice)
    return {"chosen": chosen, "dev_f1": cards[chosen]["dev"]["f1"]}


def _write(path: Path, value: dict | list) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def unread(row: dict) -> dict:
    """A row of skipped.jsonl for the card, its path as it is shown."""
    path = shown_path(row["path"], row["sha256"])
    return row | {"path": path} | {k: mask(row[k])[0] for k in ("reason_en", "reason_ko")}


def nowhere_words(question: Question) -> str:
    (document, heading), *_ = question.places
    return say(
        f"  gold.jsonl {question.id}: no passage stands at {document} > {heading}",
        f"  gold.jsonl {question.id}: {document} > {heading}라는 곳이 문서에 없습니다",
    )


def by_type(rows: Sequence[dict]) -> dict:
    """F1 of answerable questions by their type: [mean, low, high] of each."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["answerable"]:
            found.setdefault(row["question"].kind, []).append(row["f1"])
    mean = lambda some: sum(some) / len(some)  # noqa: E731
    return {k: {"n": len(v), "f1": interval(v, mean)} for k, v in sorted(found.items())}


def samples(rows: Sequence[dict], each: int = 5) -> list[dict]:
    """Some good answers, some bad ones, some abstentions, in the order of the questions; what
    people asked and what they hold to be right is masked as documents are."""
    kinds = {
        "good": [r for r in rows if r["answered"] and r["answerable"] and r["f1"] >= 0.8],
        "bad": [r for r in rows if r["answered"] and (not r["answerable"] or r["f1"] < 0.4)],
        "abstained": [r for r in rows if r["abstained"]],
    }
    return [
        {
            "kind": kind,
            "question": mask(row["question"].text)[0],
            "answer": mask(row["reading"].answer)[0] if row["answered"] else None,
            "gold": [mask(answer)[0] for answer in row["question"].answers],
            "f1": round(row["f1"], 3),
            "confidence": round(row["confidence"], 3),
            "citations": [
                {
                    "document": row["reading"].passage.document,
                    "heading": row["reading"].passage.heading,
                    "passage": row["reading"].passage.text,
                }
            ]
            if row["reading"]
            else [],
        }
        for kind, found in kinds.items()
        for row in found[:: max(1, len(found) // each)][:each]
    ]
