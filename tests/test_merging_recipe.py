"""The recipe of merging at toy size: it runs, and its arms are the models it says."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import merging
import proving

from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.training.base import shipped


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A tiny decoder under the shipped tokenizer, sixty lines of a source, few of each judged."""

    def base():
        shape = decoder_shape(8_000, 64, 1, 128)
        return Transformer(shape).initialise(0).eval(), load_tokenizer(shipped())

    def lines(skill):
        return {name: [f"{n}: {said}" for n in range(60)] for name, said in skill.answers.items()}

    for name, value in {"base": base, "lines": lines, "JUDGED": 12, "DEV": 6}.items():
        monkeypatch.setattr(merging, name, value)
    monkeypatch.setattr(proving, "RESULTS", tmp_path / "proofs.jsonl")
    yield
    for kept in (merging.parts, merging.specialist):
        kept.cache_clear()


def test_the_recipe_runs_and_states_its_margin():
    row = merging.main(seeds=(0,))
    for skill in ("sources", "books"):
        own = f"{skill} alone, at {skill}"
        less = f"{own}, less {merging.MARGIN}"
        assert row["means"][own] - row["means"][less] == pytest.approx(merging.MARGIN, abs=1e-4)
        assert f"{merging.WAY}, at {skill} − {less}" in row["gains"]
    assert len(row["gains"]) == 6 and row["items"] == 12
    assert not row["holds"]  # one seed and a few lines prove nothing


def test_only_the_stranger_begins_elsewhere():
    """A specialist stays near the base, the stranger was never there; none saw what is judged."""
    begun = merging.base()[0].embedding.weight.detach()
    made = [merging.specialist(merging.BOOKS, 0, stranger) for stranger in (False, True)]
    far = [float((model.embedding.weight.detach() - begun).norm()) for model in made]
    assert 0 < 5 * far[0] < far[1]
    for skill in merging.SKILLS:
        known, dev, judged = map(set, merging.parts(skill))
        assert not known & dev and not known & judged and not dev & judged
        assert len(judged) == 12 and len(dev) == 6


def test_each_way_takes_its_amounts():
    a, b = (merging.specialist(skill, 0) for skill in merging.SKILLS)
    for way, first, second in (
        ("average", (1.0, 0.0), (0.0, 1.0)),
        ("task arithmetic", (1.0, 0.0), (0.0, 1.0)),
        ("slerp", 0.0, 1.0),
    ):
        for amounts, wanted in ((first, a), (second, b)):
            made = merging.merged(way, 0, amounts)
            for x, y in zip(made.parameters(), wanted.parameters(), strict=True):
                torch.testing.assert_close(x, y, atol=1e-6, rtol=0)
