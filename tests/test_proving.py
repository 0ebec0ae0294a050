"""The yardstick of the proofs: what it calls a gain is one, and chance is not."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from proving import gain, table


def scores(seed: int, chance: float, items: int = 300) -> list[list[float]]:
    draw = random.Random(seed)
    return [[float(draw.random() < chance) for _ in range(items)] for _ in range(3)]


def test_a_real_difference_is_found_and_its_size_lies_in_the_interval():
    mean, low, high = gain(scores(1, 0.8), scores(2, 0.6))
    assert 0 < low < mean < high and low < 0.2 < high


def test_equal_arms_are_rarely_called_different():
    false = sum(gain(scores(s, 0.7), scores(s + 1000, 0.7))[1] > 0 for s in range(30))
    assert false <= 3


def test_one_lucky_seed_is_not_a_gain():
    lucky = [[1.0] * 300, [0.0] * 300, [0.0] * 300]
    assert gain(lucky, [[0.0] * 300] * 3)[1] == 0.0


def test_the_table_shows_the_newest_row_and_says_no_aloud():
    row = {
        "name": "x", "claim": "c", "holds": True, "means": {"a": 1.0, "b": 0.5},
        "gains": {"a − b": [0.5, 0.4, 0.6]}, "seeds": [0, 1, 2], "items": 200,
        "cpu_s_per_arm": {"a": 3.2, "b": 1.0}, "commit": "abc",
    }  # fmt: skip
    told = table([row, row | {"holds": False, "commit": "def"}])
    assert "**no** (def)" in told and "abc" not in told
