"""How fast the steps of a plan's decoder are here and now, and whether compiling them pays.

Everything that is computed on the way is thrown away: a speed decides a plan, and the plan decides
the bytes. `plan` is a `plan.Plan`, of which the steps' size, compute and threads count.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from onsil.errors import OnsilError, say
from onsil.models.shape import Shape, hybrid_shape

COMPILED_FROM = 120  # seconds of the decoder's training; compiling takes about 30


def measure_speed(
    plan: Any, vocabulary: int, text_tokens: int, own: Shape | None = None, seconds: float = 3.0
) -> int:
    """Training tokens per second of the plan's decoder, or of the base's `own`, on this machine,
    now, in steps no larger than the text."""
    import torch

    from onsil.models.compiling import compiled
    from onsil.models.transformer import Transformer
    from onsil.training.objectives import causal_batch, token_loss

    torch.set_num_threads(plan.threads)
    shape = own or hybrid_shape(vocabulary, plan.width, plan.depth)
    model = Transformer(shape, plan.compute).initialise(0)
    step = min(plan.batch_tokens, text_tokens)
    long = min(256, shape.context)
    batch = causal_batch([list(range(5, 5 + long)) for _ in range(max(1, step // long))])
    with compiled(model, plan.batch_tokens) if plan.compiled else nullcontext():
        done, start = -1, time.monotonic()
        while time.monotonic() - start < seconds or done < 1:
            loss, _ = token_loss(model, batch)
            loss.backward()
            done += 1
            if done == 0:  # the first step warms up
                start = time.monotonic()
    return round(done * sum(batch.lengths) / (time.monotonic() - start))


def compiling() -> str:
    """What is said before there is nothing to be seen for half a minute."""
    return say(
        "Compiling the training steps, about half a minute …",
        "학습 단계를 컴파일하는 중, 30초쯤 걸립니다 …",
    )


def faster(
    plan: Any, decoding: float, speed_of: Any, tell: Callable[[str], None]
) -> tuple[int, float] | None:
    """Tokens/s of compiled steps and the seconds that finding out took, most of them compiling;
    None where that is not possible or does not pay in `decoding` seconds of uncompiled steps.
    `speed_of(plan)` measures."""
    from onsil.models.compiling import compiler

    if decoding < COMPILED_FROM or not compiler():
        return None
    tell(compiling())
    start = time.monotonic()
    try:
        speed = speed_of(replace(plan, compiled=True))
    except OnsilError:  # no compiler that works
        return None
    lost = time.monotonic() - start
    return (speed, lost) if decoding * (1 - plan.tokens_per_second / speed) > lost else None
