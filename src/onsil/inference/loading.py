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

from onsil.inference.engine import CACHE_BYTES, CAPACITY, QUEUE, Engine
from onsil.inference.generation import load_writer
from onsil.inference.grammar import Grammars
from onsil.inference.prompts import Prompts, load_prompts
from onsil.inference.reading import Reader
from onsil.models.adapters import load_prompt
from onsil.models.checkpoint import load
from onsil.models.encoder_decoder import EncoderDecoder
from onsil.models.transformer import Transformer
from onsil.models.weights import read_json
from onsil.tokenizer import load_tokenizer

PROMPT = "prompt"  # a learnt prompt, as training.supervised keeps it


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


def load_engine(
    folder: Path,
    slots: int = 8,
    compute: str = "fp32",
    *,
    queue: int = QUEUE,
    capacity: int = CAPACITY,
    cache_bytes: int = CACHE_BYTES,
    digest: str = "",
) -> ServedModel:
    """The engine of a folder. `compute`: "fp32", or "bf16" for half the memory and the time of a
    step, and answers that may differ. Raises OnsilError when nothing in it writes or reads."""
    grown = (folder / "decoder").is_dir()
    weights = folder / "decoder" if grown else folder
    words = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    loads = partial(load, compute=compute, dtype=_dtype(compute))
    reader = None
    if (folder / "encoder").is_dir():
        reader = Reader(loads(folder / "encoder")[0])
    elif _only_reads(weights):
        return _reading(folder, words, loads(weights)[0], digest)
    writer = load_writer(weights, words, loads)
    soft = None
    if (weights / PROMPT).is_dir():
        assert isinstance(writer.model, Transformer)
        soft = load_prompt(writer.model, weights / PROMPT)
    engine = Engine(
        writer.model,
        writer.tokenizer,
        slots,
        queue=queue,
        capacity=capacity,
        cache_bytes=cache_bytes,
        digest=digest,
        start=writer.start,
        soft=soft,
        reader=reader,
    )
    pair = isinstance(writer.model, EncoderDecoder)
    prompts = load_prompts(weights, writer.tokenizer, engine.context, writer.stop)
    prompts.open_ended = not pair
    return _served(engine, prompts, "encoder-decoder" if pair else "decoder")


def _dtype(compute: str) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[compute]


def _only_reads(folder: Path) -> bool:
    """Whether a folder holds an encoder."""
    return read_json(folder / "config.json").get("model_type") in ("bert", "roberta")


def _reading(folder: Path, words: Path, model: Transformer, digest: str) -> ServedModel:
    engine = Reader(model, digest)
    prompts = load_prompts(folder, load_tokenizer(words), engine.context + 1, frozenset())
    return _served(engine, prompts, "encoder")


def _served(engine: Engine | Reader, prompts: Prompts, kind: str) -> ServedModel:
    grammars = Grammars(prompts.tokenizer, prompts.stop, engine.vocabulary, prompts.confined)
    return ServedModel(engine, prompts, grammars, kind)
