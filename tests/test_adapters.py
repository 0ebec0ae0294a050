"""Adapters against PEFT: what one trains the other reads; and what they promise by themselves.

The bound is the families' own, 1e-5 × max(1, max|logit|).
"""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import DECODERS, ENCODERS, GPT, PAIRS, SMALL, Case, make
from planted import PLANTED
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from onsil.errors import OnsilError
from onsil.models import adapters
from onsil.models.adapters import (
    adapter_parameters,
    add_lora,
    load_adapter,
    merge,
    remove_lora,
    save_adapter,
    unmerge,
)
from onsil.models.checkpoint import load, save
from onsil.models.encoder_decoder import EncoderDecoder
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.training.loop import train

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)

CASES = DECODERS | ENCODERS | PAIRS
FACTS = torch.Generator().manual_seed(1)
TOKENS = torch.randint(3, 97, (2, 20), generator=FACTS)
WANTED = torch.randint(3, 97, (2, 20), generator=FACTS)
QV, QKV = ("attention.q", "attention.v"), ("attention.q", "attention.k", "attention.v")
# Family → our targets, PEFT's; packed ones whole.
TARGETS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "llama": ((*QV, "mlp.gate", "mlp.down"), ["q_proj", "v_proj", "gate_proj", "down_proj"]),
    "qwen3": (QV, ["q_proj", "v_proj"]),
    "bert": (QV, ["query", "value"]),
    "t5": ((*QV, "cross.q", "cross.v", "mlp.up"), ["q", "v", "wi"]),
    "marian": ((*QV, "cross.q", "cross.v"), ["q_proj", "v_proj"]),
    "gpt2": ((*QKV, "attention.o"), ["c_attn", "attn.c_proj"]),
    "gpt_neox": (QKV, ["query_key_value"]),
    "bloom": (QKV, ["query_key_value"]),
    "phi3": ((*QKV, "mlp.gate", "mlp.up"), ["qkv_proj", "gate_up_proj"]),
}


def bound(wanted: torch.Tensor) -> float:
    return 1e-5 * max(1.0, float(wanted.abs().max()))


def logits_of(model, name: str) -> torch.Tensor:
    """What ours or the published model says."""
    ours = isinstance(model, Transformer | EncoderDecoder)
    if name in PAIRS:
        if ours:
            return model(TOKENS, TOKENS)
        return model(input_ids=TOKENS, decoder_input_ids=TOKENS).logits
    if ours:
        return model(TOKENS)
    output = model(input_ids=TOKENS)
    return output.prediction_logits if name == "bert" else output.logits


def tuned(model, name: str, parameters: dict[str, torch.Tensor], scratch: Path) -> None:
    """A few steps towards tokens that have nothing to do with the text."""

    def loss_of(step: int):
        scores = logits_of(model, name).flatten(0, 1)
        return F.cross_entropy(scores, WANTED.flatten(), reduction="sum"), WANTED.numel()

    loop = train(parameters, loss_of, 8, 3e-2, scratch, checkpoints=1, **PLANTED)
    losses = [step.loss for step in loop]
    assert losses[-1] < losses[0]


def digest(model) -> str:
    """Of every tensor that is not an adapter's."""
    known = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if ".lora_" not in name:
            known.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return known.hexdigest()


def peft_over(oracle, folder: Path):
    import peft

    return peft.PeftModel.from_pretrained(oracle, folder).eval()


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Each case's published model, saved once."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name.replace(" ", "_"))
            make(CASES[name]).save_pretrained(made[name])
        return made[name]

    return of


@pytest.fixture
def llama(folder_of):
    """A model with an adapter that has learnt something, loaded anew for every test."""
    model = load(folder_of("llama"))[0].eval()
    add_lora(model, 3, 6, TARGETS["llama"][0], seed=1)
    draw = torch.Generator().manual_seed(2)
    for parameter in adapter_parameters(model).values():
        parameter.data.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model


# -- against PEFT -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_what_we_train_peft_reads(name, folder_of, tmp_path):
    model = load(folder_of(name))[0]
    scaling = "rslora" if name in ("qwen3", "phi3") else "lora"
    before, base = digest(model), logits_of(model, name).detach()
    add_lora(model, 3, 5, TARGETS[name][0], scaling, seed=1)
    tuned(model, name, adapter_parameters(model), tmp_path)
    assert digest(model) == before
    save_adapter(model, tmp_path, str(folder_of(name)), {})
    oracle = peft_over(make(CASES[name]), tmp_path)
    with torch.no_grad():
        got, wanted = logits_of(model, name), logits_of(oracle, name)
    assert (got - base).abs().max() > 1000 * bound(wanted)
    assert (got - wanted).abs().max() < bound(wanted)


