"""Short convolutions beside torch's own, trained, written and read by the published class."""

import math
from dataclasses import replace

import pytest
import torch
from planted import PLANTED
from torch.nn import functional as F

from onsil.errors import OnsilError
from onsil.models.checkpoint import load, save
from onsil.models.convolution import mixed
from onsil.models.shape import decoder_shape, hybrid_shape
from onsil.models.transformer import Transformer
from onsil.training.loop import train
from onsil.training.objectives import causal_batch, token_loss
from onsil.training.optim import FAST, is_matrix

DRAW = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("taps", [1, 3, 5])
def test_it_is_a_depthwise_convolution_there_and_back(taps):
    z = torch.randn(2, 9, 6, generator=DRAW, dtype=torch.float64).requires_grad_()
    weight = torch.randn(6, 1, taps, generator=DRAW, dtype=torch.float64).requires_grad_()
    padded = torch.cat((z.new_zeros(2, taps - 1, 6), z), 1)
    got = mixed(padded, weight, torch.arange(9)[None].expand(2, -1))
    wanted = F.conv1d(padded.mT, weight, groups=6).mT
    assert torch.allclose(got, wanted, atol=1e-12)
    upstream = torch.randn(got.shape, generator=DRAW, dtype=torch.float64)
    one = torch.autograd.grad(got, (z, weight), upstream)
    other = torch.autograd.grad(wanted, (z, weight), upstream)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(one, other, strict=True))


def shape_of(pattern: str = "CG", **words):
    return replace(decoder_shape(61, 64, len(pattern), 64), pattern=pattern, **words)


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_it_learns_the_order_of_the_tokens_just_before(compute, tmp_path):
    """The next token follows from the last but one, which a layer that sees the same tokens without
    their places cannot tell from the others."""
    follows = torch.randperm(40, generator=DRAW).tolist()
    losses = {}
    for pattern in ("C", "N"):
        model = Transformer(shape_of(pattern), compute).initialise(0)
        weights = dict(model.named_parameters())
        matrices = {name for name, w in weights.items() if is_matrix(name, w)}
        moved = {f"blocks.0.convolution.{part}.weight" for part in ("bcx", "o")}
        assert (moved <= matrices) == (pattern == "C")  # by Muon
        scratch = tmp_path / pattern
        scratch.mkdir()

        def loss_of(step, model=model):
            draw, rows = torch.Generator().manual_seed(step), []
            for _ in range(16):
                row = torch.randint(40, (2,), generator=draw).tolist()
                while len(row) < 30:
                    row.append(follows[row[-2]])
                rows.append([5 + token for token in row])
            return token_loss(model, causal_batch(rows))

        for step in train(weights, loss_of, 150, 0.02, scratch, recipe=FAST, **PLANTED):
            losses[pattern] = step.loss
    first = math.log(40) / 29  # nothing tells the second token of a row
    assert losses["C"] < first + 0.03 and losses["N"] > first + 0.15, losses


@pytest.mark.parametrize(
    ("depth", "pattern"),
    [(1, "C"), (2, "CG"), (3, "CCG"), (4, "CCCG"), (5, "CCCCG"), (6, "CGCCCG"), (8, "CCCGCCCG")],
)
def test_a_hybrid_begins_with_a_convolution_and_ends_attending(depth, pattern):
    assert hybrid_shape(97, 64, depth).pattern == pattern


def test_a_grown_one_is_written_as_lfm2_and_read_by_its_class(tmp_path):
    import transformers

    model = Transformer(shape_of("CCG", taps=4, tied=False)).initialise(3).eval()
    save(model, tmp_path, {})
    again, extra = load(tmp_path)
    assert not extra and again.shape == model.shape
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(oracle).__name__ == "Lfm2ForCausalLM"
    ids = torch.randint(3, 61, (2, 30), generator=DRAW)
    with torch.no_grad():
        assert torch.allclose(oracle(ids).logits, model(ids), atol=1e-5)
        assert torch.equal(again.eval()(ids), model(ids))


def test_what_lfm2_has_no_place_for_is_refused(tmp_path):
    model = Transformer(shape_of(gated=False)).initialise(0)
    with pytest.raises(OnsilError, match="lfm2 checkpoint has no place for"):
        save(model, tmp_path, {})
    assert not [*tmp_path.iterdir()]


@torch.no_grad()
def test_a_cache_goes_on_from_the_last_token_and_not_from_padding():
    model = Transformer(hybrid_shape(50, 64, 4, 64)).initialise(0).eval()
    for p in model.parameters():
        p.add_(torch.randn(p.shape, generator=DRAW) * 0.1)
    alone = model(torch.tensor([[5, 6, 9]]))[0, -1]
    left, cache = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]]), model.new_cache()
    model(left, keep_BT=left > 0, cache=cache)
    next_BT = torch.tensor([[9], [9]])
    went_on = model(next_BT, keep_BT=next_BT > 0, cache=cache)
    assert (went_on[0, -1] - alone).abs().max() < 1e-4
    right = torch.tensor([[5, 6, 0, 0], [5, 6, 7, 8]])
    with pytest.raises(ValueError, match="pad on the left"):
        model(right, keep_BT=right > 0, cache=model.new_cache())
    assert (model(right, keep_BT=right > 0)[0, 1] - model(right[:1, :2])[0, 1]).abs().max() < 1e-4
