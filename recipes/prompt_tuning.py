"""A learnt prompt beside written ones: ten rows before a frozen decoder (Lester et al. 2021).

    python recipes/prompt_tuning.py

The same task, base and sentences as `lora.py`, in plain words instead of a chat, so that a written
prompt stands where the base expects text. In every arm what the base says of an answer on average
is taken off (calibration, Zhao et al. 2021; the average over the 200 sentences to choose by): a
written prompt is worth nothing without. Written arm: the best of six prompts on those 200, three
of them with examples. Learnt arm: ten rows, 3,000 sentences three times, the rate that was best of
three on the same 200 (`python recipes/prompt_tuning.py choose`).
Asserted in every run: P·d numbers learn, and not a bit of the base changes.
"""

import hashlib
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from lora import (
    DEV_SEED,
    EACH,
    Pairs,
    base,
    best_rate,
    calibrated,
    chat,
    sentences,
    split,
    taught,
)
from proving import prove

from onsil.tokenizer.templates import ONSIL
from onsil.tokenizer.turns import Role, render
from onsil.training.supervised import Tuning, learner

PLAIN = replace(
    ONSIL,
    name="plain",
    roles={
        "system": Role("", "\n"),
        "user": Role("문장: ", "\n"),
        "assistant": Role("종류: ", "<|end|>"),
    },
)
SHOWN = (
    ("오늘은 날씨가 맑다", "서술"),
    ("지금 몇 시야", "질문"),
    ("문 좀 닫아", "명령"),
    ("내일 아침", "조각"),
)
EXAMPLES = "\n".join(f"문장: {text}\n종류: {kind}" for text, kind in SHOWN)
BACKWARDS = "\n".join(f"문장: {text}\n종류: {kind}" for text, kind in SHOWN[::-1])
ASKED = "문장의 종류를 서술, 질문, 명령, 조각 가운데 하나로 답한다."
WRITTEN = (
    ASKED,
    "사실을 말하면 서술, 무엇을 물으면 질문, 무엇을 시키면 명령, 문장이 아니면 조각이다.",
    "문장의 종류는 서술, 질문, 명령, 조각으로 나눈다.",
    EXAMPLES,
    BACKWARDS,
    f"{ASKED}\n{EXAMPLES}",
)
TUNING = Tuning(epochs=3, rate=1e-1, batch_tokens=512, method="prompt", rank=10)
RATES, TRAIN = (3e-2, 1e-1, 3e-1), 3_000


def digest(model: torch.nn.Module) -> str:
    known = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        known.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return known.hexdigest()


@cache
def best_written() -> str:
    """The written prompt with the most right on the sentences to choose by."""
    _, dev, _ = split(sentences(), EACH, EACH // 2)
    found = {
        system: sum(calibrated(*base(), PLAIN, dev, dev, system)) / len(dev) for system in WRITTEN
    }
    print("dev:", {system[:20]: round(x, 3) for system, x in found.items()}, flush=True)
    return max(found, key=lambda system: found[system])


def learnt(tuning: Tuning, known: Pairs, judged: Pairs, others: Pairs) -> list[float]:
    """Which sentences the same base gets right after learnt rows."""
    model, words = base()
    before, taking = digest(model), learner(model, tuning)
    numbers = sum(p.numel() for p in taking.parameters.values())
    assert numbers == tuning.rank * model.shape.width
    some = random.Random(tuning.seed).sample(known, min(TRAIN, len(known)))
    taught(taking, [render(words, PLAIN, chat(*pair)) for pair in some], tuning)
    assert digest(model) == before
    return calibrated(taking.reader, words, PLAIN, judged, others)


def choose() -> None:
    """Try the rates; what was best stands in TUNING."""
    known, dev, _ = split(sentences(), EACH, EACH // 2)
    told = replace(TUNING, seed=DEV_SEED)
    print(best_rate(lambda rate: learnt(replace(told, rate=rate), known, dev, dev), RATES))


def main(seeds: Sequence[int] = (0, 1, 2)) -> dict:
    torch.set_num_threads(1)
    known, dev, judged = split(sentences(), EACH, EACH // 2)
    untaught = replace(TUNING, epochs=0)
    arms = {
        "no prompt": lambda seed: calibrated(*base(), PLAIN, judged, dev),
        "written": lambda seed: calibrated(*base(), PLAIN, judged, dev, best_written()),
        "rows not learnt": lambda seed: learnt(replace(untaught, seed=seed), known, judged, dev),
        "learnt": lambda seed: learnt(replace(TUNING, seed=seed), known, judged, dev),
    }
    width = base()[0].shape.width
    return prove(
        "prompt_tuning",
        f"a learnt prompt of {TUNING.rank} rows beats the best of six written ones",
        arms,
        [("learnt", "written"), ("learnt", "rows not learnt")],
        seeds,
        {
            "data": "3i4K, 4 kinds", "sentences": TRAIN, "rows": TUNING.rank, "rate": TUNING.rate,
            "epochs": TUNING.epochs, "trained_parameters": TUNING.rank * width,
            "written": best_written(),
        },
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    choose() if sys.argv[1:] == ["choose"] else main()
