"""Judges: a stack and a head tuned together on labelled rows, until they judge as the rows do.

One recipe for every task in which a text, or a pair of texts, has one answer (Devlin et al. 2019,
§4.1): a class out of several, or a number. A row is rendered as

    <|cls|> text <|sep|>                  <|cls|> text <|sep|> other <|sep|>

with segment 0 up to the first <|sep|> and 1 after it. Two heads (models/heads.py) can give the
answer: the sequence head looks at one token, which must first learn to gather what the others
know; with the token head every token votes and the mean of the votes counts. Votes are learnt
sooner (docs/encoders.md), and they say which words did it; the sequence head is what published
checkpoints have.

Short texts make two things matter that a long document hides. Texts of one length can stand as the
rows of one batch, with no padding and one attention for all; so the steps are cut from the rows in
the order of their lengths and then shuffled (`steps_by_length`). And there are more weights than
rows: with no dropout in the core, what keeps a judge from learning the rows by heart is that a
share of the tokens, other ones at each reading, is hidden behind <|mask|> (`hidden`), which a
pretrained stack has met before; words can also be `cut` in two (subword regularisation in one step,
after Kudo 2018 and Provilkov et al. 2020).

Left out: tags for every token, several labels at once, early stopping (the last step is kept).
"""

import json
import math
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from onsil.documents.types import FileRef
from onsil.errors import OnsilError, say
from onsil.lineage import Artifact, Run, stage
from onsil.models.checkpoint import load
from onsil.models.heads import Head, apart, load_head, new_head, save_head
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.train import Specials, specials_of
from onsil.training.finetuning import note_point
from onsil.training.loop import Step, digest_of, report_progress, train
from onsil.training.objectives import Batch, steps_by_length
from onsil.training.optim import Recipe
from onsil.training.pretraining import kept_curve

ROWS = "labelled.jsonl"
SPLITS = ("train", "heldout")
QUICK_WORDS = Recipe(embedding=4.0)  # most words are rare: each step is for few of them


@dataclass(frozen=True)
class Judging:
    """How a judge is tuned. `head`: who answers, all tokens by vote or one for all; `rate` is the
    peak; `hidden` and `cut` are the shares of tokens hidden, and of words cut in two, each time a
    row is read."""

    head: Literal["votes", "sequence"] = "votes"
    epochs: int = 3
    rate: float = 1e-3
    batch_tokens: int = 2048
    hidden: float = 0.1
    cut: float = 0.0
    seed: int = 0
    compute: Literal["fp32", "bf16"] = "fp32"
    threads: int = 1
    recipe: Recipe = QUICK_WORDS


class Case(NamedTuple):
    """A row as the stack reads it; `label` is a class number, or a value."""

    ids: list[int]
    segments: list[int]
    label: float


# ── rows ────────────────────────────────────────────────────────────────────────────────────────


@stage(version=1)
def adopt_labelled(*, file: FileRef, out: Path, run: Run) -> dict:
    """labelled.jsonl out of a file with a row a line: {"text", "label", "split"} and for pairs
    "other"; split is train or heldout. Raises OnsilError with the number of a line that is none."""
    counts = dict.fromkeys(SPLITS, 0)
    lines = (run.source / file.path).read_text(encoding="utf-8").split("\n")
    with (out / ROWS).open("w", encoding="utf-8") as f:
        for number, line in enumerate(lines, 1):
            if line.strip():
                row = _row(line, number)
                counts[row["split"]] += 1
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
    return counts


