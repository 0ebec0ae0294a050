"""The ways back that are written by hand give the gradients of the plain formula."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from onsil.models.attention import STRETCH, Norm, causal
from onsil.models.positions import rotate
from onsil.models.shape import Shape

WIDTH = 32
NEAR = {torch.float32: 2e-6, torch.bfloat16: 1e-2}  # of the length of what is right


def far(found: Tensor, right: Tensor) -> float:
    return float(((found - right).double().norm() / right.double().norm()).detach())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_back_has_the_bits_of_autograd(interleaved, dtype):
    torch.manual_seed(0)
    angle = torch.rand(1, 1, 9, WIDTH // 2) * 6
    both = angle.repeat_interleave(2, -1) if interleaved else torch.cat((angle, angle), -1)
    cos, sin = both.cos(), both.sin()
    x = torch.randn(2, 3, 9, WIDTH).to(dtype).requires_grad_()
    upstream = torch.randn(2, 3, 9, WIDTH).to(dtype)
    wide = x.float()
    if interleaved:
        other = torch.stack((-wide[..., 1::2], wide[..., 0::2]), -1).flatten(-2)
    else:
        a, b = wide.chunk(2, -1)
        other = torch.cat((-b, a), -1)
    right = (wide * cos + other * sin).to(dtype)
    found = rotate(x, (cos, sin), interleaved)
    assert torch.equal(found, right)
    (of_found,), (of_right,) = (torch.autograd.grad(y, x, upstream) for y in (found, right))
    assert torch.equal(of_found, of_right)


@pytest.mark.parametrize("norm", ["rms", "rms+1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_back_has_the_bits_of_autograd(norm, dtype):
    torch.manual_seed(0)
    layer = Norm(Shape(10, WIDTH, 1, 1, norm=norm), WIDTH)
    assert layer.weight is not None
    layer.weight.data.normal_()
    x = (3 * torch.randn(2, 5, WIDTH)).to(dtype).requires_grad_()
    upstream = torch.randn(2, 5, WIDTH).to(dtype)
    weight = layer.weight + layer.offset
    right = F.rms_norm(x.float(), (WIDTH,), weight, layer.epsilon).to(dtype)
    found = layer(x)
    assert torch.equal(found, right)
    both = (torch.autograd.grad(y, (x, layer.weight), upstream) for y in (found, right))
    for mine, plain in zip(*both, strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("T", "heads", "kv_heads"), [(2 * STRETCH + 5, 4, 2), (7, 2, 2)])
def test_causal_products_are_attention(T, heads, kv_heads, dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, T, h, WIDTH).transpose(1, 2) for h in (heads, kv_heads, kv_heads))
    upstream = torch.randn(2, heads, T, WIDTH)
    ahead = torch.full((T, T), -torch.inf).triu(1)

    def both_ways(dtype: torch.dtype, f):
        each = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        y = f(*each)
        return y, *torch.autograd.grad(y, each, upstream.to(dtype))

    right = both_ways(
        torch.float64,
        lambda a, b, c: F.scaled_dot_product_attention(
            a, b, c, is_causal=True, scale=0.3, enable_gqa=True
        ),
    )
    found = both_ways(dtype, lambda a, b, c: causal(a, b, c, ahead.to(dtype), 0.3))
    for mine, plain in zip(found, right, strict=True):
        assert far(mine, plain) < NEAR[dtype]
