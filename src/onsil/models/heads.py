"""Heads: what stands on a stack when it has to judge a text rather than to guess its words.

Every published head here is one mechanism. The hidden states are pooled or not (all tokens; the
first, where BERT has its [CLS], Devlin et al. 2019 §3; the last, the only one that has seen the
whole text in a decoder, Radford et al. 2018 §3.2), go through dense and tanh where the class has
them, and then through one linear layer to N outputs. A class is a line in a table: where it looks
and what its layers are called on disk. Judging a pair is judging a text whose segments differ;
regression is one output and another loss.

Letters: B texts, T positions, D width, N outputs. Scores are float32. Left out: dropout (nothing
random in the loop), multiple choice, and heads of encoder-decoders.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from onsil.errors import OnsilError
from onsil.models.attention import UNSEEN
from onsil.models.checkpoint import Origin, load, save
from onsil.models.families import decoders
from onsil.models.families.grown import config_of
from onsil.models.speech_encoder import SpeechEncoder
from onsil.models.transformer import Transformer
from onsil.tokenizer.template import NO_TARGET

Task = Literal["sequence", "token", "span", "next_sentence"]
Problem = Literal["regression", "single_label_classification", "multi_label_classification"]

SUFFIX: dict[Task, str] = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "next_sentence": "ForNextSentencePrediction",
}
FIXED: dict[Task, tuple[str, ...]] = {
    "span": ("start", "end"),
    "next_sentence": ("next", "random"),
}


@dataclass(frozen=True)
class Layout:
    """Where a head looks, and what its layers are called on disk."""

    outputs: str
    pool: Literal["all", "first", "last"] = "all"
    dense: str = ""  # with tanh, before the outputs; "": none
    bias: bool = True  # of the outputs


POOLER = "bert.pooler.dense"
EACH_TOKEN: dict[Task, Layout] = {"token": Layout("classifier"), "span": Layout("qa_outputs")}
LAYOUTS: dict[str, dict[Task, Layout]] = {
    "bert": {
        **EACH_TOKEN,
        "sequence": Layout("classifier", "first", POOLER),
        "next_sentence": Layout("cls.seq_relationship", "first", POOLER),
    },
    "roberta": {
        **EACH_TOKEN,
        "sequence": Layout("classifier.out_proj", "first", "classifier.dense"),
    },
}
DECODER: dict[Task, Layout] = {"sequence": Layout("score", "last", bias=False)}
# An encoder that began as one judges its tokens; spans are those of a reader grown here.
LLAMA_LIKE: dict[Task, Layout] = {**DECODER, "token": Layout("score")}
LAYOUTS["lfm2"] = {**LLAMA_LIKE, "span": EACH_TOKEN["span"]}


class Head(nn.Module):
    """Hidden states → scores. `names[i]` is what output i stands for; `others` are tensors of the
    checkpoint that belong neither to the stack nor to this head, kept so that they can be saved."""

    def __init__(
        self,
        task: Task,
        layout: Layout,
        width: int,
        names: tuple[str, ...],
        problem: Problem | None = None,
    ):
        super().__init__()
        self.task: Task = task
        self.layout, self.names = layout, names
        alone: Problem = "regression" if len(names) == 1 else "single_label_classification"
        self.problem: Problem = (problem or alone) if task == "sequence" else alone
        self.others: dict[str, Tensor] = {}
        self.dense = nn.Linear(width, width) if layout.dense else None
        self.outputs = nn.Linear(width, len(names), bias=layout.bias)

    def forward(self, x_BTD: Tensor, keep_BT: Tensor | None = None) -> Tensor:
        """Scores B N, or B T N where every token is judged.

        `keep` is false on padding, left or right. Padding can be neither start nor end of a span.
        """
        x = x_BTD.float()
        if self.layout.pool != "all":
            at_B = torch.zeros(len(x), dtype=torch.long, device=x.device)
            if keep_BT is not None:
                at_B = keep_BT.int().argmax(1)
            if self.layout.pool == "last":
                back_B = at_B if keep_BT is None else keep_BT.flip(1).int().argmax(1)
                at_B = x.size(1) - 1 - back_B
            x = x[torch.arange(len(x), device=x.device), at_B]
        if self.dense is not None:
            x = torch.tanh(self.dense(x))
        scores = self.outputs(x)
        if self.task == "span" and keep_BT is not None:
            scores = scores.masked_fill(~keep_BT.bool()[..., None], UNSEEN)
        return scores

    def loss(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """(Σ loss in nats or squared units, number of targets), as the loop takes it.

        Labels: B class numbers; B values (regression); B×N of 0 and 1 (several labels at once);
        B×T class numbers with −100 where a token does not count; B×2 first and last token.
        """
        if self.task == "span":
            return F.cross_entropy(scores, labels, reduction="sum") / 2, len(labels)
        if self.problem == "regression":
            wanted = labels.float().reshape(scores.shape)
            return F.mse_loss(scores, wanted, reduction="sum"), labels.numel()
        if self.problem == "multi_label_classification":
            wanted = labels.float()
            total = F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum")
            return total, labels.numel()
        flat, wanted = scores.flatten(0, -2), labels.flatten()
        total = F.cross_entropy(flat, wanted, ignore_index=NO_TARGET, reduction="sum")
        return total, int((wanted != NO_TARGET).sum())

    def on_disk(self) -> dict[str, str]:
        """`{parameter: its name in a checkpoint}`."""
        home = {"dense": self.layout.dense, "outputs": self.layout.outputs}
        split = (name.split(".") for name, _ in self.named_parameters())
        return {f"{part}.{leaf}": f"{home[part]}.{leaf}" for part, leaf in split}


def apart(x_1TD: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Documents laid end to end (the loop's batches) as padded rows B T D, and their `keep`."""
    x_BTD = pad_sequence(list(x_1TD[0].split(lengths)), batch_first=True)
    ends_B = torch.tensor(lengths, device=x_1TD.device)
    return x_BTD, torch.arange(x_BTD.size(1), device=x_1TD.device) < ends_B[:, None]


