"""Published checkpoints in and out of the one transformer, without a changed bit.

`load` reads the files' headers first, then every tensor, and builds nothing before each name and
shape is what the config asks for; `save` gives back what was read: the same names, types, config
and values. What grew here is written as qwen3 (decoders) or bert (encoders), so that other tools
open it. The safetensors metadata carries the lineage, digests only.
"""

import copy
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onsil.errors import OnsilError
from onsil.lineage.history import METADATA_KEY
from onsil.lineage.spelling import canonical
from onsil.models.config import OWN_INT8, quantised
from onsil.models.families import FAMILIES, Family, family_of, shape_of
from onsil.models.families.grown import config_of
from onsil.models.families.names import Rule, pairings
from onsil.models.shape import Shape
from onsil.models.weights import (
    Entry,
    entries,
    packed,
    read_json,
    stable_bytes,
    tensors,
    unpacked,
)

# Tensors some checkpoints carry that no computation reads.
BUFFERS = re.compile(r"\.(?:inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids)$")


@dataclass
class Origin:
    """What a loaded model was on disk, so that it can be written again as it was."""

    family: str
    config: dict[str, Any]
    names: dict[str, str]  # canonical name → the file's own
    dtypes: dict[str, torch.dtype]
    twins: dict[str, str]  # a tensor the file has twice → the one it equals


def stacks(shape: Any) -> list[Shape]:
    """The transformer stacks of a shape; a codec has none."""
    return [shape] if isinstance(shape, Shape) else list(shape.stacks)


def longest_row(shape: Any) -> int:
    """Layers or experts, of which each has tensors of its own."""
    rows = [max(stack.depth, stack.experts) for stack in stacks(shape)]
    return max(rows) if rows else shape.depth


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


def canonical_names(found: dict[str, Entry], family: Family) -> dict[str, str]:
    """`{canonical name: the file's own}`: old spellings of norms, other dialects of the family, and
    names without the prefix that a bare base model leaves off."""
    prefix = family.prefix
    bare = bool(prefix) and not any(name.startswith(prefix) for name in found)
    names = {}
    for name in found:
        new = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        new = new.replace(".weight_g", ".parametrizations.weight.original0")
        new = new.replace(".weight_v", ".parametrizations.weight.original1")
        for dialect, ours in family.dialects:
            new = re.sub(dialect, ours, new)
        if bare and not re.match(r"(lm_head|cls|classifier|score|qa_outputs|embed_out)\.", new):
            new = prefix + new
        names[new] = name
    return names


def load(
    folder: Path, compute: str = "fp32", dtype: torch.dtype | None = torch.float32
) -> tuple[Any, dict[str, Tensor]]:
    """The model of a folder, and the tensors that belong to a task head rather than to it.

    Weights become `dtype`; None keeps each as it is stored. Raises OnsilError when a tensor is
    missing, unknown inside a layer, not finite, or has another shape than the config says.
    """
    config = read_json(folder / "config.json")
    family = family_of(config)
    ours = quantised(config)
    found = entries(folder)
    names = canonical_names(found, family)
    shape = shape_of(config)
    if (asked := longest_row(shape)) > len(found):
        raise _misfit(
            folder,
            f"{asked} layers or experts cannot lie in {len(found)} tensors",
            f"층이나 전문가 {asked}개가 텐서 {len(found)}개에 들어갈 수 없습니다",
        )
    values = {name: tensor for name, tensor in tensors({n: found[n] for n in names.values()})}
    stored = {new: values.pop(name) for new, name in names.items()}
    if ours:
        stored = unpacked(stored)
    shape = untied_where_they_differ(family, shape, stored)
    with torch.device("meta"):
        model: Any = family.build(shape, compute)
    shared = model.shared()
    own = {name: tensor for name, tensor in model.state_dict().items()}
    state, twins, dtypes = {}, {}, {}
    rules = family.names(shape)
    for pairing in pairings(rules, own, without=shared):
        for name, tensor in zip(
            pairing.ours, read_pairing(folder, pairing, stored, own), strict=True
        ):
            state[name] = (
                tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
            )
        dtypes |= {name: stored.pop(name).dtype for name in pairing.disk}
    for name, of in repeated(pairings(rules, shared), stored, state, shared).items():
        dtypes[name] = stored.pop(name).dtype
        twins[name] = of
    strangers = [n for n in stored if re.search(r"\.\d+\.", n) and not BUFFERS.search(n)]
    if strangers:
        raise _misfit(
            folder,
            f"tensor {strangers[0]} is not part of the model that the config describes",
            f"텐서 {strangers[0]}은 설정이 말하는 모델에 없는 것입니다",
        )
    model.load_state_dict(state | {name: state[of] for name, of in shared.items()}, assign=True)
    model.tie()
    model.requires_grad_(True)
    model.origin = Origin(str(config["model_type"]), config, names, dtypes, twins)
    return model, stored