def _row(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
        text, other, label, split = row["text"], row.get("other"), row["label"], row["split"]
        if not isinstance(text, str) or not isinstance(other, str | None):
            raise ValueError("text and other must be texts")
        if not isinstance(label, str | int | float):
            raise ValueError(f"label {label!r} is neither a name nor a number")
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is neither train nor heldout")
        return {"text": text, "other": other, "label": label, "split": split}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise OnsilError(
            en=(
                f"Line {number} is not a labelled row: {type(e).__name__}: {e}.",
                f"It says {line.strip()[:60]!r}; a row that is skipped in silence is missed late.",
                'Write {"text": "…", "label": "…", "split": "train"}, one row a line.',
            ),
            ko=(
                f"{number}번째 줄은 정답이 붙은 행이 아닙니다: {type(e).__name__}: {e}.",
                f"내용은 {line.strip()[:60]!r}입니다. 말없이 건너뛰면 뒤늦게 알게 됩니다.",
                '한 줄에 하나씩 {"text": "…", "label": "…", "split": "train"}로 적어 주세요.',
            ),
        ) from e


def rows_in(labelled: Artifact, split: str) -> list[dict[str, Any]]:
    """The rows of a split, in the order of the file."""
    with (labelled / ROWS).open(encoding="utf-8") as f:
        return [row for row in map(json.loads, f) if row["split"] == split]


def cases_of(
    rows: Sequence[Mapping[str, Any]], tokenizer, names: Sequence[str], context: int
) -> list[Case]:
    """Rows rendered, labels as numbers: the place of a name, or with one name the value itself.
    Raises OnsilError at a label that is not among the names, or is no finite number."""
    special, place = specials_of(tokenizer), {name: i for i, name in enumerate(names)}
    first = [e.ids for e in tokenizer.encode_batch([row["text"] for row in rows])]
    second = [e.ids for e in tokenizer.encode_batch([row.get("other") or "" for row in rows])]
    cases = []
    for row, a, b in zip(rows, first, second, strict=True):
        pair = row.get("other") is not None
        a, b = _fitted(a, b, context - 2 - pair)
        ids = [special.cls, *a, special.sep, *b, *([special.sep] if pair else [])]
        segments = [0] * (len(a) + 2) + [1] * (len(ids) - len(a) - 2)
        cases.append(Case(ids, segments, _label(row, place)))
    return cases


def _fitted(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """Tokens taken from the end of the longer one until both fit."""
    over = len(a) + len(b) - room
    if over <= 0:
        return a, b
    keep = min(len(a), max(room - len(b), room - room // 2))
    return a[:keep], b[: room - keep]


def _label(row: Mapping[str, Any], place: Mapping[str, int]) -> float:
    label = row["label"]
    if len(place) > 1 and label in place:
        return place[label]
    if len(place) == 1 and not isinstance(label, str | bool) and math.isfinite(label):
        return float(label)
    known = ", ".join(list(place)[:20])
    raise OnsilError(
        en=(
            f"The label {label!r} of {row['text'][:40]!r} is not among the names ({known}).",
            "A judge has one output a name; this row could be neither learnt nor scored.",
            "Add the name or correct the row; with one name, labels are finite numbers.",
        ),
        ko=(
            f"{row['text'][:40]!r}의 정답 {label!r}이(가) 이름 목록({known})에 없습니다.",
            "출력은 이름마다 하나씩이므로 이 행은 배울 수도 채점할 수도 없습니다.",
            "이름을 더하거나 행을 고쳐 주세요. 이름이 하나면 정답은 유한한 수여야 합니다.",
        ),
    )


def checked(cases: Sequence[Case], split: str) -> None:
    """Raises OnsilError when there are none, or all have one answer."""
    answers = {case.label for case in cases}
    if len(answers) > 1:
        return
    raise OnsilError(
        en=(
            f"The {split} split has {len(cases)} rows"
            + (f", all with the answer {answers.pop()}." if answers else "."),
            "A judge that has seen one answer gives that answer to everything.",
            "Look at how the rows were split, and at the column the labels come from.",
        ),
        ko=(
            f"{split} 쪽에 행이 {len(cases)}개 있"
            + (f"고 정답이 모두 {answers.pop()}입니다." if answers else "습니다."),
            "답을 하나만 본 판정기는 무엇에나 그 답을 합니다.",
            "행을 나눈 방법과 정답을 가져온 열을 확인해 주세요.",
        ),
    )


# ── batches ─────────────────────────────────────────────────────────────────────────────────────


def cuts_of(tokenizer) -> dict[int, list[list[int]]]:
    """For each token of two letters or more, the ids it has when it is written in two parts."""
    texts = tokenizer.decode_batch([[i] for i in range(tokenizer.get_vocab_size())])
    marks, of, parts = set(specials_of(tokenizer)), [], []
    for token, text in enumerate(texts):
        if token in marks or "�" in text or len(text.strip()) < 2:
            continue
        borders = [i for i in range(1, len(text)) if text[:i].strip()]
        of += [token] * len(borders)
        parts += [part for i in borders for part in (text[:i], text[i:])]
    ids = [e.ids for e in tokenizer.encode_batch(parts)]
    found: dict[int, list[list[int]]] = {}
    for token, first, second in zip(of, ids[::2], ids[1::2], strict=True):
        found.setdefault(token, []).append(first + second)
    return found


def cut_words(
    ids: Sequence[int], cuts: Mapping[int, list[list[int]]], share: float, draw: random.Random
) -> list[int]:
    """A share of the tokens written in two parts, at a random letter; the text stays the same."""
    out: list[int] = []
    for token in ids:
        if token in cuts and draw.random() < share:
            out += draw.choice(cuts[token])
        else:
            out.append(token)
    return out


def disturbed(
    case: Case, judging: Judging, cuts: Mapping[int, list[list[int]]], special: Specials, seed: str
) -> Case:
    """The row as it is read this time: words cut, tokens hidden; special tokens stay."""
    draw, marks = random.Random(seed), set(special)
    ids, segments = [], []
    for token, segment in zip(case.ids, case.segments, strict=True):
        parts = cut_words([token], cuts, judging.cut, draw) if judging.cut else [token]
        for part in parts:
            hide = part not in marks and draw.random() < judging.hidden
            ids.append(special.mask if hide else part)
        segments += [segment] * len(parts)
    return Case(ids, segments, case.label)


def fitting(case: Case, limit: int) -> Case:
    """The case without what cutting words pushed out of the context."""
    if len(case.ids) <= limit:
        return case
    return Case([*case.ids[: limit - 1], case.ids[-1]], case.segments[:limit], case.label)


def case_batch(cases: Sequence[Case]) -> Batch:
    """The cases laid end to end."""
    ids = torch.tensor([[token for case in cases for token in case.ids]])
    segments = torch.tensor([[segment for case in cases for segment in case.segments]])
    return Batch(ids, [len(case.ids) for case in cases], segments=segments)


def scores_of(encoder: Transformer, head: Head, cases: Sequence[Case]) -> Tensor:
    """What the head says of each case, B N in float32; of a token head, the mean of the votes."""
    batch = case_batch(cases)
    segments = None
    if encoder.segment is not None and batch.segments is not None:  # RoBERTa knows one kind
        segments = batch.segments.clamp(max=len(encoder.segment.weight) - 1)
    x_BTD, keep_BT = apart(encoder.encode(batch.ids, segments, batch.lengths), batch.lengths)
    scores = head(x_BTD, keep_BT)
    if head.task != "token":
        return scores
    weight_BT = keep_BT / keep_BT.sum(1, keepdim=True)
    return (scores * weight_BT[..., None]).sum(1)


def judge_loss(encoder: Transformer, head: Head, cases: Sequence[Case]) -> tuple[Tensor, int]:
    """(Σ loss, number of cases) of cases read as they are."""
    number = torch.float32 if head.problem == "regression" else torch.long
    labels = torch.tensor([case.label for case in cases], dtype=number)
    return head.loss(scores_of(encoder, head, cases), labels)


@torch.no_grad()
def judge(
    encoder: Transformer, head: Head, cases: Sequence[Case], batch_tokens: int = 4096
) -> Tensor:
    """Scores of all cases in their order, B N in float32."""
    found: dict[int, Tensor] = {}
    for chosen in steps_by_length([len(case.ids) for case in cases], batch_tokens, 1, 0):
        scores = scores_of(encoder, head, [cases[i] for i in chosen])
        found |= dict(zip(chosen, scores, strict=True))
    return torch.stack([found[i] for i in range(len(cases))])


# ── tuning ──────────────────────────────────────────────────────────────────────────────────────


def tune(
    encoder: Transformer,
    head: Head,
    cases: Sequence[Case],
    tokenizer,
    judging: Judging,
    scratch: Path,
) -> tuple[Iterator[Step], int]:
    """The steps of the loop that tunes stack and head on the cases, and how many there are; they go
    on from `scratch`, and one that fails tells which rows it had, counted from 1 among the cases.
    Raises OnsilError when the cases are none, or have one answer."""
    checked(cases, "train")
    special, limit = specials_of(tokenizer), encoder.shape.context
    cuts = cuts_of(tokenizer) if judging.cut else {}
    sizes = [len(case.ids) for case in cases]
    steps = steps_by_length(sizes, judging.batch_tokens, judging.epochs, judging.seed)

    def loss_of(k: int) -> tuple[Tensor, int]:
        seed = f"{judging.seed}-{k}"
        read = [disturbed(cases[i], judging, cuts, special, f"{seed}-{i}") for i in steps[k]]
        return judge_loss(encoder, head, [fitting(case, limit) for case in read])

    weights = dict(encoder.named_parameters())
    weights |= {f"judge.{name}": p for name, p in head.named_parameters()}
    if head.problem == "regression" and head.outputs.bias is not None:
        with torch.no_grad():  # else the first epochs only learn how large numbers are
            head.outputs.bias.fill_(sum(case.label for case in cases) / len(cases))
    loop = train(
        weights,
        loss_of,
        len(steps),
        judging.rate,
        scratch,
        recipe=judging.recipe,
        names_of=lambda k: [f"row {i + 1}" for i in steps[k]],
        data=digest_of(cases, judging),
    )
    return loop, len(steps)


@stage(version=1)
def train_judge(
    *,
    model: Artifact,
    tokenizer: Artifact,
    labelled: Artifact,
    names: tuple[str, ...],
    judging: Judging,
    out: Path,
    run: Run,
) -> dict:
    """A folder that `load_judge` reads: the published token or sequence classifier of the model's
    family, tokenizer.json, curve.json. One name: a number is learnt, several: one of them.

    Only the train split is learnt from. Raises OnsilError when it is empty or has one answer, and
    at a label outside the names.
    """
    torch.set_num_threads(judging.threads)
    words = load_tokenizer(tokenizer.path)
    stack, rest = load(model.path, judging.compute)
    task = "token" if judging.head == "votes" else "sequence"
    encoder, head = new_head(stack, task, tuple(names), seed=judging.seed, start=rest)
    cases = cases_of(rows_in(labelled, "train"), words, names, encoder.shape.context)
    loop, steps = tune(encoder, head, cases, words, judging, run.scratch)
    curve = kept_curve(run.scratch)
    tokens = sum(len(case.ids) for case in cases) * judging.epochs
    for step in report_progress(
        loop, steps, run.say, say("Tuning the judge", "판정 미세조정"), tokens
    ):
        note_point(curve, step, steps, run.scratch)
    save_head(encoder, head, out, run.ancestry)
    shutil.copy(tokenizer / "tokenizer.json", out / "tokenizer.json")
    (out / "curve.json").write_text(json.dumps(curve) + "\n")
    return {"rows": len(cases), "steps": steps, "tokens": tokens}


def load_judge(folder: Path, compute: str = "fp32") -> tuple[Transformer, Head, Any]:
    """Stack, head and tokenizer of a folder that `train_judge` made."""
    encoder, head = load_head(folder, compute)
    return encoder, head, load_tokenizer(folder)
