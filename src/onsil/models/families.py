"""Checkpoints on disk: a config dialect and a name table for each family, walked both ways.

`save` writes the Hugging Face layout (config.json + model.safetensors), so other tools open what
grew here; `load` reads it back to the same bits. Two families today: qwen3 (decoder), bert
(encoder). The safetensors metadata carries the lineage, digests only.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialise

from onsil.errors import OnsilError
from onsil.lineage.history import METADATA_KEY
from onsil.lineage.spelling import canonical
from onsil.models.shape import Shape
from onsil.models.transformer import Transformer

QWEN3_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
QWEN3_TOP = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
}
BERT_BLOCK = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
BERT_TOP = {
    "embedding": "bert.embeddings.word_embeddings",
    "position": "bert.embeddings.position_embeddings",
    "segment": "bert.embeddings.token_type_embeddings",
    "embedding_norm": "bert.embeddings.LayerNorm",
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions.decoder",
}


def family_of(shape: Shape) -> str:
    return "qwen3" if shape.causal else "bert"


def config_of(shape: Shape) -> dict[str, Any]:
    """The family's own config.json for a shape."""
    common = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.hidden,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.tied,
        "dtype": "float32",
    }
    if shape.causal:
        return common | {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_width,
            "hidden_act": shape.activation,
            "rms_norm_eps": shape.norm_epsilon,
            "attention_bias": shape.bias,
            "rope_parameters": {"rope_type": "default", "rope_theta": shape.rotary_base},
        }
    return common | {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "hidden_act": shape.activation,
        "layer_norm_eps": shape.norm_epsilon,
        "type_vocab_size": shape.segments,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape of a config.json; raises OnsilError for a family not listed here."""
    family = config.get("model_type")
    if family not in ("qwen3", "bert"):
        raise OnsilError(
            en=(
                f"Checkpoints of type {family!r} cannot be loaded yet.",
                "Guessing a wiring would give wrong answers without a warning.",
                "Families known here: qwen3, bert.",
            ),
            ko=(
                f"{family!r} 계열의 체크포인트는 아직 불러올 수 없습니다.",
                "구조를 짐작해서 읽으면 틀린 답을 경고 없이 내게 됩니다.",
                "지금 읽을 수 있는 계열: qwen3, bert.",
            ),
        )
    common: dict[str, Any] = {
        "vocabulary": config["vocab_size"],
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "hidden": config["intermediate_size"],
        "context": config["max_position_embeddings"],
        "tied": config.get("tie_word_embeddings", family == "bert"),
        "activation": config["hidden_act"],
    }
    if family == "qwen3":
        rotary = config.get("rope_parameters") or config
        return Shape(
            **common,
            kv_heads=config["num_key_value_heads"],
            head_width=config["head_dim"],
            norm_epsilon=config["rms_norm_eps"],
            rotary_base=rotary.get("rope_theta", 10_000.0),
            bias=config.get("attention_bias", False),
        )
    return Shape(
        **common,
        causal=False,
        wiring="post",
        norm="layer",
        norm_epsilon=config["layer_norm_eps"],
        qk_norm=False,
        positions="learned",
        gated=False,
        bias=True,
        segments=config["type_vocab_size"],
        embedding_norm=True,
        head_transform=True,
    )


def disk_names(shape: Shape, own: Iterator[str] | list[str]) -> dict[str, str]:
    """`{our parameter name: its name on disk}`; tied heads have no tensor of their own."""
    top, block = (QWEN3_TOP, QWEN3_BLOCK) if shape.causal else (BERT_TOP, BERT_BLOCK)
    prefix = "model.layers" if shape.causal else "bert.encoder.layer"
    names = {}
    for name in own:
        stem, _, leaf = name.rpartition(".")
        if stem.startswith("blocks."):
            _, layer, part = stem.split(".", 2)
            names[name] = f"{prefix}.{layer}.{block[part]}.{leaf}"
        elif name == "head.bias":
            names[name] = "cls.predictions.bias"
        elif not (name == "head.weight" and shape.tied):
            names[name] = f"{top[stem]}.{leaf}"
    return names


def save(
    model: Transformer,
    folder: Path,
    ancestry: dict[str, Any],
    extra: dict[str, torch.Tensor] | None = None,
    int8: bool = False,
) -> None:
    """config.json and model.safetensors in the family's layout, lineage in the metadata.

    With `int8` every matrix is kept as one signed byte a weight and one scale a row: a quarter of
    the size, for shipping; only onsil reads it back (`load`), as float32.
    """
    state = model.state_dict()
    tensors = {
        disk: state[own].detach().contiguous()
        for own, disk in disk_names(model.shape, list(state)).items()
    }
    settings = config_of(model.shape)
    if int8:
        tensors = packed(tensors)
        settings["quantization_config"] = {"quant_method": "onsil_int8_rows"}
    config = json.dumps(settings, indent=2, sort_keys=True)
    (folder / "config.json").write_text(config + "\n")
    metadata = {"format": "pt", METADATA_KEY: canonical(ancestry)}
    (folder / "model.safetensors").write_bytes(stable_bytes(tensors | (extra or {}), metadata))


SCALE = ".int8_scale"


def packed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices as int8 with `NAME.int8_scale` beside them: round(w / s), s = max|row| / 127. The
    error of a weight is at most s / 2."""
    done = {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2:
            done[name] = tensor
            continue
        scale = tensor.abs().amax(1).clamp(min=1e-12) / 127
        done[name] = (tensor / scale[:, None]).round().to(torch.int8)
        done[name + SCALE] = scale
    return done


def unpacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`packed` undone: int8 rows times their scale; everything else as it is."""
    return {
        name: tensor.float() * tensors[name + SCALE][:, None] if name + SCALE in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(SCALE)
    }


def stable_bytes(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file whose bytes depend on its contents alone.

    The library writes its metadata in the order of a hash table that is seeded anew in every
    process; the header is written again here with sorted keys, padded to 8 bytes as it was.
    """
    data = serialise(tensors, metadata)
    (length,) = struct.unpack("<Q", data[:8])
    header = canonical(json.loads(data[8 : 8 + length])).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def load(folder: Path, compute: str = "fp32") -> tuple[Transformer, dict[str, torch.Tensor]]:
    """The model of a folder, and the tensors that belong to a task head rather than to it.

    Raises OnsilError when a tensor is missing or has another shape than the config says.
    """
    shape = shape_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model = Transformer(shape, compute)
    own = model.state_dict()
    names = disk_names(shape, list(own))
    with safe_open(folder / "model.safetensors", framework="pt") as f:
        on_disk = unpacked({name: f.get_tensor(name) for name in f.keys()})  # noqa: SIM118
    state = {}
    for name, disk in names.items():
        tensor = on_disk.pop(disk, None)
        if tensor is None or tensor.shape != own[name].shape:
            found = "missing" if tensor is None else f"{tuple(tensor.shape)}"
            wanted = tuple(own[name].shape)
            raise OnsilError(
                en=(
                    f"{folder.name}: tensor {disk} is {found}; the config asks for {wanted}.",
                    "The weights and the config do not belong together, or the file is damaged.",
                    "Check it with: onsil verify NAME",
                ),
                ko=(
                    f"{folder.name}: 텐서 {disk}이 {found}인데 설정은 {wanted}를 요구합니다.",
                    "가중치와 설정이 서로 다른 모델의 것이거나 파일이 손상되었습니다.",
                    "다음 명령으로 확인해 주세요: onsil verify 이름",
                ),
            )
        state[name] = tensor
    if shape.tied:
        state["head.weight"] = state["embedding.weight"]
    model.load_state_dict(state)
    return model, on_disk
