"""The test of the test: mistakes planted in what is right must show.

Parity on tiny models proves something only if a wrong model fails it. So the commonest mistakes of
porting are made here on purpose, one at a time: the same tensors go into a transformer whose shape
has one word changed (where sizes differ, tensors are cut to fit), or under one another's names.
Every one must stand above the bound of parity, and the model as it was loaded below it.

What no output can show is not a mistake: without rotary positions a bias of the keys adds the same
number to all scores of a query, and softmax forgets it. It is the control at the end.
"""

import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple

import pytest
import torch
from family_cases import DECODERS, ENCODERS, PAIRS, make
from test_families import TOKENS, bound, logits_of
from test_pairs import TARGET, source_of

from onsil.models import attention, transformer
from onsil.models.checkpoint import load
from onsil.models.encoder_decoder import EncoderDecoder
from onsil.models.positions import bucket, sinusoids
from onsil.models.shape import Rotary, Shape
from onsil.models.transformer import Transformer

# A wrong value of these gives no model that the tensors fit or that answers in logits.
REFUSED = {"vocabulary", "width", "hidden", "experts", "embedding_width", "context"}
REFUSED |= {"reads", "writes"}
REFUSED |= {"key_shift", "value_tables", "embedding_skips", "pairs"}  # no published class has them


class Mistake(NamedTuple):
    case: str
    side: str
    changes: dict[str, Any]


def mistake(case: str, side: str = "", **changes: Any) -> Mistake:
    """Fields of Rotary are named rotary_base, rotary_width …; `side` is encoder or decoder."""
    return Mistake(case, side, changes)


