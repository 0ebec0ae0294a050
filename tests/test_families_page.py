"""docs/families.md: its worked example is run, its list of what is refused is the code's."""

import ast
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from family_table import PAGE
from safetensors.torch import load_file

from onsil.errors import OnsilError
from onsil.models import families
from onsil.models.checkpoint import Origin, load, save
from onsil.models.families import decoders, shape_of
from onsil.models.families.names import TABLES, tables
from onsil.models.transformer import Transformer

TOKENS = torch.randint(0, 97, (2, 30), generator=torch.Generator().manual_seed(1))
MYLM: dict[str, Any] = {
    "model_type": "mylm", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 112,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip


def of_the_page(part: str) -> str:
    """A block of code of the page."""
    code = PAGE.read_text(encoding="utf-8").split(f"<!-- {part} -->")[1].split("```")[1]
    return textwrap.dedent(code.partition("\n")[2])


@pytest.fixture
def mylm(monkeypatch):
    """The line of the page, put where it says."""
    line = of_the_page("the line of mylm")
    for name, said in eval("{" + line + "}", dict(vars(decoders))).items():
        monkeypatch.setitem(decoders.LLAMA_LIKE, name, said)
        monkeypatch.setitem(families.FAMILIES, name, families.llama_like(name))


@pytest.fixture
def names(monkeypatch):
    """The table of the page, put where it says."""
    for name, lines in tables(of_the_page("the names of mylm")).items():
        monkeypatch.setitem(TABLES, name, lines)


def perturbed() -> Transformer:
    model = Transformer(shape_of(MYLM)).initialise(seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.origin = Origin("mylm", MYLM, {}, {}, {})
    return model


@torch.no_grad()
def test_a_family_is_added_by_the_line_of_the_page(mylm, tmp_path):
    import transformers

    model = perturbed()
    save(model, tmp_path, {})
    assert json.loads((tmp_path / "config.json").read_text()) == MYLM

    again, extra = load(tmp_path)
    assert not extra and again.shape == model.shape
    assert again.shape.qk_norm == "head" and again.shape.rotary.base == 500_000.0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    twice = tmp_path / "again"
    twice.mkdir()
    save(again, twice, {})
    assert (twice / "model.safetensors").read_bytes() == (
        tmp_path / "model.safetensors"
    ).read_bytes()

    told: dict[str, Any] = MYLM | {"rope_theta": 500_000.0}
    del told["model_type"]
    oracle = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**told)).eval()
    oracle.load_state_dict(load_file(tmp_path / "model.safetensors"))
    wanted = oracle(TOKENS).logits
    assert (again.eval()(TOKENS) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


@torch.no_grad()
def test_names_of_its_own_are_added_by_the_table_of_the_page(names, mylm, tmp_path):
    model = perturbed()
    save(model, tmp_path, {})
    stored = load_file(tmp_path / "model.safetensors")
    rows = [(4 + 2 + 2) * 24, 64]  # q, k and v below one another
    assert list(stored["model.layers.2.attn.qkv.weight"].shape) == rows
    assert "model.layers.2.mlp_norm.weight" in stored
    assert not [name for name in stored if "q_proj" in name or "post_attention" in name]
    again, extra = load(tmp_path)
    assert not extra
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_without_the_line_the_family_is_refused():
    with pytest.raises(OnsilError, match="'mylm' cannot be loaded"):
        shape_of(MYLM)


def test_every_refused_switch_is_on_the_page():
    page = PAGE.read_text(encoding="utf-8").split("## What is not done")[1]
    refused = set()
    for file in Path(families.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="only"), args=[ast.Constant(value=str(key)), *_]
                ):
                    refused.add(key)
    assert len(refused) >= 10
    assert not {key for key in refused if f"`{key}`" not in page}
