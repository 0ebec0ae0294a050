"""Every family against the published class: the same logits, the same bits back.

The bound is relative, 1e-5 × max(1, max|logit|): parity noise is below 1e-6, a wrong wiring far
above.
"""

import json
from pathlib import Path

import pytest
import torch
from family_cases import DECODERS, ENCODERS, GROUPED, causal, make, roped, saved_once
from family_table import Notes
from safetensors import safe_open
from safetensors.torch import save_file

from onsil.models.checkpoint import load, save
from onsil.models.families import shape_of

CASES = DECODERS | ENCODERS
TOKENS = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))


def read(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as f:
            found |= {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    return found


def assert_same_bits(oracle, folder: Path, saved: Path) -> None:
    """Every tensor of the published files is in ours, and the published class reads ours whole."""
    before, after = read(folder), read(saved)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype and torch.equal(tensor, after[key]), key
    again, info = type(oracle).from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, tensor in oracle.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


def logits_of(output) -> torch.Tensor:
    return output.prediction_logits if hasattr(output, "prediction_logits") else output.logits


def bound(wanted: torch.Tensor) -> float:
    return 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Each case's published model, saved once."""
    return saved_once(CASES, tmp_path_factory)


@pytest.fixture(scope="module")
def notes() -> Notes:
    return Notes("decoders and encoders")


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_logits_are_the_published_ones(name, checkpoints, notes):
    oracle, folder = checkpoints(name)
    model, _ = load(folder)
    wanted, got = logits_of(oracle(TOKENS)), model.eval()(TOKENS)
    notes.error(name, model, got, wanted)
    assert (got - wanted).abs().max() < bound(wanted)


@pytest.mark.parametrize("name", CASES)
def test_what_is_loaded_is_saved_to_the_same_bits(name, checkpoints, tmp_path, notes):
    oracle, folder = checkpoints(name)
    model, extra = load(folder)
    save(model, tmp_path, {}, extra)
    assert_same_bits(oracle, folder, tmp_path)
    notes.passed(name, "same bits back")


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_cached_decode_is_the_full_forward(name, checkpoints, notes):
    """Where frequencies grow with the text (dynamic, longrope), on either side of the change."""
    model = load(checkpoints(name)[1])[0].eval()
    first, last = {"llama dynamic": (7, 16), "phi3 longrope long": (20, 40)}.get(name, (7, 40))
    cache = model.new_cache()
    parts = [model(TOKENS[:, :first], cache=cache)]
    parts += [model(TOKENS[:, first : first + 5], cache=cache)]
    parts += [model(TOKENS[:, t : t + 1], cache=cache) for t in range(first + 5, last)]
    full = model(TOKENS[:, :last])
    # Scores ten times ten as large carry ten times the rounding.
    allowed = bound(full) * (10 if CASES[name].sharpened else 1)
    assert (torch.cat(parts, 1) - full).abs().max() < allowed
    notes.passed(name, "cached decode")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_padded_rows_are_what_they_are_alone(name, side, checkpoints, notes):
    model = load(checkpoints(name)[1])[0].eval()
    short = TOKENS[1:, :25]
    padding = torch.zeros(1, 15, dtype=torch.long)
    row = torch.cat((padding, short) if side == "left" else (short, padding), 1)
    keep = torch.ones(2, 40, dtype=torch.bool)
    keep[1] = row[0] != 0
    got = model(torch.cat([TOKENS[:1], row]), keep_BT=keep)
    for one, alone in ((got[:1], model(TOKENS[:1])), (got[1:, keep[1]], model(short))):
        assert (one - alone).abs().max() < bound(alone)
    notes.passed(name, f"padding {side}")


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_documents_laid_end_to_end_are_what_they_are_alone(name, checkpoints, notes):
    model = load(checkpoints(name)[1])[0].eval()
    lengths = [17, 4, 19]
    together = model(TOKENS[:1], lengths=lengths)
    alone = torch.cat([model(part) for part in TOKENS[:1].split(lengths, 1)], 1)
    assert (together - alone).abs().max() < bound(alone)
    notes.passed(name, "documents")


def test_the_page_says_what_was_measured(notes):
    notes.settle(list(CASES))


# EXAONE 3.0's config as published (LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct), without its auto_map.
EXAONE = {
    "activation_function": "silu", "architectures": ["ExaoneForCausalLM"], "bos_token_id": 1,
    "attention_dropout": 0.0, "embed_dropout": 0.0, "eos_token_id": 361, "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 14336, "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 4096, "model_type": "exaone", "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_layers": 32, "pad_token_id": 0, "rope_scaling": None,
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.45.2", "use_cache": True, "vocab_size": 102400,
}  # fmt: skip
EXAONE_NAMES = {
    "model.embed_tokens": "transformer.wte", "model.layers": "transformer.h",
    "model.norm": "transformer.ln_f", "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2", "self_attn": "attn.attention", "o_proj": "out_proj",
    "gate_proj": "c_fc_0", "up_proj": "c_fc_1", "down_proj": "c_proj",
}  # fmt: skip


@torch.no_grad()
def test_exaone_3_is_llama_under_its_own_names(tmp_path):
    """transformers has no class of it; its maths are LLaMA's, so LLaMA's class is the oracle."""
    shape = shape_of(EXAONE)
    assert (shape.depth, shape.kv_heads, shape.head_width) == (32, 8, 128)
    assert shape.rotary.base == 500_000.0 and shape.norm_epsilon == 1e-5 and not shape.tied
    arguments = GROUPED | {"rms_norm_eps": 1e-5}
    oracle = make(causal("Llama", roped(arguments, "default", rope_theta=500_000.0)))
    tensors = {}
    for name, tensor in oracle.state_dict().items():
        for theirs, ours in EXAONE_NAMES.items():
            name = name.replace(theirs, ours)
        tensors[name] = tensor.contiguous()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    sizes = {"hidden_size": 64, "intermediate_size": 112, "num_layers": 4, "vocab_size": 97}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(EXAONE | sizes | heads))
    model, extra = load(tmp_path)
    wanted = oracle(TOKENS).logits
    assert not extra and (model.eval()(TOKENS) - wanted).abs().max() < bound(wanted)
    save(model, tmp_path, {}, extra)
    after = read(tmp_path)
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items())
