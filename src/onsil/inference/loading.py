"""A model folder → what serves it: an engine, and how it is spoken to.

Any folder that can write: a published checkpoint or one of ours, one tuned on chats (with its
template.json, perhaps a learnt prompt), or a grown model, whose decoder/ continues texts and whose
encoder/ makes vectors. A folder with an encoder alone makes vectors and refuses to write.
Nothing in a folder is run but its chat template, and that confined; weights are safetensors.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from onsil.inference.ending import computing
from onsil.inference.engine import CACHE_BYTES, Engine
from onsil.inference.generation import load_writer
from onsil.inference.grammar import Grammars
from onsil.inference.prompts import Prompts, load_prompts
from onsil.inference.reading import Reader
from onsil.inference.slots import Pairs, Slots
from onsil.models.checkpoint import load
from onsil.models.encoder_decoder import EncoderDecoder
from onsil.models.transformer import Transformer
from onsil.models.weights import read_json
from onsil.tokenizer import load_tokenizer


@dataclass(frozen=True)
class ServedModel:
    """`kind`: decoder, encoder-decoder or encoder."""

    engine: Engine | Reader
    prompts: Prompts
    grammars: Grammars
    kind: str

    def close(self, drain: bool = True) -> None:
        """End the engine and the child processes."""
        self.engine.close(drain)
        self.prompts.confined.close()


@computing()
def load_engine(
    folder: Path, slots: int = 8, compute: str = "fp32", cache_bytes: int = CACHE_BYTES
) -> ServedModel:
    """The engine of a folder. `compute`: "fp32", or "bf16" for half the memory and the time of a
    step, and answers that may differ; `cache_bytes`: of beginnings that were read before. Raises
    OnsilError when nothing in it writes or reads."""
    grown = (folder / "decoder").is_dir()
    weights = folder / "decoder" if grown else folder
    words = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    loads = partial(load, compute=compute, dtype=_dtype(compute))
    reader = None
    if (folder / "encoder").is_dir():
        reader = Reader(loads(folder / "encoder")[0])
    elif _only_reads(weights):
        return _reading(folder, words, loads(weights)[0])
    writer = load_writer(weights, words, loads)
    if pair := isinstance(writer.model, EncoderDecoder):
        runner = Pairs(writer.model, slots, writer.start)
    else:
        runner = Slots(writer.model, slots, soft=writer.soft)
    prompts = load_prompts(weights, writer.tokenizer, runner.context, writer.stop)
    prompts.open_ended = not pair
    engine = Engine(runner, writer.tokenizer, cache_bytes=cache_bytes, reader=reader)
    return _served(engine, prompts, "encoder-decoder" if pair else "decoder")


def _dtype(compute: str) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[compute]


def _only_reads(folder: Path) -> bool:
    """Whether a folder holds an encoder: of a family of encoders, or a decoder's that looks both
    ways."""
    config = read_json(folder / "config.json")
    return config.get("model_type") in ("bert", "roberta") or config.get("is_causal") is False


def _reading(folder: Path, words: Path, model: Transformer) -> ServedModel:
    engine = Reader(model)
    prompts = load_prompts(folder, load_tokenizer(words), engine.context + 1, frozenset())
    return _served(engine, prompts, "encoder")


def _served(engine: Engine | Reader, prompts: Prompts, kind: str) -> ServedModel:
    grammars = Grammars(prompts.tokenizer, prompts.stop, engine.vocabulary, prompts.confined)
    return ServedModel(engine, prompts, grammars, kind)
