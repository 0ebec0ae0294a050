"""LoRA on a task the base does not know: what kind of sentence is this? (3i4K, Cho et al. 2018)

    python recipes/lora.py

The base is the decoder that comes with onsil. It is asked about a spoken Korean sentence in a chat
and judged by which of four answers it finds likeliest, stop included; 100 sentences of each kind
that were never trained on, the same for every arm. The arms: the base as it is, what it says of an
answer on average taken off (calibration, Zhao et al. 2021; without, it gives one answer to all); an
adapter of rank 8 on every linear layer, the base frozen; all weights tuned. Both tunings read
1,000 chats twice, each at the rate that was best of four on 200 other sentences
(`python recipes/lora.py choose`).
"""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from proving import learn, prove, rows_of

from onsil.models.checkpoint import load
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.templates import ONSIL
from onsil.tokenizer.turns import Chat, Message, Template, render
from onsil.training.base import shipped
from onsil.training.objectives import schedule, token_loss
from onsil.training.supervised import Learner, Tuning, chat_batch, learner

KINDS = {"statement": "서술", "question": "질문", "command": "명령", "fragment": "조각"}
TUNINGS = {
    "LoRA": Tuning(epochs=2, rate=3e-3, batch_tokens=1024, method="lora", rank=8),
    "all weights": Tuning(epochs=2, rate=3e-4, batch_tokens=1024, method="full"),
}
RATES = {"LoRA": (1e-3, 3e-3, 1e-2, 2e-2), "all weights": (3e-4, 1e-3, 3e-3, 6e-3)}
TRAIN, EACH, DEV_SEED = 1_000, 100, 100


def sentences() -> dict[str, list[str]]:
    """Sentences of each kind, in the file's order, each once."""
    found: dict[str, dict[str, None]] = {kind: {} for kind in KINDS}
    for row in rows_of("intents/3i4k-train"):
        if row["name"] in found:
            found[row["name"]][row["text"]] = None
    return {kind: list(texts) for kind, texts in found.items()}


Pairs = list[tuple[str, str]]  # a sentence and its kind


def split(found: dict[str, list[str]], each: int, dev: int) -> tuple[Pairs, Pairs, Pairs]:
    """Sentences to train on, to choose rates by, and to judge by; the last two balanced."""
    parts: tuple[Pairs, Pairs, Pairs] = ([], [], [])
    for kind, texts in found.items():
        texts = random.Random(kind).sample(texts, len(texts))
        cuts = (texts[each + dev :], texts[each : each + dev], texts[:each])
        for part, some in zip(parts, cuts, strict=True):
            part += [(text, kind) for text in some]
    return parts


def chat(text: str, kind: str, system: str = "") -> list[Message]:
    told = [Message("system", system)] if system else []
    return [*told, Message("user", text), Message("assistant", KINDS[kind])]


@torch.no_grad()
def scores(reader: Any, words: Any, template: Template, texts: Sequence[str], system: str = ""):
    """Log probability of each kind's answer, stop included: N × kinds."""
    rows = []
    for start in range(0, len(texts), 16):
        told = [
            render(words, template, chat(text, kind, system))
            for text in texts[start : start + 16]
            for kind in KINDS
        ]
        batch = chat_batch(told)
        targets = cast(torch.Tensor, batch.targets)[0]
        spots = (targets >= 0).nonzero()[:, 0]
        hidden = reader.encode(batch.ids, lengths=batch.lengths)[0, spots]
        likely = reader.logits(hidden).log_softmax(-1).gather(1, targets[spots, None])[:, 0]
        sums = [part.sum() for part in likely.split([sum(c.said) for c in told])]
        rows.append(torch.stack(sums).view(-1, len(KINDS)))
    return torch.cat(rows)


def right(scores_NK: torch.Tensor, pairs: Pairs) -> list[float]:
    wanted = torch.tensor([list(KINDS).index(kind) for _, kind in pairs])
    return (scores_NK.argmax(1) == wanted).float().tolist()


def calibrated(
    reader: Any, words: Any, template: Template, judged: Pairs, others: Pairs, system: str = ""
) -> list[float]:
    """Which sentences are right, each answer's average over other sentences taken off."""
    own, average = (
        scores(reader, words, template, [text for text, _ in pairs], system)
        for pairs in (judged, others)
    )
    return right(own - average.mean(0), judged)


def base() -> tuple[Transformer, Any]:
    return load(shipped() / "decoder", "bf16")[0].eval(), load_tokenizer(shipped())


def taught(learnt: Learner, chats: Sequence[Chat], tuning: Tuning) -> None:
    """Train what learns on the chats."""
    steps = schedule(
        [len(c.ids) - 1 for c in chats], tuning.batch_tokens, tuning.epochs, tuning.seed
    )
    reader = cast(Transformer, learnt.reader)

    def loss_of(k: int):
        return token_loss(reader, chat_batch([chats[i] for i in steps[k]]))

    learn(learnt.parameters, loss_of, len(steps), tuning.rate)


def tuned(tuning: Tuning, known: Pairs, judged: Pairs, template: Template = ONSIL) -> list[float]:
    """One run: which of the sentences to judge by it gets right."""
    model, words = base()
    learnt = learner(model, tuning)
    some = random.Random(tuning.seed).sample(known, min(TRAIN, len(known)))
    taught(learnt, [render(words, template, chat(*pair)) for pair in some], tuning)
    told = scores(learnt.reader, words, template, [text for text, _ in judged])
    return right(told, judged)


def best_rate(run: Callable[[float], list[float]], rates: Sequence[float]) -> float:
    """The rate with the most right; tried on the sentences to choose by."""
    found = {rate: sum(right := run(rate)) / len(right) for rate in rates}
    print("dev:", {rate: round(share, 3) for rate, share in found.items()}, flush=True)
    return max(found, key=lambda rate: found[rate])


def choose() -> None:
    """Try the rates; what was best stands in TUNINGS."""
    known, dev, _ = split(sentences(), EACH, EACH // 2)
    for name, tuning in TUNINGS.items():
        told = replace(tuning, seed=DEV_SEED)
        rate = best_rate(lambda r: tuned(replace(told, rate=r), known, dev), RATES[name])  # noqa: B023
        print(name, rate)


def main(seeds: Sequence[int] = (0, 1, 2)) -> dict:
    torch.set_num_threads(1)
    known, dev, judged = split(sentences(), EACH, EACH // 2)

    def frozen(seed: int) -> list[float]:
        return calibrated(*base(), ONSIL, judged, dev)

    def arm(tuning: Tuning) -> Callable[[int], list[float]]:
        return lambda seed: tuned(replace(tuning, seed=seed), known, judged)

    arms = {"frozen": frozen} | {name: arm(tuning) for name, tuning in TUNINGS.items()}
    model, _ = base()
    counts = {"all weights": sum(p.numel() for p in model.parameters())}
    counts["LoRA"] = sum(p.numel() for p in learner(model, TUNINGS["LoRA"]).parameters.values())
    return prove(
        "lora",
        "an adapter on a frozen base learns a task the base does not know",
        arms,
        [("LoRA", "frozen"), ("all weights", "frozen")],
        seeds,
        {"data": "3i4K, 4 kinds", "chats": TRAIN, "trained_parameters": counts}
        | {
            name: {"rate": t.rate, "epochs": t.epochs, "rank": t.rank}
            for name, t in TUNINGS.items()
        },
    )


if __name__ == "__main__":
    choose() if sys.argv[1:] == ["choose"] else main()
