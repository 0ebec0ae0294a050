"""A model goes on writing: token by token, greedy or drawn, with a cache.

Decoders continue the prompt; encoder-decoders read it once and write from their start token.
Greedy output is the same on every run; a drawn one for a seed (`sampling`). One text at a time;
batches are the engine's business.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from onsil.errors import OnsilError
from onsil.inference.refusals import TooLong
from onsil.inference.sampling import Sampler, Sampling
from onsil.inference.streaming import Characters
from onsil.models.adapters import SoftPrompt, load_prompt
from onsil.models.encoder_decoder import EncoderDecoder
from onsil.models.prompted import PROMPT, Prompted
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer

Model = Transformer | EncoderDecoder


@torch.no_grad()
def written(
    model: Model | Prompted,
    prompt: list[int],
    stop: frozenset[int] = frozenset(),
    limit: int = 100,
    how: Sampling = Sampling(),
    start: int = 0,
) -> Iterator[int]:
    """Up to `limit` tokens after `prompt`, up to one of `stop`, which is not given. `start` begins
    what an encoder-decoder writes. A decoder also ends where its context does."""
    if isinstance(model, EncoderDecoder):
        decoder, feed, source = model.decoder, [start], model.read(torch.tensor([prompt]))
    else:
        decoder, feed, source = model, prompt, None
    sampler = Sampler(how, decoder.shape.vocabulary)
    cache, room = decoder.new_cache(), decoder.shape.context - len(feed)
    bounded = decoder.shape.positions == "learned"
    for _ in range(min(limit, room) if bounded else limit):
        hidden = decoder.encode(torch.tensor([feed]), cache=cache, source_BSD=source)
        token = sampler.pick(sampler.shifted(decoder.logits(hidden[0, -1])))
        if token in stop:
            return
        yield token
        feed = [token]


class Writer(NamedTuple):
    """A checkpoint that can write, with its tokenizer, the tokens it stops at, and the prompt that
    was learnt before it."""

    model: Model
    tokenizer: Any
    stop: frozenset[int]
    start: int
    soft: SoftPrompt | None = None

    def write(self, text: str, limit: int, how: Sampling = Sampling()) -> Iterator[str]:
        """What it writes after `text`, in pieces that are whole characters. Raises TooLong when
        the text is empty or leaves no room."""
        prompt = self.tokenizer.encode(text).ids
        model = self.model
        if self.soft is not None and isinstance(model, Transformer):
            model = Prompted(model, self.soft)
        context = min(stack.context for stack in stacks_of(model))
        learned = any(s.positions == "learned" for s in stacks_of(model))
        if not prompt or (learned and len(prompt) >= context):
            raise TooLong(len(prompt), context)
        characters = Characters(self.tokenizer.decode)
        for token in written(model, prompt, self.stop, limit, how, self.start):
            if shown := characters.add(token):
                yield shown


def stacks_of(model: Model | Prompted) -> list:
    return list(model.shape.stacks) if isinstance(model, EncoderDecoder) else [model.shape]


def load_writer(folder: Path, tokenizer: Path, load: Callable[[Path], Any]) -> Writer:
    """The writer of a checkpoint folder; `load` is `models.checkpoint.load`. Raises OnsilError when
    it writes no words or has no tokenizer.json."""
    if not (tokenizer / "tokenizer.json").is_file():
        raise _cannot(folder, "it has no tokenizer.json", "tokenizer.json이 없습니다")
    model = load(folder)[0].eval()
    last = stacks_of(model)[-1] if isinstance(model, Model) else None
    if last is None or not last.causal or last.writes != "tokens":
        raise _cannot(folder, "it reads and does not write", "읽는 모델이라 글을 쓰지 않습니다")
    if isinstance(model, EncoderDecoder) and model.stem is not None:
        raise _cannot(folder, "it writes down speech, not text", "글이 아니라 소리를 받아씁니다")
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    more = folder / "generation_config.json"
    told |= json.loads(more.read_text(encoding="utf-8")) if more.is_file() else {}
    ends = told.get("eos_token_id")
    stop = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
    words = load_tokenizer(tokenizer)
    stop |= {i for i in [words.token_to_id("<|end|>")] if i is not None}
    start = told.get("decoder_start_token_id")
    start = told.get("pad_token_id") or 0 if start is None else start
    soft = None
    if isinstance(model, Transformer) and (folder / PROMPT).is_dir():
        soft = load_prompt(model, folder / PROMPT)
    return Writer(model, words, stop, start, soft)


def _cannot(folder: Path, en: str, ko: str) -> OnsilError:
    return OnsilError(
        en=(
            f"This model cannot write: {en}.",
            "Only a decoder or an encoder-decoder with its tokenizer continues a text.",
            "See what it can do with: onsil inspect NAME",
        ),
        ko=(
            f"이 모델은 글을 쓸 수 없습니다: {ko}.",
            "이어 쓰기는 토크나이저가 있는 디코더나 인코더-디코더만 할 수 있습니다.",
            "할 수 있는 일은 다음 명령으로 확인해 주세요: onsil inspect 이름",
        ),
    )
