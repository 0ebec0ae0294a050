"""Every family against the published class: the same logits, the same bits back.

The bound is relative, 1e-5 × max(1, max|logit|): parity noise is below 1e-6, a wrong wiring far
above.
"""

from pathlib import Path

import pytest
import torch
from family_cases import DECODERS, ENCODERS, saved_once
from family_table import Notes
from safetensors import safe_open

from onsil.models.checkpoint import load, save

CASES = DECODERS | ENCODERS
TOKENS = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))


def read(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as f:
            found |= {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    return found


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
    before, after = read(folder), read(tmp_path)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype and torch.equal(tensor, after[key]), key
    again, info = type(oracle).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, tensor in oracle.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
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
