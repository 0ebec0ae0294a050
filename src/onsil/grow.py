"""The whole journey in one function: a folder of documents becomes a model that can be asked.

Read it top to bottom and you know the company. Each line is a stage: done once, kept under its
digest, and free the second time, so a killed run continues where it was.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from onsil.corpus import curate
from onsil.documents import read
from onsil.documents.types import FileRef
from onsil.errors import say
from onsil.lineage import Artifact, Run, Workspace, history, stage
from onsil.lineage.spelling import file_digest
from onsil.lineage.workspace import peak_megabytes, proper_name
from onsil.training.energy import Meter, measured, modelled
from onsil.training.request import Request

GOLD = "gold.jsonl"
NO_BASE = Path("none")  # start from noise


@dataclass(frozen=True)
class Grown:
    """What a grow leaves behind: the model, its name and version, its report card and page."""

    name: str
    version: str
    model: Artifact
    card: Artifact
    report: Artifact


@stage(version=2)
def assemble(
    *,
    corpus: Artifact,
    tokenizer: Artifact,
    decoder: Artifact,
    reader: Artifact,
    generator: Artifact,
    card: Artifact,
    out: Path,
    run: Run,
) -> dict:
    """One folder with everything that answers: corpus, tokenizer, models, chosen reader, gate."""
    parts = {"corpus": corpus, "tokenizer": tokenizer, "decoder": decoder, "reader": reader}
    parts["generator"] = generator
    for name, part in parts.items():
        shutil.copytree(part.path, out / name)
    shutil.copyfile(card / "choice.json", out / "model.json")
    choice = json.loads((out / "model.json").read_text())
    return {"reader": choice["reader"]}


def starting_point(ws: Workspace, asked: Path | None, plan_text: str | None) -> Artifact | None:
    """The base of a run: the one asked for; else the one its plan names; else, without a plan,
    ours. `NO_BASE` is none. Raises OnsilError when a plan was made for another."""
    from onsil.training.base import adopt, no_base, shipped
    from onsil.training.plan import parse_plan

    wanted = parse_plan(plan_text).base if plan_text else None
    if asked == NO_BASE or (asked is None and wanted == ""):
        return None
    adopted = adopt(ws, asked or shipped())
    if wanted and adopted.digest != wanted:
        raise no_base(asked or shipped(), f"the plan was made for another one ({wanted[:12]})")
    return adopted


def grow(
    ws: Workspace,
    folder: Path,
    name: str,
    asked: Request = Request(),
    plan_text: str | None = None,
    base: Path | None = None,
    tell: Callable[[str], None] = print,
) -> Grown:
    """Folder to model. `plan_text` (a plan.json) repeats a run exactly instead of planning one as
    it is `asked`; `base` is a folder of weights and tokenizer to start from instead of the one that
    comes with onsil; `NO_BASE` starts from noise, and so does a size that was asked for. What the
    owner adopted of the feedback on `name` is taught too (`onsil feedback`).

    Raises OnsilError when nothing in the folder can be read or the name cannot be one.
    """
    import torch  # before any stage, so that its import is not counted as theirs

    from onsil.evaluation.report import write_report

    name = proper_name(name)
    start, meter = time.monotonic(), Meter()
    ws.say, ws.joules = watched(tell, meter), meter.read
    start_from = None if asked.size else starting_point(ws, base, plan_text)
    material = gather(ws, Path(folder), name, start_from)
    plan = planned(ws, material, asked, plan_text)
    card, model = examine(ws, material, plan, train(ws, material, plan))
    taken = outcome(ws, model) | {"name": name, "energy": energy_taken(ws, model)}
    report = write_report(ws, model=model, card=card, outcome=taken)
    version = ws.register(name, model)
    crown(ws, name, version, card)
    took, peak = time.monotonic() - start, peak_megabytes()
    tell(ready(f"{name}@{version}", took, peak, torch.__version__))
    return Grown(name, version, model, card, report)


@dataclass(frozen=True)
class Material:
    """What a model is grown from: `lessons` are taught, `questions` asked afterwards."""

    documents: Artifact
    corpus: Artifact
    tokenizer: Artifact
    lessons: Artifact
    questions: Artifact
    base: Artifact | None


def gather(ws: Workspace, folder: Path, name: str, base: Artifact | None) -> Material:
    """Documents, corpus, tokenizer, and what is asked about them."""
    from onsil.evaluation.examination import gather_questions
    from onsil.instruction import write_lessons
    from onsil.instruction.feedback import add_feedback, adopted_for
    from onsil.tokenizer import train_tokenizer
    from onsil.training.base import adopt_tokenizer

    if ws.say:
        ws.say(say("Reading documents …", "문서를 읽습니다 …"))
    documents = read(ws, folder)
    corpus = curate(ws, documents=documents)
    if base is None:
        tokenizer = train_tokenizer(ws, corpus=corpus)
    else:
        tokenizer = adopt_tokenizer(ws, base=base)
    lessons = write_lessons(ws, corpus=corpus)
    gold = FileRef(GOLD, file_digest(folder / GOLD)) if (folder / GOLD).is_file() else None
    asked = {"gold": gold, "run": {"source": folder}}
    # Before the feedback: it is never examined by itself, and two grows stay comparable.
    questions = gather_questions(ws, lessons=lessons, **asked)
    if feedback := adopted_for(ws, name):
        lessons = add_feedback(ws, lessons=lessons, corpus=corpus, feedback=feedback, **asked)
    return Material(documents, corpus, tokenizer, lessons, questions, base)


def train(ws: Workspace, material: Material, plan: Artifact) -> dict[str, Artifact]:
    """The decoder, the encoder, and the two that read."""
    from onsil.training.finetuning import finetune, instruct
    from onsil.training.pretraining import pretrain

    common = {"tokenizer": material.tokenizer, "plan": plan}
    words = common | {"corpus": material.corpus, "base": material.base}
    decoder = pretrain(ws, **words, kind="decoder")
    encoder = pretrain(ws, **words, kind="encoder", decoder=decoder)
    taught = common | {"lessons": material.lessons}
    reader = finetune(ws, encoder=encoder, **taught)
    generator = instruct(ws, decoder=decoder, **taught)
    return {"decoder": decoder, "encoder": encoder, "reader": reader, "generator": generator}


def examine(
    ws: Workspace, material: Material, plan: Artifact, parts: dict[str, Artifact]
) -> tuple[Artifact, Artifact]:
    """The report card of the trained parts, and the model that is made of them."""
    from onsil.evaluation.examination import evaluate

    if ws.say:
        ws.say(say("Examining the readers …", "읽기 모델을 시험합니다 …"))
    words = {"corpus": material.corpus, "tokenizer": material.tokenizer}
    asked = {"documents": material.documents, "questions": material.questions, "plan": plan}
    card = evaluate(ws, **words, **asked, **parts)
    answering = {part: made for part, made in parts.items() if part != "encoder"}
    return card, assemble(ws, **words, **answering, card=card)


def watched(tell: Callable[[str], None], meter: Meter) -> Callable[[str], None]:
    """`tell` that also reads the meter: often enough to see its counters start again."""

    def heard(text: str) -> None:
        meter.read()
        tell(text)

    return heard


def planned(ws: Workspace, material: Material, asked: Request, plan_text: str | None) -> Artifact:
    """The plan of a run, made or given, and said before anything is trained.

    Training takes an adopted one, in one spelling, also where it was made here: what its weights
    carry away is then the same wherever the plan is followed. The record says where it came from.
    """
    from onsil.evaluation.report_words import feedback_words
    from onsil.tokenizer import load_tokenizer
    from onsil.training.base import shape_in
    from onsil.training.memory import machine_memory, refuse_beyond
    from onsil.training.plan import (
        adopt_plan,
        load_plan,
        make_plan,
        parse_plan,
        peak_memory,
        spelling_of,
    )
    from onsil.training.plan_words import described

    made = None
    if plan_text is None:
        made = make_plan(
            ws,
            corpus=material.corpus,
            tokenizer=material.tokenizer,
            lessons=material.lessons,
            base=material.base,
            **asdict(asked),
        )
    held = load_plan(made) if made else parse_plan(plan_text or "")
    if made is None:
        vocabulary = load_tokenizer(material.tokenizer.path).get_vocab_size()
        own = shape_in(material.base, "decoder")
        refuse_beyond(peak_memory(held, vocabulary, own), machine_memory())
    plan = adopt_plan(ws, text=spelling_of(held), run={"origin": made})
    if ws.say:
        ws.say(described(held, machine_memory()))
        lessons = ws.record(material.lessons.key) or {}
        if lessons["stage"] == "add_feedback":
            ko, en = feedback_words(lessons["notes"])
            ws.say(say(f"  feedback {en}", f"  의견     {ko}"))
    return plan


def energy_taken(ws: Workspace, model: Artifact) -> dict:
    """Energy of a model's stages, all of them and those of training, from their records: what the
    meter said while they ran, if it could be read in every one; else the model on their
    CPU-seconds."""
    from onsil.evaluation.report_run import TRAINING_STAGES

    records = [record for _, record in history(ws, model.key)]
    taught = [record for record in records if record["stage"] in TRAINING_STAGES]

    def of(some: list[dict]) -> dict:
        read = [joules for record in some if (joules := record.get("joules")) is not None]
        if len(read) == len(some):
            return asdict(measured(sum(read)))
        return asdict(modelled(sum(r["cpu_seconds"] for r in some)))

    return {"whole": of(records), "training": of(taught)}


def ready(called: str, seconds: float, megabytes: float, torch: str) -> str:
    """The last line of a grow."""
    return say(
        f"{called} is ready: {seconds:.0f} s, peak {megabytes:,.0f} MB, torch {torch}.",
        f"{called} 준비됨: {seconds:.0f}초, 최대 메모리 {megabytes:,.0f} MB, torch {torch}.",
    )


def crown(ws: Workspace, name: str, version: str, card: Artifact) -> None:
    """`name@champion` is the newest version, unless the one before did better on the same dev
    questions."""
    aliases = ws.aliases(name)
    if "champion" in aliases and aliases["champion"] != version:
        _, _, old = ws.resolve(f"{name}@champion")
        before = next((r for _, r in history(ws, old.key) if r["stage"] == "evaluate"), None)
        now = ws.record(card.key)
        if before and now and same_questions(before, now):
            was, found = before["notes"]["dev_f1"], now["notes"]["dev_f1"]
            if was and found and was[0] > found[0]:
                return
    ws.set_alias(name, "champion", version)


def same_questions(a: dict, b: dict) -> bool:
    asked = "questions"
    return a["arguments"][asked]["artifact"] == b["arguments"][asked]["artifact"]


def outcome(ws: Workspace, model: Artifact) -> dict:
    """What the stages of a model took, from their records: the clock's side of the report. Memory
    is the most that a process had held when it was done with training, or with the examination;
    an older record that does not know leaves it unsaid."""
    from onsil.evaluation.report_run import TRAINING_STAGES

    records = [record for _, record in history(ws, model.key)]
    peaks = [_peak(records, TRAINING_STAGES), _peak(records, (*TRAINING_STAGES, "evaluate"))]
    stages = [
        {
            "stage": record["stage"],
            "key": record["key"],
            "object": record["object"],
            "seconds": record["seconds"],
            "cpu_seconds": record["cpu_seconds"],
            "inputs": sorted(
                {v["artifact"] for v in record["arguments"].values() if _is_artifact(v)}
            ),
            "notes": record["notes"],
        }
        for record in records
    ]
    return {
        "total_seconds": round(sum(s["seconds"] for s in stages), 1),
        "training_peak_rss_mb": peaks[0],
        "peak_rss_mb": peaks[1],
        "stages": stages,
    }


def _peak(records: list[dict], stages: tuple[str, ...]) -> int | None:
    told = [record for record in records if record["stage"] in stages]
    known = [record["peak_rss_mb"] for record in told if "peak_rss_mb" in record]
    return max(known) if known and len(known) == len(told) else None


def _is_artifact(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"artifact", "key"}