MISTAKES = {
    "gelu, tanh form: exact": mistake("gpt2", activation="gelu"),
    "gelu of GPT-1: exact": mistake("openai-gpt", activation="gelu"),
    "gelu, tanh form, gated: exact": mistake("gemma2", activation="gelu"),
    "gelu, exact: tanh form": mistake("bert", activation="gelu_tanh"),
    "silu: gelu": mistake("llama", activation="gelu"),
    "relu: silu": mistake("opt", activation="silu"),
    "gate dropped": mistake("llama", gated=False),
    "epsilon of layer norm": mistake("bert", norm_epsilon=1e-5),
    "epsilon of RMS norm": mistake("llama", norm_epsilon=1e-5),
    "RMS with 1 + weight: weight": mistake("gemma", norm="rms"),
    "layer norm: RMS": mistake("phi", norm="rms"),
    "norm of queries and keys dropped": mistake("qwen3", qk_norm="none"),
    "its bias dropped": mistake("phi qk norm", qk_norm_bias=False),
    "norm of all heads: of each": mistake("olmo2", qk_norm="head"),
    "norm of each head: the first one's": mistake("stablelm parallel", qk_norm="head"),
    "rotary base": mistake("llama tied", rotary_base=1e6),
    "rotary part: all": mistake("phi", rotary_width=0),
    "rotary part: less": mistake("stablelm", rotary_width=2),
    "neighbours turn: halves": mistake("gptj", rotary_interleaved=False),
    "halves turn: neighbours": mistake("llama", rotary_interleaved=True),
    "linear scaling dropped": mistake("llama linear", rotary_scaling="none"),
    "linear factor": mistake("llama linear", rotary_factor=2.0),
    "dynamic scaling dropped": mistake("llama dynamic", rotary_scaling="none"),
    "dynamic: linear": mistake("llama dynamic", rotary_scaling="linear"),
    "dynamic: context before stretching": mistake("llama dynamic", rotary_original=17),
    "llama3 scaling dropped": mistake("llama llama3", rotary_scaling="none"),
    "llama3: low frequency": mistake("llama llama3", rotary_slow=0.5),
    "llama3: high frequency": mistake("llama llama3", rotary_fast=5.0),
    "llama3: context before stretching": mistake("llama llama3", rotary_original=32),
    "yarn scaling dropped": mistake("llama yarn", rotary_scaling="none"),
    "yarn amplitude dropped": mistake("llama yarn", rotary_amplitude=1.0),
    "yarn amplitude from mscale dropped": mistake("llama yarn mscale", rotary_amplitude=1.0),
    "yarn borders not whole": mistake("llama yarn ramp", rotary_truncate=False),
    "yarn borders whole": mistake("llama yarn ramp not whole", rotary_truncate=True),
    "yarn: fast": mistake("llama yarn ramp", rotary_fast=8.0),
    "yarn: slow": mistake("llama yarn ramp", rotary_slow=8.0),
    "yarn: context before stretching": mistake("llama yarn ramp", rotary_original=512),
    "longrope amplitude dropped": mistake("phi3 longrope long", rotary_amplitude=1.0),
    "longrope long: short": mistake("phi3 longrope long", rotary_original=48),
    "longrope short: long": mistake("phi3 longrope short", rotary_original=16),
    "longrope: divisors exchanged": mistake("phi3 longrope short", rotary_short=(2.0,) * 8),
    "longrope: long divisors": mistake("phi3 longrope long", rotary_long=(2.0,) * 8),
    "base of local layers: as global": mistake("gemma3_text", local_rotary=None),
    "layers without rotary ignored": mistake("exaone4", pattern="LLGL"),
    "every fourth without rotary ignored": mistake("smollm3", pattern="G"),
    "window one more": mistake("mistral", window=9),
    "window one less": mistake("mistral", window=7),
    "window dropped": mistake("gemma2", pattern="G"),
    "window on the other layers": mistake("gpt_neo", pattern="LG"),
    "a tap of a convolution less": mistake("lfm2", taps=3),
    "sees ahead": mistake("gpt2", causal=False),
    "sees no later word": mistake("bert", causal=True),
    "cap of scores dropped": mistake("gemma2", score_cap=0.0),
    "cap of logits dropped": mistake("gemma2", logit_cap=0.0),
    "cap of Gemma 3's logits dropped": mistake("gemma3_text", logit_cap=0.0),
    "score scale: of the head width": mistake("gemma2", score_scale=24**-0.5),
    "score scale 1: of the head width": mistake("gpt_neo", score_scale=16**-0.5),
    "score scale of its own: usual": mistake("hyperclovax", score_scale=16**-0.5),
    "residual scale dropped": mistake("hyperclovax", residual_scale=1.0),
    "logit scale dropped": mistake("hyperclovax", logit_scale=1.0),
    "embedding scale dropped": mistake("hyperclovax", embedding_scale=1.0),
    "embedding times root of width dropped": mistake("gemma", embedding_scale=1.0),
    "embedding norm dropped": mistake("bloom", embedding_norm=False),
    "segments ignored": mistake("bert", segments=0),
    "head's dense layer dropped": mistake("bert", head_transform=False),
    "own head: the embedding": mistake("llama", tied=True),
    "parallel, a norm each: one": mistake("gpt_neox", wiring="shared"),
    "parallel, one norm: a norm each": mistake("gptj", wiring="parallel"),
    "parallel: in turn": mistake("gpt_neox", wiring="pre"),
    "in turn: parallel": mistake("gpt_neox sequential", wiring="parallel"),
    "norm of the output: of the input": mistake("olmo2", wiring="pre"),
    "norm of the output: after the sum": mistake("exaone4", wiring="post"),
    "sandwich: without the outer norms": mistake("gemma2", wiring="pre"),
    "norms after: before": mistake("bert", wiring="pre"),
    "norms after, no final one: before": mistake("openai-gpt", wiring="pre"),
    "norms before: after": mistake("opt", wiring="post"),
    "last layer left out": mistake("llama", depth=3),
    "experts' weights not made to sum to one": mistake("mixtral", experts_renormalised=False),
    "experts' weights made to sum to one": mistake("qwen3_moe", experts_renormalised=True),
    "one expert": mistake("mixtral", experts_used=1),
    "first row of OPT's positions": mistake("opt", position_offset=0),
    "first row of RoBERTa's positions": mistake("roberta", position_offset=0),
    "heads twice as wide": mistake("gpt2", heads=2, kv_heads=2, head_width=32),
    **{
        f"bias of {letter} dropped": mistake("phi", bias="qkvoudh".replace(letter, ""))
        for letter in "qkvoudh"
    },
    "bias of queries, keys, values dropped": mistake("qwen2", bias=""),
    "bias of attention dropped": mistake("llama", bias="ud"),
    "bias of the MLP dropped": mistake("llama", bias="qkvo"),
    "bias of the masked-word head dropped": mistake("roberta", bias="qkvoud"),
    "the source not looked at": mistake("t5", "decoder", cross=False),
    "an encoder that sees no later word": mistake("t5", "encoder", causal=True),
    "a decoder that sees ahead": mistake("umt5", "decoder", causal=False),
    "distances not told": mistake("mt5", "encoder", positions="none"),
    "distances: fewer buckets": mistake("t5", "encoder", buckets=10),
    "distances: a shorter reach": mistake("t5", "decoder", reach=24),
    "a table of distances a layer: none": mistake("umt5", "decoder", relative_layers=False),
    "T5's scores: usual scale": mistake("t5", "decoder", score_scale=16**-0.5),
    "T5's tied logits: as they are": mistake("t5", "decoder", logit_scale=1.0),
    "T5's gated gelu: exact": mistake("t5 v1.1", "decoder", activation="gelu"),
    "sinusoids left out": mistake("marian", "encoder", positions="none"),
    "Marian's bias of the logits dropped": mistake("marian", "decoder", logit_bias=False),
    "Marian's scale of embeddings dropped": mistake("marian", "encoder", embedding_scale=1.0),
    "Whisper's bias of values dropped": mistake("whisper", "encoder", bias="qoud"),
}  # fmt: skip

