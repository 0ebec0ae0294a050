"""The recipes of the two small methods, at toy size: they run, and promise what they say."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import lora
import prompt_tuning
import proving

from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.templates import ONSIL
from onsil.training.base import shipped

TOY = {
    "statement": [f"{n}번이다" for n in range(40)],
    "question": [f"{n}번이니" for n in range(40)],
    "command": [f"{n}번 해라" for n in range(40)],
    "fragment": [f"{n}번" for n in range(40)],
}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A tiny decoder under the shipped tokenizer, forty sentences of a kind, few of each judged."""

    def base():
        shape = decoder_shape(8_000, 64, 1, 128)
        return Transformer(shape).initialise(0).eval(), load_tokenizer(shipped())

    for recipe in (lora, prompt_tuning):
        monkeypatch.setattr(recipe, "base", base)
        monkeypatch.setattr(recipe, "sentences", lambda: TOY)
        monkeypatch.setattr(recipe, "EACH", 4)
    monkeypatch.setattr(proving, "RESULTS", tmp_path / "proofs.jsonl")


def test_no_sentence_is_in_two_parts():
    known, dev, judged = lora.split(TOY, 4, 2)
    assert (len(known), len(dev), len(judged)) == (136, 8, 16)
    assert len({text for text, _ in known + dev + judged}) == 160


@torch.no_grad()
def test_a_score_is_the_log_probability_of_the_answer_and_its_stop():
    model, words = lora.base()
    (told,) = lora.scores(model, words, ONSIL, ["3번이니"])
    for kind, score in zip(lora.KINDS, told, strict=True):
        chat = lora.render(words, ONSIL, lora.chat("3번이니", kind))
        ids = torch.tensor([chat.ids])
        likely = model(ids)[0, :-1].log_softmax(-1)
        at = range(1, len(chat.ids))
        wanted = sum(float(likely[i - 1, chat.ids[i]]) for i in at if chat.said[i])
        assert abs(float(score) - wanted) < 1e-3
    assert lora.right(torch.eye(4)[:2], [("", "statement"), ("", "command")]) == [1.0, 0.0]


def test_lora_runs(monkeypatch):
    faster = {n: replace(t, epochs=1, rate=1e-2) for n, t in lora.TUNINGS.items()}
    monkeypatch.setattr(lora, "TUNINGS", faster)
    row = lora.main(seeds=(0,))
    assert set(row["means"]) == {"frozen", "LoRA", "all weights"} and row["items"] == 16
    counts = row["settings"]["trained_parameters"]
    assert counts["LoRA"] < counts["all weights"] / 20


def test_prompt_tuning_runs_and_leaves_the_base(monkeypatch):
    monkeypatch.setattr(prompt_tuning, "TUNING", replace(prompt_tuning.TUNING, epochs=1))
    monkeypatch.setattr(prompt_tuning, "WRITTEN", prompt_tuning.WRITTEN[:2])
    prompt_tuning.best_written.cache_clear()
    row = prompt_tuning.main(seeds=(0,))
    assert row["settings"]["trained_parameters"] == 10 * 64
    assert set(row["means"]) == {"no prompt", "written", "rows not learnt", "learnt"}


def test_a_base_that_changed_would_be_noticed(monkeypatch):
    def careless(taking, chats, tuning):
        with torch.no_grad():
            taking.reader.model.final_norm.weight += 1e-3

    monkeypatch.setattr(prompt_tuning, "taught", careless)
    known, dev, judged = lora.split(TOY, 4, 2)
    with pytest.raises(AssertionError):
        prompt_tuning.learnt(prompt_tuning.TUNING, known, judged, dev)
