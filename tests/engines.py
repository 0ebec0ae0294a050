"""Small models that write, for tests of the engine."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

from onsil.inference.engine import Engine
from onsil.inference.slots import Slots
from onsil.inference.streaming import Stream
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer

BASE = Path(__file__).parents[1] / "base"
WORDS = Tokenizer.from_file(str(BASE / "tokenizer.json"))
V = WORDS.get_vocab_size()
SENTENCE = "연차는 10일까지 이월할 수 있다. 숙박비는 하루 80,000원까지 지급한다. "


@cache
def small(context: int = 1024) -> Transformer:
    """Random, and sharp enough that another rounding would soon be another token."""
    model = Transformer(decoder_shape(V, 64, 2, context)).initialise(3).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 4
    return model


def engines() -> Iterator:
    """What makes engines, and closes them at the end: `engine_of(model, slots=…, …)`."""
    made: list[Engine] = []

    def of(model: Transformer | None = None, slots: int = 8, **settings) -> Engine:
        made.append(Engine(Slots(model or small(), slots), WORDS, **settings))
        return made[-1]

    yield of
    for engine in made:
        engine.close(drain=False)


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(WORDS.encode(text).ids)


def told(stream: Stream) -> tuple[str, list, str | None]:
    """All of its text, its tokens, and the reason it ended for."""
    pieces = list(stream)
    tokens = [token for piece in pieces for token in piece.tokens]
    return "".join(piece.text for piece in pieces), tokens, pieces[-1].reason
