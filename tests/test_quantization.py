"""Four bits a weight: how far off, how many bytes, and an adapter that learns beside them."""

import copy
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from onsil.errors import OnsilError
from onsil.models.adapters import (
    adapted,
    adapter_parameters,
    add_lora,
    load_adapter,
    merge,
    remove_lora,
    save_adapter,
    unmerge,
)
from onsil.models.checkpoint import load, save
from onsil.models.quantization import (
    NF4,
    Packed,
    bytes_per_weight,
    largest_error,
    matrices,
    pack,
    quantize,
    restore,
)
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer

TARGETS = ("attention.q", "attention.v", "mlp.up", "mlp.down")


def model(width: int = 64) -> Transformer:
    return Transformer(decoder_shape(vocabulary=97, width=width, depth=2, context=32)).initialise(0)


IDS = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))

# -- levels -------------------------------------------------------------------------------------


def test_nf4_is_made_of_quantiles_of_the_normal_distribution():
    """Appendix E: 8 even steps of probability down, 7 up, from the quantile that the authors'
    offset names, and both sides divided by the outermost."""
    outermost = 0.9677083
    up = [NormalDist().inv_cdf(0.5 + (outermost - 0.5) * k / 8) for k in range(1, 9)]
    down = [-NormalDist().inv_cdf(0.5 + (outermost - 0.5) * k / 7) for k in range(7, 0, -1)]
    found = [x / up[-1] for x in (*down, 0.0, *up)]
    assert pytest.approx(found, abs=2e-7) == NF4


@given(
    st.sampled_from(["nf4", "int4"]),
    st.sampled_from([16, 64]),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=200),
)
def test_a_weight_is_off_by_half_the_largest_gap_of_its_block_at_most(levels, block, weights):
    weight = torch.tensor(weights)
    rows = F.pad(weight, (0, -len(weight) % block)).view(-1, block)
    off = F.pad((pack(weight, levels, block=block).unpacked() - weight).abs(), (0, rows.numel()))
    allowed = rows.abs().amax(1) * largest_error(levels)
    assert (off[: rows.numel()].view_as(rows) <= allowed[:, None] * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize("levels", ["nf4", "int4"])
def test_the_bound_is_met_in_the_middle_of_the_largest_gap(levels):
    table = sorted(set(pack(torch.linspace(-1, 1, 64), levels).unpacked().tolist()))
    low, high = max(pairwise(table), key=lambda gap: gap[1] - gap[0])
    weight = torch.tensor([1.0, (low + high) / 2])
    off = float((pack(weight, levels).unpacked() - weight).abs().max())
    assert off == pytest.approx(largest_error(levels), rel=1e-4)


def test_normal_weights_lose_less_in_nf4_and_uniform_ones_in_int4():
    draw = torch.Generator().manual_seed(1)
    normal = torch.randn(256, 256, generator=draw)
    uniform = torch.rand(256, 256, generator=draw) * 2 - 1
    lost = {
        (name, levels): float((pack(weight, levels).unpacked() - weight).square().mean())
        for name, weight in (("normal", normal), ("uniform", uniform))
        for levels in ("nf4", "int4")
    }
    assert lost["normal", "nf4"] < lost["normal", "int4"]
    assert lost["uniform", "int4"] < lost["uniform", "nf4"]


def test_what_is_kept_is_what_was_promised():
    """4 bits and a float32 for 64; or 4 bits and a byte for 64 and a float32 for 256 of those."""
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(2))
    plain, double = pack(weight), pack(weight, double=True)
    assert bytes_per_weight([weight]) == 4.0
    assert bytes_per_weight([plain]) == 0.5 + 4 / 64
    assert bytes_per_weight([double]) == pytest.approx(0.5 + 1 / 64 + 4 / 64 / 256, rel=1e-4)
    off = [(p.unpacked() - weight).square().mean() for p in (plain, double)]
    assert off[1] < 1.02 * off[0]  # the second rounding costs next to nothing


def test_a_magnitude_in_one_byte_is_off_by_half_a_step_of_its_group():
    """Blocks of equal weights show their magnitudes: the byte has 127 steps to the one that lies
    furthest from the mean, so none is off by more than half of one."""
    magnitudes = 0.5 + torch.rand(2 * 256, generator=torch.Generator().manual_seed(4))
    weight = magnitudes.repeat_interleave(64).view(512, 64)
    off = (pack(weight, double=True).unpacked() - weight).abs().view(2, -1).amax(1)
    step = (magnitudes - magnitudes.mean()).abs().view(2, -1).amax(1) / 127
    assert (off <= step / 2 * 1.001).all() and (off > step / 4).all()