@pytest.mark.parametrize("name", TARGETS)
def test_what_peft_trains_we_read(name, folder_of, tmp_path):
    import peft

    torch.manual_seed(3)
    oracle = make(CASES[name])
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=TARGETS[name][1],
        use_rslora=name == "llama",
        fan_in_fan_out=name == "gpt2",
        task_type={"bert": None}.get(name, "SEQ_2_SEQ_LM" if name in PAIRS else "CAUSAL_LM"),
    )
    oracle = peft.get_peft_model(oracle, config)
    learnt = {n: p for n, p in oracle.named_parameters() if p.requires_grad}
    tuned(oracle, name, learnt, tmp_path)
    oracle.save_pretrained(tmp_path, save_embedding_layers=False)
    model = load(folder_of(name))[0]
    base = logits_of(model, name).detach()
    load_adapter(model, tmp_path)
    with torch.no_grad():
        got, wanted = logits_of(model, name), logits_of(oracle.eval(), name)
    assert sum(p.numel() for p in adapter_parameters(model).values()) == sum(
        p.numel() for p in learnt.values()
    )
    assert (got - base).abs().max() > 1000 * bound(wanted)
    assert (got - wanted).abs().max() < bound(wanted)
    again = tmp_path / "again"
    again.mkdir()
    save_adapter(model, again, "base", {})
    before, after = (load_file(f / adapters.WEIGHTS) for f in (tmp_path, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.parametrize(("family", "sizes"), [("Bert", SMALL), ("GPT2", GPT), ("Llama", SMALL)])
@torch.no_grad()
def test_a_stack_alone_names_its_layers_without_the_prefix(family, sizes, tmp_path):
    case = Case(f"{family}Config", sizes, f"{family}Model")
    make(case).save_pretrained(tmp_path)
    model = load(tmp_path)[0].eval()
    add_lora(model, 2, 4, QKV, seed=1)
    for parameter in adapter_parameters(model).values():
        parameter.add_(0.05)
    save_adapter(model, tmp_path, str(tmp_path), {})
    wanted = peft_over(make(case), tmp_path)(input_ids=TOKENS).last_hidden_state
    assert (model.encode(TOKENS) - wanted).abs().max() < bound(wanted)
    remove_lora(model)
    load_adapter(model, tmp_path)
    assert (model.encode(TOKENS) - wanted).abs().max() < bound(wanted)


# -- by themselves ------------------------------------------------------------------------------


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
@torch.no_grad()
def test_a_fresh_adapter_changes_no_bit(name, compute, folder_of):
    model = load(folder_of(name), compute)[0]
    before = logits_of(model, name)
    add_lora(model, 4, 8)
    assert torch.equal(logits_of(model, name), before)
    learnt = adapter_parameters(model)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == list(learnt)
    assert all(bool(p.any()) == name.endswith("lora_A") for name, p in learnt.items())


def test_a_is_uniform_in_one_over_the_root_of_its_width(folder_of):
    made = []
    for seed in (0, 0, 1):
        model = load(folder_of("llama"))[0]
        add_lora(model, 8, 8, seed=seed)
        made.append(model.blocks[0].attention.q.lora_A.detach())
    a, edge = made[0], 64**-0.5
    assert torch.equal(a, made[1]) and not torch.equal(a, made[2])
    assert 0.97 * edge < a.abs().max() <= edge
    # The spread of a uniform of this many draws, four of its own deviations wide.
    assert abs(float(a.var()) / (edge**2 / 3) - 1) < 4 * (0.8 / a.numel()) ** 0.5


@pytest.mark.parametrize("rank", [2, 5])
def test_the_change_has_the_rank_and_the_scale(rank, folder_of):
    for scaling, scale in (("lora", 7 / rank), ("rslora", 7 / rank**0.5)):
        model = load(folder_of("llama"))[0]
        add_lora(model, rank, 7, QV, scaling)
        layer = model.blocks[1].attention.q
        before = layer.weight.detach().clone()
        draw = torch.Generator().manual_seed(2)
        layer.lora_B.data.normal_(generator=draw)
        merge(model)
        delta = (layer.weight - before).detach().double()
        wanted = scale * (layer.lora_B.double() @ layer.lora_A.double()).detach()
        assert (delta - wanted).abs().max() < 1e-6 * float(wanted.abs().max())
        values = torch.linalg.svdvals(delta)
        assert values[rank - 1] > 1e-2 * values[0] and values[rank] < 1e-6 * values[0]


@torch.no_grad()
def test_merging_changes_rounding_alone_and_comes_back_to_the_same_bits(llama):
    before, apart = digest(llama), llama(TOKENS)
    merge(llama)
    merge(llama)  # a second time is no second adapter
    merged = llama(TOKENS)
    assert digest(llama) != before
    relative = (merged - apart).abs().max() / apart.abs().max()
    assert 0 < relative < 1e-6
    unmerge(llama)
    assert digest(llama) == before and torch.equal(llama(TOKENS), apart)


@torch.no_grad()
def test_merged_half_precision_is_within_half_a_step(folder_of):
    """A weight kept in bfloat16 has 8 digits: rounding moves it by 2⁻⁸ of itself at most. What the
    model says then is as far from full precision as the adapter computed apart is, or nearer than
    twice that."""
    exact, half = (load(folder_of("qwen3"), c)[0].eval() for c in ("fp32", "bf16"))
    half.to(torch.bfloat16)
    for model in (exact, half):
        add_lora(model, 3, 6, QV, seed=1)
        draw = torch.Generator().manual_seed(2)
        for parameter in adapter_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    wanted, apart = exact(TOKENS), half(TOKENS)
    layer = half.blocks[0].attention.q
    sum_DD = layer.weight.float() + layer.delta
    merge(half)
    assert layer.weight.dtype == torch.bfloat16
    assert ((layer.weight.float() - sum_DD).abs() <= 2**-8 * sum_DD.abs()).all()
    noise = (apart - wanted).abs().mean()
    assert 0 < (half(TOKENS) - wanted).abs().mean() < 2 * noise


@torch.no_grad()
def test_a_merged_model_is_an_ordinary_one(llama, folder_of, tmp_path):
    apart = llama(TOKENS)
    merge(llama)
    remove_lora(llama)
    assert all(p.requires_grad for p in llama.parameters())
    save(llama, tmp_path, {})
    oracle = type(make(CASES["llama"])).from_pretrained(tmp_path).eval()
    assert (oracle(TOKENS).logits - apart).abs().max() < bound(apart)
    plain = load(folder_of("llama"))[0].eval()
    before = plain(TOKENS)
    add_lora(plain, 2, 2)
    remove_lora(plain)
    assert torch.equal(plain(TOKENS), before)
    assert digest(plain) == digest(load(folder_of("llama"))[0])


def test_what_is_saved_is_loaded_to_the_same_bits(llama, folder_of, tmp_path):
    ancestry = {"inputs": ["sha256:0"]}
    save_adapter(llama, tmp_path, "규정모델", ancestry)
    model = load(folder_of("llama"))[0].eval()
    load_adapter(model, tmp_path)
    mine, theirs = adapter_parameters(llama), adapter_parameters(model)
    assert list(mine) == list(theirs)
    assert all(torch.equal(p, theirs[name]) for name, p in mine.items())
    with torch.no_grad():
        assert torch.equal(model(TOKENS), llama(TOKENS))
    again = tmp_path / "again"
    again.mkdir()
    save_adapter(model, again, "규정모델", ancestry)
    for file in (adapters.CONFIG, adapters.WEIGHTS):
        assert (again / file).read_bytes() == (tmp_path / file).read_bytes()
    assert b"sha256:0" in (tmp_path / adapters.WEIGHTS).read_bytes()


@torch.no_grad()
def test_a_cached_decode_goes_through_the_adapter(llama):
    cache = llama.new_cache()
    parts = [llama(part, cache=cache) for part in TOKENS.split([7, 1, 12], 1)]
    full = llama(TOKENS)
    assert (torch.cat(parts, 1) - full).abs().max() < bound(full)


# -- what is refused ----------------------------------------------------------------------------


def test_packed_matrices_are_taken_whole(folder_of):
    for name, family in (("gpt2", "gpt2"), ("gpt_neox", "gpt_neox"), ("phi3", "phi3")):
        model = load(folder_of(name))[0]
        with pytest.raises(OnsilError, match=rf"{family} keeps attention\.q, attention\.k"):
            add_lora(model, 2, 2, QV)
        add_lora(model, 2, 2, QKV)
        assert len(adapter_parameters(model)) == 4 * 4  # a layer: A once, B three times


def test_a_target_of_no_layer_is_refused_by_name(folder_of):
    model = load(folder_of("llama"))[0]
    for target in ("attention.query", "head", "embedding", ""):
        with pytest.raises(OnsilError) as raised:
            add_lora(model, 2, 2, ("attention.q", target))
        assert repr(target) in raised.value.en[0] and repr(target) in raised.value.ko[0]
        assert "attention.o" in raised.value.en[2]
    mixture = Transformer(decoder_shape(97, 64, 1)).initialise(0)
    with pytest.raises(OnsilError, match=r"cross\.q"):
        add_lora(mixture, 2, 2, ("cross.q",))
    assert all(p.requires_grad for p in model.parameters())  # nothing was begun


def test_an_adapter_is_laid_once_and_is_not_empty(llama, folder_of):
    with pytest.raises(OnsilError, match="an adapter already"):
        add_lora(llama, 2, 2)
    model = load(folder_of("llama"))[0]
    with pytest.raises(OnsilError, match="rank 0"):
        add_lora(model, 0, 2)
    for act in (merge, unmerge, remove_lora, adapter_parameters):
        with pytest.raises(OnsilError, match="no adapter"):
            act(model)


def test_another_model_is_refused_by_the_tensor(llama, folder_of, tmp_path):
    save_adapter(llama, tmp_path, "base", {})
    narrow = Transformer(decoder_shape(97, 32, 4)).initialise(0)
    with pytest.raises(OnsilError, match=r"q_proj\.lora_A.* is \(3, 64\).* \(3, 32\)"):
        load_adapter(narrow, tmp_path)
    shallow = Transformer(replace(llama.shape, depth=2)).initialise(0)
    with pytest.raises(OnsilError, match=r"layers\.2\..* belongs to no layer of this qwen3"):
        load_adapter(shallow, tmp_path)
    with pytest.raises(OnsilError, match=r"down_proj.* belongs to no layer of this bert"):
        load_adapter(load(folder_of("bert"))[0], tmp_path)
    assert all(p.requires_grad for p in narrow.parameters())


def respelled(folder: Path, **changed: Any) -> None:
    told = json.loads((folder / adapters.CONFIG).read_text(encoding="utf-8")) | changed
    (folder / adapters.CONFIG).write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("init_lora_weights", "pissa"),
        ("rank_pattern", {"q_proj": 4}),
        ("modules_to_save", ["lm_head"]),
        ("peft_type", "IA3"),
        ("r", 0),
        ("r", 4),
    ],
)
def test_what_is_not_built_is_refused_by_its_word(key, value, llama, folder_of, tmp_path):
    save_adapter(llama, tmp_path, "base", {})
    respelled(tmp_path, **{key: value})
    with pytest.raises(OnsilError) as raised:
        load_adapter(load(folder_of("llama"))[0], tmp_path)
    shown = "(4, 64)" if value == 4 else repr(value)
    assert shown in raised.value.en[0] and (shown in raised.value.ko[0])