# ── reading and writing ─────────────────────────────────────────────────────────────────────────


def load_head(folder: Path, compute: str = "fp32") -> tuple[Transformer, Head]:
    """The stack and the head of a published checkpoint; `head(encoder.encode(ids))` are its scores.

    A checkpoint with a vocabulary head besides (BertForPreTraining; a reader grown here) keeps it
    in the encoder. Raises OnsilError when the config names no head, or another than the weights.
    """
    encoder, extra = load(folder, compute)
    origin: Origin = encoder.origin
    task = task_of(folder, origin.config, extra)
    layout = layout_of(origin.family, task)
    rows = extra.get(f"{layout.outputs}.weight", torch.empty(0)).size(0)
    names = FIXED.get(task) or names_of(origin.config, rows)
    head = Head(task, layout, encoder.shape.width, names, problem_of(origin.config))
    disk, own = head.on_disk(), head.state_dict()
    for ours, theirs in disk.items():
        found = tuple(extra[theirs].shape) if theirs in extra else ()
        if found != tuple(own[ours].shape):
            raise _misfit(folder, theirs, found, tuple(own[ours].shape))
    origin.dtypes |= {name: extra[name].dtype for name in disk.values()}
    head.load_state_dict({ours: extra.pop(name).float() for ours, name in disk.items()})
    head.others = extra
    return encoder.eval(), head.eval()


def save_head(encoder: Transformer, head: Head, folder: Path, ancestry: dict[str, Any]) -> None:
    """config.json and model.safetensors as the published class has them."""
    assert encoder.origin is not None, "a head comes from load_head or new_head"
    dtypes, disk = encoder.origin.dtypes, head.on_disk()
    kept = {disk[ours]: tensor.detach() for ours, tensor in head.named_parameters()}
    kept = {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in kept.items()}
    save(encoder, folder, ancestry, kept | head.others)


