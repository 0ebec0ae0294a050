"""Adapters: a few new numbers beside a frozen model, instead of a new model.

LoRA (Hu et al. 2021): what tuning changes in a matrix has low rank, so W stays as it is and only
A (r × in) and B (out × r) learn:

    y = Wx + (α/r)·BAx        rsLoRA (Kalajdzievski 2023): α/√r, so that a large r still learns

A starts kaiming-uniform(√5), which is uniform in ±1/√in, and B zero: at first nothing has changed.
A prompt can be learnt the same way (Lester et al. 2021): P rows that stand before the embeddings
of every text, and nothing else.

On disk both are what PEFT 0.21 writes (adapter_config.json, adapter_model.safetensors), named as
the families' tables name the matrices. Where a checkpoint packs q, k and v in one matrix, PEFT has
one A for all three and a B over all their rows; so have we, and then they are asked for together. A
column of B is packed as a bias is: rows, never turned.

Left out: DoRA, dropout, adapters of embeddings, heads, routers and experts, several adapters at
once, learnt prompts of encoders and of models that scale or project their embeddings.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onsil.errors import OnsilError
from onsil.lineage.history import METADATA_KEY
from onsil.lineage.spelling import canonical
from onsil.models.attention import Cache, Linear
from onsil.models.encoder_decoder import EncoderDecoder
from onsil.models.families import FAMILIES
from onsil.models.families.grown import config_of
from onsil.models.families.names import Rule, pairings
from onsil.models.headers import Entry, header, within
from onsil.models.transformer import Transformer
from onsil.models.weights import read_json, stable_bytes, tensors

Stack = Transformer | EncoderDecoder
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."  # PEFT wraps the published model twice
PLACE = re.compile(r"blocks\.\d+\.(?:(?:attention|cross)\.[qkvo]|mlp\.(?:gate|up|down))$")
# What a config may say without changing the maths of what is read here.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "revision",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip
HARMLESS_VALUES = {"bias": ("none",), "init_lora_weights": (True, "gaussian")}


@dataclass(frozen=True)
class LoRA:
    """The numbers of one adapter: rank r, α, and what α is divided by."""

    rank: int
    alpha: float
    scaling: Literal["lora", "rslora"] = "lora"

    @property
    def scale(self) -> float:
        """α/r, or α/√r."""
        return self.alpha / (self.rank if self.scaling == "lora" else self.rank**0.5)


class LoRALinear(Linear):
    """A linear layer that keeps its own weight and has a path of rank r beside it."""

    unmerged: Tensor | None  # the weight as it was, while the adapter is in it

    def __init__(self, base: Linear, lora: LoRA, down_RD: nn.Parameter, up_XR: nn.Parameter):
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias, self.lora = base.weight, base.bias, lora
        self.lora_A, self.lora_B = down_RD, up_XR
        self.register_buffer("unmerged", None, persistent=False)

    @property
    def delta(self) -> Tensor:
        """What the adapter adds to the weight, float32."""
        return self.lora.scale * (self.lora_B @ self.lora_A).detach()

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        if self.unmerged is not None:
            return y
        low = F.linear(input, self.lora_A.to(input.dtype))
        return y + F.linear(low, self.lora_B.to(input.dtype)) * self.lora.scale


# ── where adapters can lie ──────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Site:
    """Layers of ours that are one matrix on disk: mostly one, q, k and v where they are packed."""

    ours: tuple[str, ...]
    disk: str
    rule: Rule

    def packed(self, ups: Sequence[Tensor]) -> Tensor:
        """The B on disk of the B's of ours."""
        columns = zip(*(up.unbind(1) for up in ups), strict=True)
        return torch.stack([self.rule.write(list(column))[0] for column in columns], 1)

    def unpacked(self, up_XR: Tensor) -> list[Tensor]:
        """`packed` undone. Raises RuntimeError when the rows do not fit."""
        columns = [self.rule.read([column]) for column in up_XR.unbind(1)]
        return [torch.stack(parts, 1) for parts in zip(*columns, strict=True)]

    def turned(self, ups: Sequence[Tensor]) -> bool:
        """Whether the matrix on disk lies the other way (GPT-2's Conv1D)."""
        return len(self.rule.write([up[:, :1] for up in ups])[0]) == 1