def test_missing_files_and_halves_are_refused(llama, folder_of, tmp_path):
    model = load(folder_of("llama"))[0]
    with pytest.raises(OnsilError, match=r"no adapter_config\.json"):
        load_adapter(model, tmp_path)
    save_adapter(llama, tmp_path, "base", {})
    found = load_file(tmp_path / adapters.WEIGHTS)
    (tmp_path / adapters.WEIGHTS).unlink()
    with pytest.raises(OnsilError, match=r"no adapter_model\.safetensors"):
        load_adapter(model, tmp_path)
    gone = next(name for name in found if "lora_B" in name)
    save_file({n: t for n, t in found.items() if n != gone}, tmp_path / adapters.WEIGHTS)
    with pytest.raises(OnsilError, match=rf"{re.escape(gone)}.* missing"):
        load_adapter(model, tmp_path)
    save_file(
        {**found, "base_model.model.lm_head.lora_A.weight": found[gone].clone()}, tmp_path / "x"
    )
    (tmp_path / "x").rename(tmp_path / adapters.WEIGHTS)
    with pytest.raises(OnsilError, match=r"lm_head.* belongs to no layer"):
        load_adapter(model, tmp_path)


def test_a_pair_without_names_is_refused(folder_of):
    loaded = load(folder_of("t5"))[0]
    with pytest.raises(OnsilError, match="no names on disk"):
        add_lora(EncoderDecoder(loaded.shape).initialise(0), 2, 2)


def test_a_model_that_wears_an_adapter_is_not_saved_as_one(tmp_path):
    make(DECODERS["llama"]).save_pretrained(tmp_path)
    add_lora(model := load(tmp_path)[0], 2, 4)
    with pytest.raises(OnsilError, match="wears an adapter"):
        save(model, tmp_path, {})