def new_head(
    encoder: Transformer,
    task: Task,
    names: tuple[str, ...] = (),
    problem: Problem | None = None,
    seed: int = 0,
    start: Mapping[str, Tensor] | None = None,
) -> tuple[Transformer, Head]:
    """The stack without its vocabulary head (sharing float32 weights), and a fresh head on it.

    `names` of the outputs: the labels of "sequence" (one for regression) or "token"; none for the
    other two. Layers that `start` has (the second value of `load`: BERT's trained pooler) begin
    there, the others as N(0, 0.02) with biases 0. Raises OnsilError when the family has no such
    head.
    """
    before: Origin | None = encoder.origin
    settings = config_of(encoder.shape) if before is None else copy.deepcopy(before.config)
    family = str(settings["model_type"])
    layout = layout_of(family, task)
    shape = encoder.shape
    bias = shape.bias.replace("h", "")
    shape = replace(shape, writes="vectors", head_transform=False, logit_bias=False, bias=bias)
    compute = "bf16" if encoder.dtype == torch.bfloat16 else "fp32"
    with torch.device("meta"):
        bare = Transformer(shape, compute)
    state = encoder.state_dict()
    bare.load_state_dict({name: state[name].float() for name in bare.state_dict()}, assign=True)
    for key in ("id2label", "label2id", "num_labels", "problem_type", "torch_dtype"):
        settings.pop(key, None)
    stem = re.sub(r"For[A-Z]\w*$|(LMHead)?Model$", "", settings["architectures"][0])
    settings |= {"architectures": [stem + SUFFIX[task]], "dtype": "float32"}
    head = Head(task, layout, shape.width, FIXED.get(task, names), problem)
    if task not in FIXED:
        settings["id2label"] = {str(i): name for i, name in enumerate(names)}
        settings["label2id"] = {name: i for i, name in enumerate(names)}
    if problem is not None:
        settings["problem_type"] = problem
    bare.origin = Origin(family, settings, {}, {}, {})
    draw = torch.Generator().manual_seed(seed)
    disk = head.on_disk()
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            known = (start or {}).get(disk[name])
            if known is not None and known.shape == parameter.shape:
                parameter.copy_(known)
            elif parameter.dim() > 1:
                parameter.normal_(0.0, 0.02, generator=draw)
            else:
                parameter.zero_()
    return bare, head


def new_symbols(model: SpeechEncoder, symbols: int, seed: int = 0) -> SpeechEncoder:
    """The speech encoder (sharing float32 weights) with a fresh CTC head: one score a symbol, the
    blank at 0 among them, as N(0, 0.02) with biases 0. One that was loaded is saved as a published
    Wav2Vec2ForCTC. Raises OnsilError at fewer than two symbols: blank and nothing to say."""
    if symbols < 2:
        raise _wrong("vocab_size", symbols)
    old = model.shape.stack
    stack = replace(old, vocabulary=symbols, writes="tokens", bias=old.bias.replace("h", "") + "h")
    draw = torch.Generator().manual_seed(seed)
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    state["stack.head.weight"] = torch.empty(symbols, old.width).normal_(0.0, 0.02, generator=draw)
    state["stack.head.bias"] = torch.zeros(symbols)
    compute = "bf16" if model.stack.dtype == torch.bfloat16 else "fp32"
    with torch.device("meta"):
        fresh = SpeechEncoder(replace(model.shape, stack=stack), compute)
    fresh.load_state_dict(state, assign=True)
    before: Origin | None = model.origin
    if before is not None:
        named = {"architectures": ["Wav2Vec2ForCTC"], "vocab_size": symbols, "pad_token_id": 0}
        fresh.origin = Origin(before.family, copy.deepcopy(before.config) | named, {}, {}, {})
    return fresh


# ── what a config says ──────────────────────────────────────────────────────────────────────────