def repeated(
    pairs: list[Rule],
    stored: dict[str, Tensor],
    state: dict[str, Tensor],
    shared: dict[str, str],
) -> dict[str, str]:
    """`{a tensor the file has twice: the one of ours it is}`: tied heads, their biases and
    embeddings that were written out beside the one they are tied to."""
    named = {pair.disk[0]: shared[pair.ours[0]] for pair in pairs if pair.disk[0] in stored}
    if (bias := state.get("head.bias")) is not None:
        named |= {
            name: "head.bias"
            for name, tensor in stored.items()
            if name.endswith(".decoder.bias") and torch.equal(tensor.to(bias.dtype), bias)
        }
    table = next((n for n in ("decoder.embedding.weight", "embedding.weight") if n in state), None)
    for name, tensor in stored.items():
        if table and name.endswith("embed_tokens.weight") and name not in named:
            same = tensor.shape == state[table].shape and torch.equal(
                tensor.to(state[table].dtype), state[table]
            )
            named |= {name: table} if same else {}
    return named


def read_pairing(
    folder: Path, pairing: Rule, stored: dict[str, Tensor], own: dict[str, Tensor]
) -> list[Tensor]:
    """The tensors of ours behind one rule. Raises OnsilError when one is missing or misshapen."""
    for name in pairing.disk:
        if name not in stored:
            raise _misfit(folder, f"tensor {name} is missing", f"텐서 {name}이 없습니다")
        if not stored[name].is_floating_point():
            kind = str(stored[name].dtype).removeprefix("torch.")
            raise _misfit(
                folder,
                f"tensor {name} is of type {kind}, not fp32, fp16 or bf16",
                f"텐서 {name}의 자료형이 fp32, fp16, bf16이 아니라 {kind}입니다",
            )
    try:
        made = pairing.read([stored[name] for name in pairing.disk])
    except RuntimeError:
        made = []
    wanted = [tuple(own[name].shape) for name in pairing.ours]
    if [tuple(tensor.shape) for tensor in made] != wanted:
        name, asked = pairing.disk[0], " + ".join(map(str, wanted))
        there = tuple(stored[name].shape)
        raise _misfit(
            folder,
            f"tensor {name} is {there}; the config asks for {asked}",
            f"텐서 {name}은 {there}인데 설정은 {asked}를 요구합니다",
        )
    return made


def untied_where_they_differ(family: Family, shape: Any, stored: dict[str, Tensor]) -> Any:
    """A config may say "tied" beside a head of its own (umT5): then the file is right."""
    *before, last = stacks(shape) or [None]
    if last is None or not last.tied or last.writes != "tokens" or last.reads != "tokens":
        return shape
    side = "decoder." if before else ""
    names = pairings(family.names(shape), [f"{side}head.weight", f"{side}embedding.weight"])
    head, embedding = (pairing.disk[0] for pairing in names)
    if head not in stored or torch.equal(stored[head], stored.get(embedding, stored[head])):
        return shape
    if isinstance(shape, Shape):
        return replace(last, tied=False)
    # T5 scales what it compares with its embedding, and only that.
    return replace(shape, decoder=replace(last, tied=False, logit_scale=1.0))