def family_name(model: Stack) -> str:
    """What the model is called on disk. Raises OnsilError when it has no name there."""
    if model.origin is not None:
        return model.origin.family
    if isinstance(model, Transformer):
        return str(config_of(model.shape)["model_type"])
    raise _unfit(
        "An encoder-decoder that was not loaded has no names on disk",
        "불러온 적이 없는 인코더-디코더에는 디스크에서 쓸 이름이 없습니다",
    )


def sites(model: Stack) -> list[Site]:
    """Every place of a model where an adapter can lie, in the order of its modules."""
    linear = [name for name, m in model.named_modules() if isinstance(m, Linear)]
    family = FAMILIES[family_name(model)]
    own = [f"{name}.weight" for name in linear if PLACE.search(name)]
    stem = lambda name: name.removesuffix(".weight")  # noqa: E731
    # Classes named for the stack alone (BertModel) leave the prefix off the names of their layers.
    kind = (model.origin.config.get("architectures") or [""])[0] if model.origin else ""
    alone = kind.endswith("Model") and isinstance(model, Transformer) and model.head is None
    prefix = family.prefix if alone else ""
    return [
        Site(tuple(map(stem, pair.ours)), stem(pair.disk[0]).removeprefix(prefix), pair)
        for pair in pairings(family.names(model.shape), own)
    ]


def _layer(model: Stack, name: str) -> Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, Linear)
    return layer


def chosen(model: Stack, targets: Sequence[str]) -> list[Site]:
    """The places whose names end in a target. Raises OnsilError when none does, and when only a
    part of what is packed together is asked for."""
    places = sites(model)
    hit = lambda name, target: f".{name}".endswith(f".{target}")  # noqa: E731
    known = sorted({re.sub(r".*\d\.", "", name) for site in places for name in site.ours})
    for target in targets:
        if not any(hit(name, target) for site in places for name in site.ours):
            raise _unfit(
                f"No layer of this model is called {target!r}",
                f"이 모델에는 {target!r}이라는 층이 없습니다",
                f"Targets of this model: {', '.join(known)}.",
                f"이 모델에서 고를 수 있는 대상: {', '.join(known)}.",
            )
    found = []
    for site in places:
        asked = [name for name in site.ours if any(hit(name, target) for target in targets)]
        if asked and len(asked) < len(site.ours):
            family, together = family_name(model), [re.sub(r".*\d\.", "", n) for n in site.ours]
            raise _unfit(
                f"{family} keeps {', '.join(together)} in one matrix, which has one adapter; "
                f"only {asked[0]} and its like were asked for",
                f"{family} 계열은 {', '.join(together)}를 한 행렬에 두고 어댑터도 하나만 둡니다. "
                f"{asked[0]}처럼 일부만 고를 수 없습니다",
                f"Ask for all of it: {', '.join(together)}.",
                f"모두 골라 주세요: {', '.join(together)}.",
            )
        found += [site] if asked else []
    return found


# ── laying it over, folding it in, taking it off ────────────────────────────────────────────────


def add_lora(
    model: Stack,
    rank: int,
    alpha: float,
    targets: Sequence[str] = ("attention.q", "attention.v"),
    scaling: Literal["lora", "rslora"] = "lora",
    seed: int = 0,
) -> None:
    """Freeze the model and lay a fresh adapter over every layer whose name ends in a target
    (`attention.q`, `mlp.up`, `decoder.blocks.0.cross.k`). Its answers stay the same bits.

    Raises OnsilError on an unknown target, a rank below 1, a part of what is packed together, or a
    model that has an adapter already.
    """
    if rank < 1:
        raise _unfit(
            f"An adapter of rank {rank} holds nothing", f"계수 {rank}인 어댑터는 비어 있습니다"
        )
    lora = LoRA(rank, alpha, scaling)
    generator = torch.Generator().manual_seed(seed)
    laid = []
    for site in chosen(model, targets):
        layers = [_layer(model, name) for name in site.ours]
        width = layers[0].in_features
        down = torch.empty(rank, width).uniform_(-(width**-0.5), width**-0.5, generator=generator)
        ups = [torch.zeros(layer.out_features, rank) for layer in layers]
        laid.append((site, down, ups))
    _lay(model, lora, laid)