# -- products -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_unpacked_weight_and_keeps_nothing_as_large(dtype):
    weight = pack(torch.randn(96, 80, generator=torch.Generator().manual_seed(3)))
    x, y = (torch.randn(3, 5, 80, dtype=dtype, requires_grad=True) for _ in range(2))
    y.data.copy_(x.data)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        ours = F.linear(x, weight.to(dtype))
    theirs = F.linear(y, weight.unpacked().to(dtype))
    ours.sum().backward()
    theirs.sum().backward()
    assert ours.dtype == dtype and torch.allclose(ours, theirs, rtol=1e-5)
    assert torch.allclose(x.grad, y.grad, rtol=1e-5) and weight.grad is None
    assert max(kept, default=0) < weight.numel()


def test_a_packed_model_is_the_model_with_rounded_weights():
    packed, rounded = model(), model()
    quantize(packed)
    with torch.no_grad():
        for weight in matrices(rounded):
            weight.copy_(pack(weight).unpacked())
    assert all(isinstance(weight, Packed) for weight in matrices(packed))
    assert torch.allclose(packed(IDS), rounded(IDS), atol=1e-6)
    assert not torch.allclose(packed(IDS), model()(IDS), atol=1e-3)


# -- the adapter --------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["quantize", "add_lora"])
def test_a_fresh_adapter_changes_no_bit_and_only_it_learns(first):
    bare, tuned = model(), model()
    quantize(bare)
    if first == "quantize":
        quantize(tuned)
    add_lora(tuned, 4, 8, TARGETS)
    if first == "add_lora":
        quantize(tuned)
    assert torch.equal(tuned(IDS), bare(IDS))
    tuned(IDS).square().mean().backward()
    learning = {id(p) for p in adapter_parameters(tuned).values()}
    assert {id(p) for p in tuned.parameters() if p.grad is not None} == learning
    assert {id(p) for p in tuned.parameters() if p.requires_grad} == learning


def learnt(tmp_path: Path) -> tuple[Transformer, Transformer]:
    """A base, and the same in four bits under an adapter that has learnt something."""
    base, tuned = model(), model()
    quantize(tuned)
    add_lora(tuned, 4, 8, TARGETS)
    optimizer = torch.optim.AdamW(adapter_parameters(tuned).values(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(tuned(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5
    return base, tuned


def test_the_adapter_is_merged_into_the_base_as_it_was(tmp_path):
    base, tuned = learnt(tmp_path)
    delta = {name: layer.delta for name, layer in adapted(tuned).items()}
    rounded = tuned(IDS)
    restore(tuned, base)
    beside = tuned(IDS)
    merge(tuned)
    remove_lora(tuned)
    for name, change in delta.items():
        whole = base.get_submodule(name).weight + change
        assert torch.equal(tuned.get_submodule(name).weight, whole), name
    assert torch.allclose(tuned(IDS), beside, atol=1e-5)
    assert not torch.allclose(rounded, beside, atol=1e-3)  # another model: score both
    save(tuned, tmp_path, {})
    assert torch.equal(load(tmp_path)[0](IDS), tuned(IDS))


def test_merged_over_four_bits_it_is_the_model_that_was_tuned(tmp_path):
    base, tuned = learnt(tmp_path)
    told, before = tuned(IDS), [w.unpacked() for w in matrices(tuned) if isinstance(w, Packed)]
    merge(tuned)
    assert torch.allclose(tuned(IDS), told, atol=1e-5)
    unmerge(tuned)
    assert torch.equal(tuned(IDS), told)
    after = [w.unpacked() for w in matrices(tuned) if isinstance(w, Packed)]
    assert len(after) == len(before) and all(map(torch.equal, after, before))
    merge(tuned)
    restore(tuned, base)
    beside = tuned(IDS)
    assert not torch.allclose(beside, base(IDS), atol=1e-3)
    merge(tuned)
    assert torch.allclose(tuned(IDS), beside, atol=1e-5)


def test_a_packed_model_can_be_copied_and_not_be_changed_in_place():
    packed = model()
    quantize(packed)
    again = copy.deepcopy(packed)
    assert torch.equal(again(IDS), packed(IDS))
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in packed.named_parameters()]
    with pytest.raises(RuntimeError, match="not changed in place"), torch.no_grad():
        matrices(packed)[0].add_(1)


def test_an_adapter_goes_to_disk_and_comes_back_over_a_packed_base(tmp_path):
    _, tuned = learnt(tmp_path)
    save_adapter(tuned, tmp_path, "base", {})
    again = model()
    load_adapter(again, tmp_path)
    quantize(again)
    assert torch.equal(again(IDS), tuned(IDS))


def test_what_is_packed_is_not_packed_again():
    once = model()
    quantize(once, "int4")
    with pytest.raises(OnsilError, match="already"):
        quantize(once)


def test_a_base_of_another_width_is_refused():
    tuned = model()
    quantize(tuned)
    with pytest.raises(OnsilError, match=r"\(64, 64\)"):
        restore(tuned, model(128))
