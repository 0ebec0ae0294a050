"""The recipes of preference learning at toy size: they run, and their rules say what they claim."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import preference
import proving
import verifiable_reward


@pytest.fixture(autouse=True)
def results(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr(proving, "RESULTS", tmp_path / "proofs.jsonl")
    return tmp_path / "proofs.jsonl"


@pytest.mark.parametrize(
    ("polite", "plain"),
    [
        ("집에서도 할 게 많아요.", "집에서도 할 게 많아."),
        ("같이 가보세요.", "같이 가봐."),
        ("없는 것보다 나을 거예요.", "없는 것보다 나을 거야."),
        ("진정하세요. 좋은 일이 있겠죠!", "진정해. 좋은 일이 있겠지!"),
        ("저도 그래요.", None),  # 저 would have to become 나
        ("우리가 만나.", None),
        ("", None),
    ],
)
def test_a_polite_answer_is_written_again_with_a_plain_ending(polite, plain):
    assert preference.plain(polite) == plain
    if plain is not None:
        assert preference.is_polite(polite) and not preference.is_polite(plain)


@pytest.mark.parametrize(
    ("number", "spoken"),
    [(3205, "삼천이백오"), (1110, "천백십"), (21, "이십일"), (9, "구"), (1000, "천")],
)
def test_numbers_are_read_as_they_are_spoken(number, spoken):
    assert verifiable_reward.spoken(number) == spoken


def test_no_two_numbers_sound_alike():
    assert len({verifiable_reward.spoken(n) for n in range(1, 10_000)}) == 9_999


def test_trying_runs_and_keeps_its_row(results):
    sizes = verifiable_reward.Sizes(
        lessons=20, tried=40, unseen=10, width=64, depth=1, start_steps=5, rounds=3, prompts=2
    )
    row = verifiable_reward.main(sizes, seeds=(0,))
    assert row["items"] == 10 and not row["holds"]  # one seed proves nothing
    assert json.loads(results.read_text())["name"] == "grpo-numerals"


def test_what_is_judged_was_never_a_lesson():
    lessons, tried, unseen = verifiable_reward.numbers(verifiable_reward.Sizes())
    assert len({*lessons, *tried, *unseen}) == len(lessons) + len(tried) + len(unseen)


def test_preferring_runs_and_its_parts_do_not_meet(onsil_data, monkeypatch):
    monkeypatch.setattr(proving, "DATA", onsil_data)
    sizes = preference.Sizes(
        lessons=12, preferred=16, unseen=8, texts=4, ordinary=4, tokens=512, start_epochs=1
    )
    held = preference.materials(sizes)
    asked = [p.source for p in held.lessons] + [r.prompt for r in held.preferred] + held.prompts
    assert len({tuple(ids) for ids in asked}) == 12 + 16 + 8
    assert 0.2 < sum(preference.longer(preference.Sizes())) / 300 < 0.8
    rows = preference.main(sizes, seeds=(0,))
    assert [row["items"] for row in rows] == [8, 8]
    bits = rows[1]["settings"]["bits per byte of ordinary text"]
    assert set(bits) == {"start", "shuffled orders", "DPO", "DPO with LoRA"}