CASES = DECODERS | ENCODERS | PAIRS
EXCHANGED = {
    "gate and up": ("llama", "mlp.gate", "mlp.up"),
    "gate and up in one matrix": ("phi3", "mlp.gate", "mlp.up"),
    "gate and up of experts": ("mixtral", "mlp.gate", "mlp.up"),
    "keys and values": ("gpt2", "attention.k", "attention.v"),
    "queries and keys of all heads": ("gpt_neox", "attention.q", "attention.k"),
    "the two norms of a block": ("opt", "attention_norm", "mlp_norm"),
    "the outer norms of a block": ("gemma2", "attention_norm_out", "mlp_norm_out"),
    "queries' norm and keys'": ("qwen3", "q_norm", "k_norm"),
}


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """For a case: our model, how it is asked, the published logits and the bound."""
    made: dict[str, tuple[Any, Callable[[Any], torch.Tensor], torch.Tensor, float]] = {}

    def of(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
            oracle = make(CASES[name])
            oracle.save_pretrained(folder)
            if name in PAIRS:
                source, told = source_of(name)
                told["decoder_input_ids"] = TARGET
                ask = lambda model: model(source, TARGET)  # noqa: E731
            elif name == "bert":
                told = {"input_ids": TOKENS, "token_type_ids": TOKENS % 2}
                ask = lambda model: model(TOKENS, segments_BT=TOKENS % 2)  # noqa: E731
            else:
                told, ask = {"input_ids": TOKENS}, lambda model: model(TOKENS)
            wanted = logits_of(oracle(**told))
            made[name] = (load(folder)[0].eval(), ask, wanted, bound(wanted))
        return made[name]

    return of


def changed(shape: Any, wrong: Mistake) -> Any:
    if wrong.side:
        stack = changed(getattr(shape, wrong.side), wrong._replace(side=""))
        return replace(shape, **{wrong.side: stack})
    turns = {
        k.removeprefix("rotary_"): v for k, v in wrong.changes.items() if k.startswith("rotary_")
    }
    rest = {k: v for k, v in wrong.changes.items() if not k.startswith("rotary_")}
    return replace(shape, rotary=replace(shape.rotary, **turns), **rest)


def with_tensors(shape: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """A model of this shape; what does not fit is cut, what is not there stays a plain norm."""
    model = Transformer(shape) if isinstance(shape, Shape) else EncoderDecoder(shape)
    fitting = {
        name: tensors[name].flatten()[: own.numel()].view(own.shape)
        for name, own in model.state_dict().items()
        if name in tensors
    }
    for name in set(model.state_dict()) - set(fitting):
        if name.endswith("relative.weight"):  # one table for all: the first layer's
            fitting[name] = tensors[name.replace("relative", "blocks.0.relative")]
        else:
            assert "norm" in name, name
    model.load_state_dict(fitting, strict=False)
    model.tie()
    return model.eval()


@pytest.mark.parametrize("name", MISTAKES)
@torch.no_grad()
def test_a_planted_mistake_shows(name, right):
    model, ask, wanted, allowed = right(MISTAKES[name].case)
    shape = changed(model.shape, MISTAKES[name])
    assert shape != model.shape
    assert (ask(model) - wanted).abs().max() < allowed
    assert (ask(with_tensors(shape, model.state_dict())) - wanted).abs().max() > allowed


@pytest.mark.parametrize("name", EXCHANGED)
@torch.no_grad()
def test_tensors_under_one_anothers_names_show(name, right):
    case, a, b = EXCHANGED[name]
    model, ask, wanted, allowed = right(case)
    other = {a: b, b: a}
    pattern = re.compile(rf"(?<=\.)({re.escape(a)}|{re.escape(b)})(?=$|\.)")
    names = {key: pattern.sub(lambda m: other[m[1]], key) for key in model.state_dict()}
    assert any(key != value for key, value in names.items())
    tensors = {names[key]: tensor for key, tensor in model.state_dict().items()}
    assert (ask(with_tensors(model.shape, tensors)) - wanted).abs().max() > allowed


def one_row(shape: Shape, ahead_BTS: torch.Tensor) -> torch.Tensor:
    """ALiBi with one geometric row of slopes, though six heads are no power of two."""
    slopes_H = 2 ** (-8 * torch.arange(1, shape.heads + 1) / shape.heads)
    return slopes_H[:, None, None] * ahead_BTS[:, None].float()


def in_turn(width: int, at: torch.Tensor) -> torch.Tensor:
    """Sine and cosine of each frequency side by side, as the 2017 paper prints them."""
    return sinusoids(width, at).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


@pytest.mark.parametrize(
    ("case", "home", "name", "wrong"),
    [
        ("bloom", attention, "alibi", one_row),
        ("marian", transformer, "sinusoids", in_turn),
        ("mt5", attention, "bucket", lambda shape, ahead: bucket(shape, -ahead)),
    ],
)
@torch.no_grad()
def test_positions_told_wrongly_show(case, home, name, wrong, right, monkeypatch):
    model, ask, wanted, allowed = right(case)
    assert (ask(model) - wanted).abs().max() < allowed
    monkeypatch.setattr(home, name, wrong)
    assert (ask(model) - wanted).abs().max() > allowed


@torch.no_grad()
def test_segments_that_are_always_the_first_show(right):
    model, _, wanted, allowed = right("bert")
    assert (model(TOKENS) - wanted).abs().max() > allowed


@torch.no_grad()
def test_a_bias_that_softmax_forgets_does_not_show(right):
    """The control: another shape, other arithmetic, the same function."""
    model, ask, wanted, allowed = right("gpt2")
    forgotten = with_tensors(replace(model.shape, bias="qvoud"), model.state_dict())
    assert (ask(forgotten) - wanted).abs().max() < allowed


def test_every_switch_has_a_mistake():
    planted = {field for wrong in MISTAKES.values() for field in wrong.changes}
    of_rotary = {f"rotary_{field.name}" for field in fields(Rotary)}
    of_shape = {field.name for field in fields(Shape)} - {"rotary"}
    assert of_rotary | of_shape == planted | REFUSED
    assert not planted & REFUSED
