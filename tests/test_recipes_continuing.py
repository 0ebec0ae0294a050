"""The recipes of continued pretraining run at toy size, and their arms differ in what they say."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import proving
import ul2r
import vocabulary_expansion as expansion

TOY = expansion.Sizes(
    english=60_000,
    vocabulary=400,
    width=32,
    depth=1,
    context=64,
    new=100,
    korean=60_000,
    tokens=12_000,
    held=8,
    piece=200,
    batch_tokens=256,
    new_rows=0.5,
    compute="fp32",
)


@pytest.fixture(autouse=True)
def here(onsil_data, tmp_path, monkeypatch):
    monkeypatch.setattr(proving, "DATA", onsil_data)
    monkeypatch.setattr(proving, "RESULTS", tmp_path / "proofs.jsonl")


def test_a_base_is_taught_with_and_without_new_words():
    row = expansion.prove_words(TOY, seeds=(0,))
    assert row["items"] == 8 and not row["holds"]  # one seed proves nothing
    assert row["means"]["subword mean"] > row["means"]["no new tokens"]
    assert row["settings"]["tokens a hangul"]["base"] == 3.0
    assert row["settings"]["tokens a hangul"]["grown"] < 2.0
    held = expansion.materials(TOY)
    assert not any(passage in text for passage in held["held korean"] for text in held["korean"])


def test_no_arm_begins_where_another_ended():
    """What is taught is a copy, the layers as well as the tables that are widened."""
    model = expansion.grown(TOY, 0)[1]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for rows in ("spelled", "none"):
        expansion.taught(TOY, 0, rows)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_new_rows_begin_in_three_ways():
    words, model = expansion.grown(TOY, 0)
    spelled = expansion.expansion(TOY, 0).spelled
    old = words.get_vocab_size()
    rows = {
        how: expansion.begun(model, spelled, how, 0).state_dict()["embedding.weight"]
        for how in ("spelled", "random", "mean")
    }
    first = spelled[old]
    assert torch.allclose(rows["spelled"][old], rows["spelled"][first].mean(0), atol=1e-6)
    assert not any(
        torch.equal(rows[a], rows[b]) for a, b in (("spelled", "mean"), ("random", "mean"))
    )
    assert all(torch.equal(table[:old], rows["spelled"][:old]) for table in rows.values())


def test_forgetting_is_measured():
    row = expansion.prove_replay(TOY, seeds=(0,))
    assert set(row["means"]) == {"base", "replay", "no replay"}
    assert row["means"]["replay"] > row["means"]["no replay"]


def test_gaps_are_filled_from_both_sides():
    sizes = ul2r.Sizes(
        context=48, tokens=1_000, batch_tokens=256, held=12, before=4, behind=12, compute="fp32"
    )
    row = ul2r.main(sizes, seeds=(0,))
    assert row["items"] == 12
    assert set(row["settings"]["left_to_right"]) == {"none", "causal", "ul2r"}
    assert row["means"]["ul2r"] != row["means"]["ul2r, rest exchanged"]
    gaps = ul2r.materials(sizes)[4]
    assert all(list(map(len, gap)) == [4, 8, 12] for gap in gaps)