def _misfit(folder: Path, en: str, ko: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{folder.name}: {en}.",
            "The weights and the config do not belong together, or the file is damaged.",
            "Check it with: onsil verify NAME",
        ),
        ko=(
            f"{folder.name}: {ko}.",
            "가중치와 설정이 서로 다른 모델의 것이거나 파일이 손상되었습니다.",
            "다음 명령으로 확인해 주세요: onsil verify 이름",
        ),
    )


# ── writing ─────────────────────────────────────────────────────────────────────────────────────


def grown_config(shape: Shape) -> dict[str, Any]:
    """The config.json of a shape that was grown here. Raises OnsilError when a word of the shape
    would be lost in it: another tool would run another model."""
    settings = config_of(shape)
    read, told = (layer_by_layer(s).as_dict() for s in (shape_of(settings), shape))
    lost = {name: value for name, value in told.items() if read[name] != value}
    if lost:
        told, kind = ", ".join(f"{k}={v}" for k, v in lost.items()), settings["model_type"]
        raise OnsilError(
            en=(
                f"A {kind} checkpoint has no place for {told}.",
                "Read back, it would be another model, so nothing was written.",
                "Train decoder_shape, hybrid_shape or encoder_shape for models that are kept.",
            ),
            ko=(
                f"{kind} 체크포인트에는 {told}을(를) 적을 자리가 없습니다.",
                "다시 읽으면 다른 모델이 되므로 아무것도 쓰지 않았습니다.",
                "보관할 모델은 decoder_shape, hybrid_shape, encoder_shape로 학습해 주세요.",
            ),
        )
    return settings


def layer_by_layer(shape: Shape) -> Shape:
    """The same shape with its pattern written out to the depth."""
    return replace(shape, pattern="".join(map(shape.kind, range(shape.depth))))


def save(
    model: Any,
    folder: Path,
    ancestry: dict[str, Any],
    extra: dict[str, Tensor] | None = None,
    int8: bool = False,
) -> None:
    """config.json and model.safetensors in the family's layout, lineage in the metadata.

    A model that was loaded is written as it was: names, types, config. With `int8` every matrix is
    kept as one signed byte a weight and one scale a row: a quarter of the size, for shipping; only
    onsil reads it back (`load`), as float32.
    """
    origin: Origin | None = model.origin
    settings = grown_config(model.shape) if origin is None else copy.deepcopy(origin.config)
    settings.pop("quantization_config", None)
    family = FAMILIES[settings["model_type"]]
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if laid_over := next((name for name in state if ".lora_" in name), None):
        raise OnsilError(
            en=(
                f"The model wears an adapter ({laid_over}).",
                "Its own weights and the adapter's are kept apart; one file cannot hold both.",
                "Fold it in with merge, take it off with remove_lora, or use save_adapter.",
            ),
            ko=(
                f"모델에 어댑터가 얹혀 있습니다({laid_over}).",
                "모델과 어댑터의 가중치는 따로 보관합니다. 한 파일에 함께 담을 수 없습니다.",
                "merge로 합치거나 remove_lora로 떼거나 save_adapter로 저장해 주세요.",
            ),
        )
    out: dict[str, Tensor] = {}
    rules = family.names(model.shape)
    for pairing in pairings(rules, state, without=model.shared()):
        made = pairing.write([state[name] for name in pairing.ours])
        out |= dict(zip(pairing.disk, made, strict=True))
    if origin is not None and not int8:
        for name, of in origin.twins.items():
            out[name] = state[of]
        out = {name: t.to(origin.dtypes.get(name, t.dtype)) for name, t in out.items()}
    out |= extra or {}
    if origin is not None:
        out = {origin.names.get(name, name): tensor for name, tensor in out.items()}
    out = {name: tensor.clone() for name, tensor in out.items()}
    if int8:
        out = packed(out)
        settings["quantization_config"] = {"quant_method": OWN_INT8}
    config = json.dumps(settings, indent=2, sort_keys=True)
    (folder / "config.json").write_text(config + "\n")
    metadata = {"format": "pt", METADATA_KEY: canonical(ancestry)}
    (folder / "model.safetensors").write_bytes(stable_bytes(out, metadata))