def layout_of(family: str, task: Task) -> Layout:
    """The layout of a task's head. Raises OnsilError where the family has none here."""
    known = LAYOUTS.get(family, LLAMA_LIKE if family in decoders.LLAMA_LIKE else DECODER)
    if task not in known:
        have = ", ".join(known)
        raise OnsilError(
            en=(
                f"A {family} checkpoint has no {task!r} head here; it has: {have}.",
                "Guessing where such a head looks would give wrong answers without a warning.",
                "Use a bert or roberta checkpoint, or one of the heads above.",
            ),
            ko=(
                f"{family} 계열에는 {task!r} 헤드가 없습니다. 있는 헤드: {have}.",
                "헤드가 어느 토큰을 보는지 짐작하면 틀린 답을 경고 없이 내게 됩니다.",
                "bert나 roberta 체크포인트를 쓰거나 위에 적힌 헤드를 골라 주세요.",
            ),
        )
    return known[task]


def task_of(folder: Path, config: Mapping[str, Any], extra: Mapping[str, Tensor]) -> Task:
    """The task that `architectures` names; a span head may stand beside another class's own."""
    told = config.get("architectures")
    name = str(told[0]) if isinstance(told, list) and told else ""
    for task, suffix in SUFFIX.items():
        if name.endswith(suffix):
            return task
    if name.endswith("ForPreTraining"):
        return "next_sentence"
    if "qa_outputs.weight" in extra:
        return "span"
    raise OnsilError(
        en=(
            f"{folder.name} is {name or 'of no named class'}: it has no task head.",
            "There is nothing to judge texts with.",
            "Load it with checkpoint.load and train a head on it (heads.new_head).",
        ),
        ko=(
            f"{folder.name}의 클래스는 {name or '알 수 없음'}이고, 과제용 헤드가 없습니다.",
            "글을 판정할 층이 없습니다.",
            "checkpoint.load로 불러와 heads.new_head로 헤드를 새로 학습해 주세요.",
        ),
    )


def names_of(config: Mapping[str, Any], rows: int) -> tuple[str, ...]:
    """What the outputs stand for, by number; LABEL_0 … where the config is silent."""
    told = config.get("id2label")
    if told is None:
        return tuple(f"LABEL_{i}" for i in range(rows))
    by_number = {str(n): str(name) for n, name in told.items()} if isinstance(told, dict) else {}
    if sorted(by_number) != sorted(map(str, range(len(by_number)))) or not by_number:
        raise _wrong("id2label", told)
    return tuple(by_number[str(i)] for i in range(len(by_number)))


def problem_of(config: Mapping[str, Any]) -> Problem | None:
    """problem_type as it is written; None where the number of outputs decides."""
    told = config.get("problem_type")
    if told is not None and told not in get_args(Problem):
        raise _wrong("problem_type", told)
    return told


def _wrong(key: str, value: Any) -> OnsilError:
    return OnsilError(
        en=(
            f"config.json: {key} is {value!r}, which means nothing here.",
            "Scores could not be given their names.",
            "Compare config.json with the one its authors published.",
        ),
        ko=(
            f"config.json의 {key} 값 {value!r}을 해석할 수 없습니다.",
            "점수가 무엇의 점수인지 알 수 없게 됩니다.",
            "config.json을 공개된 원본과 비교해 주세요.",
        ),
    )


def _misfit(folder: Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> OnsilError:
    return OnsilError(
        en=(
            f"{folder.name}: tensor {name} of the head is {found or 'missing'}; "
            f"the config asks for {wanted}.",
            "The head and the config do not belong together, or the file is damaged.",
            "Compare id2label and architectures in config.json with the published ones.",
        ),
        ko=(
            f"{folder.name}: 헤드의 텐서 {name}이 {found or '없음'}인데 "
            f"설정은 {wanted}를 요구합니다.",
            "헤드와 설정이 서로 다른 모델의 것이거나 파일이 손상되었습니다.",
            "config.json의 id2label과 architectures를 공개된 원본과 비교해 주세요.",
        ),
    )
