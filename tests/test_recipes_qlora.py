"""The recipe of QLoRA at toy size: it runs, and packs and merges what it says."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import lora
import proving
import qlora

from onsil.models.quantization import Packed, matrices
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.training.base import shipped

TOY = {kind: [f"{n}번 {kind}" for n in range(40)] for kind in lora.KINDS}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A tiny decoder under the shipped tokenizer, forty sentences of a kind, few of each judged."""

    def base():
        shape = decoder_shape(8_000, 64, 1, 128)
        return Transformer(shape).initialise(0).eval(), load_tokenizer(shipped())

    for recipe in (lora, qlora):
        monkeypatch.setattr(recipe, "base", base)
        monkeypatch.setattr(recipe, "sentences", lambda: TOY)
        monkeypatch.setattr(recipe, "EACH", 4)
        monkeypatch.setattr(recipe, "TRAIN", 16)
    monkeypatch.setattr(qlora, "FRESH", 8)
    monkeypatch.setattr(qlora, "TUNING", replace(lora.TUNINGS["LoRA"], epochs=1))
    monkeypatch.setattr(proving, "RESULTS", tmp_path / "proofs.jsonl")


def test_the_recipe_runs_and_says_what_the_base_takes():
    row = qlora.main(seeds=(0,))
    assert row["settings"]["bytes_per_weight"] == pytest.approx(0.516, abs=0.001)
    assert row["means"]["LoRA"] - row["means"][f"LoRA less {qlora.MARGIN}"] == pytest.approx(
        qlora.MARGIN, abs=1e-4
    )
    assert not row["holds"]  # one seed and a few sentences prove nothing


def test_what_is_judged_was_neither_judged_nor_chosen_by_before():
    known, dev, judged = qlora.parts()
    before = lora.split(TOY, 4, 2)
    assert len(judged) == 32 and dev == before[1]
    assert not set(judged) & {*known, *before[1], *before[2]}
    assert not set(known) & {*before[1], *before[2]}


def test_the_merged_model_has_no_packed_weight(monkeypatch):
    seen = []
    monkeypatch.setattr(qlora, "merge", lambda model: seen.append(model))
    known, _, judged = lora.split(TOY, 4, 2)
    qlora.beside_and_merged(qlora.TUNING, known, judged)
    assert not any(isinstance(weight, Packed) for weight in matrices(seen[0]))