def _lay(model: Stack, lora: LoRA, laid: list[tuple[Site, Tensor, list[Tensor]]]) -> None:
    if any(isinstance(m, LoRALinear) for m in model.modules()):
        raise _unfit("The model has an adapter already", "모델에 이미 어댑터가 있습니다")
    model.requires_grad_(False)
    for site, down, ups in laid:
        shared = nn.Parameter(down)
        for name, up in zip(site.ours, ups, strict=True):
            layer = LoRALinear(_layer(model, name), lora, shared, nn.Parameter(up))
            model.set_submodule(name, layer)


def adapted(model: Stack) -> dict[str, LoRALinear]:
    """The layers that have an adapter. Raises OnsilError when none has."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    if not found:
        raise _unfit("The model has no adapter", "모델에 어댑터가 없습니다")
    return found


def adapter_parameters(model: Stack) -> dict[str, nn.Parameter]:
    """What learns, by name, as `training.loop.train` takes it; a shared A once."""
    adapted(model)
    return {name: p for name, p in model.named_parameters() if re.search(r"\.lora_[AB]$", name)}


@torch.no_grad()
def merge(model: Stack) -> None:
    """Fold the adapter into the weights: W + (α/r)·BA, summed in float32 and rounded to the type
    of W. The path beside it is not computed any more; the weights as they were stay in memory."""
    for layer in adapted(model).values():
        if layer.unmerged is None:
            weight = layer.unmerged = layer.weight.detach()
            merged = (weight.float() + layer.delta).to(weight.dtype)  # of four bits: all of them
            layer.weight = nn.Parameter(merged, layer.weight.requires_grad)


def unmerge(model: Stack) -> None:
    """Bring the weights back as they were before `merge`, to the same bits."""
    for layer in adapted(model).values():
        if layer.unmerged is not None:
            layer.weight = nn.Parameter(layer.unmerged, layer.weight.requires_grad)
            layer.unmerged = None


def remove_lora(model: Stack) -> None:
    """Ordinary layers again, all of them free to learn: the base, or, after `merge`, the merged
    model, which `checkpoint.save` can write."""
    for name, layer in adapted(model).items():
        plain = Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        plain.weight, plain.bias = layer.weight, layer.bias
        model.set_submodule(name, plain)
    model.requires_grad_(True)


# ── on disk ─────────────────────────────────────────────────────────────────────────────────────


def save_adapter(model: Stack, folder: Path, base_name: str, ancestry: dict[str, Any]) -> None:
    """adapter_config.json and adapter_model.safetensors as PEFT reads them, lineage in the
    metadata. `base_name` tells a reader which model it belongs to: a name, or a path."""
    layers = adapted(model)
    places = [site for site in sites(model) if site.ours[0] in layers]
    out: dict[str, Tensor] = {}
    turned = False
    for site in places:
        ups = [layers[name].lora_B.detach() for name in site.ours]
        out[f"{ROOT}{site.disk}.lora_A.weight"] = layers[site.ours[0]].lora_A.detach().clone()
        out[f"{ROOT}{site.disk}.lora_B.weight"] = site.packed(ups)
        turned |= site.turned(ups)
    lora = next(iter(layers.values())).lora
    pair = "SEQ_2_SEQ_LM" if isinstance(model, EncoderDecoder) else None
    causal = isinstance(model, Transformer) and model.shape.causal and model.head is not None
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else pair,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "use_rslora": lora.scaling == "rslora",
        "target_modules": [site.disk for site in places],
        "fan_in_fan_out": turned,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
    }
    _write(folder, settings, base_name, out, ancestry)


def _write(
    folder: Path,
    settings: dict[str, Any],
    base_name: str,
    out: dict[str, Tensor],
    ancestry: dict[str, Any],
) -> None:
    told = settings | {"base_model_name_or_path": base_name, "inference_mode": True}
    text = json.dumps(told, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    metadata = {"format": "pt", METADATA_KEY: canonical(ancestry)}
    out = {name: tensor.float().contiguous() for name, tensor in out.items()}
    (folder / WEIGHTS).write_bytes(stable_bytes(out, metadata))


def load_adapter(model: Stack, folder: Path) -> None:
    """Freeze the model and lay the adapter of a folder over it, ours or PEFT's, in float32.

    Raises OnsilError when a file is missing, when its config asks for what is not built here, and
    when a tensor belongs to no layer of this model or has another shape than the layer.
    """
    settings, found = _read(folder, "LORA")
    for key, value in settings.items():
        if value and key not in HARMLESS and value not in HARMLESS_VALUES.get(key, ()):
            raise _unfit(
                f"{folder.name} says {key}={value!r}, which is not built here",
                f"{folder.name}에 적힌 {key}={value!r}는 지원하지 않습니다",
            )
    rank, alpha = settings.get("r", 8), settings.get("lora_alpha", 8)
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise _unfit(
            f"{folder.name} says r={rank!r}, lora_alpha={alpha!r}",
            f"{folder.name}에 r={rank!r}, lora_alpha={alpha!r}라고 적혀 있습니다",
        )
    values = dict(tensors(found))
    laid = []
    prefix = FAMILIES[family_name(model)].prefix
    for site in sites(model):
        # Adapters of a class with a head have the family's prefix, those of the stack alone not.
        spelt = (site.disk, site.disk.removeprefix(prefix), prefix + site.disk)
        stem = next((s for s in spelt if f"{ROOT}{s}.lora_A.weight" in values), site.disk)
        names = [f"{ROOT}{stem}.lora_{part}.weight" for part in "AB"]
        if any(name in values for name in names):
            laid.append((site, *_parts(folder, model, site, names, values, rank)))
    if values or not laid:
        name = min(values, default=WEIGHTS)
        raise _unfit(
            f"Tensor {name} of {folder.name} belongs to no layer of this {family_name(model)}",
            f"{folder.name}의 텐서 {name}에 맞는 층이 이 {family_name(model)} 모델에 없습니다",
        )
    _lay(model, LoRA(rank, alpha, "rslora" if settings.get("use_rslora") else "lora"), laid)


def _parts(
    folder: Path, model: Stack, site: Site, names: list[str], values: dict[str, Tensor], rank: int
) -> tuple[Tensor, list[Tensor]]:
    """A, and B for each layer of a place, taken out of `values`."""
    layers = [_layer(model, name) for name in site.ours]
    rows = sum(layer.out_features for layer in layers)
    wanted = [(rank, layers[0].in_features), (rows, rank)]
    for name, shape in zip(names, wanted, strict=True):
        there = tuple(values[name].shape) if name in values else None
        if there != shape:
            raise _unfit(
                f"Tensor {name} of {folder.name} is {there or 'missing'}; this model asks for "
                f"{shape}",
                f"{folder.name}의 텐서 {name}: {there or '없음'}. 이 모델은 {shape}을 요구합니다",
            )
    down, up = (values.pop(name).float() for name in names)
    return down, [part.contiguous() for part in site.unpacked(up)]


def _read(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Entry]]:
    """The config of an adapter of this kind and the table of its tensors."""
    settings = read_json(folder / CONFIG)
    if settings.get("peft_type") != kind:
        raise _unfit(
            f"{folder.name} is an adapter of type {settings.get('peft_type')!r}, not {kind!r}",
            f"{folder.name}은 {kind!r}가 아니라 {settings.get('peft_type')!r} 어댑터입니다",
        )
    if not (folder / WEIGHTS).is_file():
        raise _unfit(f"{folder.name} has no {WEIGHTS}", f"{folder.name}에 {WEIGHTS}가 없습니다")
    return settings, header(within(folder, WEIGHTS))


def _unfit(en: str, ko: str, then: str = "", then_ko: str = "") -> OnsilError:
    named = "base_model_name_or_path, r"
    return OnsilError(
        en=(
            f"{en}.",
            "An adapter is only right over the model it was trained on, once, as it was trained.",
            then or f"Compare {named} and the targets in {CONFIG} with this model.",
        ),
        ko=(
            f"{ko}.",
            "어댑터는 학습한 모델 위에, 학습한 그대로, 한 번만 놓아야 맞습니다.",
            then_ko or f"{CONFIG}의 {named}, 대상을 이 모델과 견주어 주세요.",
        ),
    )


# ── a learnt prompt ─────────────────────────────────────────────────────────────────────────────


class SoftPrompt(nn.Module):
    """P rows that a frozen decoder reads before every text."""

    def __init__(self, rows_PD: Tensor):
        super().__init__()
        self.rows_PD = nn.Parameter(rows_PD)

    def forward(
        self,
        model: Transformer,
        ids_BT: Tensor,
        keep_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits B T V of the tokens alone. `keep` is false on padding; a `cache` that has seen the
        rows continues after them."""
        if cache is not None and cache.past:
            return model(ids_BT, keep_BT=keep_BT, cache=cache)
        assert model.embedding is not None
        x_BTD = model.embedding(ids_BT)
        rows_BPD = self.rows_PD.to(x_BTD.dtype).expand(len(x_BTD), -1, -1)
        if keep_BT is not None:
            keep_BT = torch.cat([keep_BT.new_ones(rows_BPD.shape[:2]), keep_BT], 1)
        x = torch.cat([rows_BPD, x_BTD], 1)
        hidden = model.encode(vectors_BTD=x, keep_BT=keep_BT, cache=cache)
        return model.logits(hidden[:, len(self.rows_PD) :])


