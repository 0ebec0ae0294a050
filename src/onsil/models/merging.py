"""Merging: one model out of several that began as the same one, without training.

Models tuned from one base lie close together, and between them the loss stays low; so their
weights can be averaged (Wortsman et al. 2022, "Model soups"), what each of them learnt can be added
to the base (Ilharco et al. 2023, "Editing models with task arithmetic"), and two can be joined
along the arc between them rather than the chord, tensor by tensor, which keeps the length of what
is joined (Shoemake 1985, SLERP).

    average            Σ wᵢθᵢ / Σ wᵢ
    task arithmetic    θ₀ + Σ λᵢ(θᵢ − θ₀);  λ < 0 takes something away
    slerp              sin((1−t)ω)/sin ω · a + sin(tω)/sin ω · b,  ω the angle between a and b

Sums are in float64 and rounded once to the type of the first model. Nothing here can tell whether
two models really began as one (`release.merging` asks their lineage): of models that did not, the
mean is as a rule worth nothing (docs/merging.md has the figure). Left out: TIES, DARE, and merging
without a common shape.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from onsil.errors import OnsilError
from onsil.models.encoder_decoder import EncoderDecoder
from onsil.models.transformer import Transformer

M = TypeVar("M", Transformer, EncoderDecoder)
STRAIGHT = 1e-6  # below this angle (radians) the arc is the chord


def average(models: Sequence[M], weights: Sequence[float] | None = None) -> M:
    """The mean of models, or their mean with these weights. Raises OnsilError when they have not
    one shape, or the weights do not fit them."""
    weights = [1.0] * len(models) if weights is None else weights
    _fitting(models)
    if len(weights) != len(models) or min(weights) < 0 or not sum(weights):
        raise _unlike(
            f"{len(models)} models cannot be averaged with the weights {list(weights)}",
            f"모델 {len(models)}개를 가중치 {list(weights)}로 평균할 수 없습니다",
        )
    total = sum(weights)
    shares = [weight / total for weight in weights]
    return _merged(models, lambda ts: sum_of(shares, ts))


def task_arithmetic(base: M, models: Sequence[M], scales: Sequence[float]) -> M:
    """The base and, of each model, so many times what tuning changed in it. Raises OnsilError."""
    _fitting([base, *models])
    if len(scales) != len(models):
        raise _unlike(
            f"{len(models)} models cannot be added with the scales {list(scales)}",
            f"모델 {len(models)}개를 배율 {list(scales)}로 더할 수 없습니다",
        )
    return _merged([base, *models], lambda ts: ts[0] + sum_of(scales, [t - ts[0] for t in ts[1:]]))


def slerp(a: M, b: M, t: float) -> M:
    """A model on the arc from a (t = 0) to b (t = 1), each tensor by itself. Raises OnsilError."""
    _fitting([a, b])
    if not 0 <= t <= 1:
        raise _unlike(f"t={t} lies outside the arc from 0 to 1", f"t={t}는 0과 1 사이를 벗어납니다")
    return _merged([a, b], lambda ts: arc(ts[0], ts[1], t))


def sum_of(shares: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Σ share · tensor."""
    total = torch.zeros_like(tensors[0])
    for share, tensor in zip(shares, tensors, strict=True):
        total += share * tensor
    return total


def arc(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation of two tensors of any one shape, float64. Where one of them is zero
    or both point the same (or the opposite) way there is no arc, and the chord is taken."""
    lengths = a.norm() * b.norm()
    cosine = float((a * b).sum() / lengths) if lengths else 1.0
    angle = torch.tensor(min(1.0, max(-1.0, cosine)), dtype=torch.float64).acos()
    if angle.sin() < STRAIGHT:
        return (1 - t) * a + t * b
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def _merged(models: Sequence[M], join: Callable[[list[Tensor]], Tensor]) -> M:
    """A copy of the first model with every tensor joined; tied ones once."""
    made = copy.deepcopy(models[0])
    theirs = [dict(model.named_parameters()) for model in models]
    for name, parameter in made.named_parameters():
        joined = join([parameters[name].detach().double() for parameters in theirs])
        parameter.data = joined.to(parameter.dtype)
    return made


def _fitting(models: Sequence[Transformer | EncoderDecoder]) -> None:
    """Refuse what cannot be one model: none, other shapes or vocabularies, adapters laid over."""
    if not models:
        raise _unlike("There is no model to merge", "합칠 모델이 없습니다")
    first, sizes = models[0], []
    for model in models:
        sizes.append({name: tuple(p.shape) for name, p in model.named_parameters()})
        for name, size in sizes[-1].items():
            if ".lora_" in name:
                raise _unlike(
                    f"The adapter {name} lies over a model: the product of two means is not the "
                    "mean of two products. Fold it in first (adapters.merge, remove_lora)",
                    f"모델 위에 어댑터 {name}이 놓여 있습니다. 평균의 곱은 곱의 평균이 아니므로 "
                    "먼저 가중치에 합쳐 주세요(adapters.merge, remove_lora)",
                )
            if sizes[0].get(name) != size:
                raise _unlike(
                    f"{name} is {sizes[0].get(name) or 'missing'} in one model and {size} in "
                    "another",
                    f"{name}: 한 모델에서는 {sizes[0].get(name) or '없음'}, 다른 모델에서는 "
                    f"{size}입니다",
                )
        if sizes[0] != sizes[-1] or model.shape != first.shape:
            raise _unlike(
                f"The models differ in shape: {_difference(first, model)}",
                f"모델들의 모양이 다릅니다: {_difference(first, model)}",
            )


def _difference(a: Transformer | EncoderDecoder, b: Transformer | EncoderDecoder) -> str:
    """The first word in which two shapes differ."""
    told = [vars(model.shape) for model in (a, b)]
    return next(
        (f"{key}={value!r}, {told[1].get(key)!r}" for key, value in told[0].items()
         if told[1].get(key) != value),
        f"{type(a).__name__}, {type(b).__name__}",
    )  # fmt: skip


def _unlike(en: str, ko: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{en}.",
            "Only models with one shape and one vocabulary, tuned from one base, can be merged.",
            "Give models that were tuned from the same base.",
        ),
        ko=(
            f"{ko}.",
            "모양과 어휘가 같고 한 바탕에서 조정한 모델끼리만 합칠 수 있습니다.",
            "같은 바탕 모델에서 조정한 모델들을 주세요.",
        ),
    )