def _reads_rows(model: Stack) -> Transformer:
    """The model, when rows can stand before its embeddings as PEFT lets them."""
    if isinstance(model, Transformer) and model.embedding is not None and model.shape.causal:
        plain = model.project_in is None and model.shape.embedding_scale == 1.0
        if plain and not model.shape.cross:
            return model
    raise _unfit(
        "A learnt prompt is built for decoders that take their embeddings as they are, not for "
        f"this {family_name(model)}",
        "학습 프롬프트는 임베딩을 그대로 읽는 디코더에만 지원하며, 이 "
        f"{family_name(model)} 모델에는 쓸 수 없습니다",
    )


def new_prompt(model: Transformer, rows: int, seed: int = 0) -> SoftPrompt:
    """Freeze the model; P rows that begin as the embeddings of P words drawn from its vocabulary
    (Lester et al. 2021, §3.2: better than noise). Raises OnsilError where PEFT has no equal."""
    table = _reads_rows(model).embedding
    assert table is not None
    if rows < 1:
        raise _unfit(
            f"A prompt of {rows} rows says nothing", f"{rows}줄짜리 프롬프트는 비어 있습니다"
        )
    model.requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    ids_P = torch.randint(len(table.weight), (rows,), generator=draw)
    return SoftPrompt(table.weight.detach()[ids_P].float().clone())


def save_prompt(
    prompt: SoftPrompt, model: Transformer, folder: Path, base_name: str, ancestry: dict[str, Any]
) -> None:
    """A learnt prompt in PEFT's layout: one tensor, `prompt_embeddings`, P × D."""
    P, D = prompt.rows_PD.shape
    settings = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": P,
        "token_dim": D,
        "num_transformer_submodules": 1,
        "num_attention_heads": model.shape.heads,
        "num_layers": model.shape.depth,
        "prompt_tuning_init": "RANDOM",
    }
    rows = {"prompt_embeddings": prompt.rows_PD.detach().clone()}
    _write(folder, settings, base_name, rows, ancestry)


def load_prompt(model: Transformer, folder: Path) -> SoftPrompt:
    """Freeze the model and read a learnt prompt for it. Raises OnsilError when it has another width
    than the model, or a file is missing."""
    settings, found = _read(folder, "PROMPT_TUNING")
    shape = (settings.get("num_virtual_tokens"), _reads_rows(model).shape.width)
    there = {name: entry.shape for name, entry in found.items()}
    if there != {"prompt_embeddings": shape}:
        raise _unfit(
            f"{folder.name} holds {there}; this model asks for prompt_embeddings {shape}",
            f"{folder.name}에 {there}가 있는데 이 모델은 prompt_embeddings {shape}을 요구합니다",
        )
    model.requires_grad_(False)
    return SoftPrompt(dict(tensors(found))["prompt_embeddings"].float())
