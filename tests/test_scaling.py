"""The law: planted constants come back, a held-out run falls into the interval, and where a law
does not hold nothing is said. The forecast from small runs: its rows are those on record."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from onsil.errors import OnsilError
from onsil.training.scaling import (
    PUBLISHED,
    REGIME,
    SMALL_RUNS,
    Law,
    Small,
    Trained,
    fit,
    flop,
    forecast,
    predict,
)

ROOT = Path(__file__).resolve().parents[1]
GRID = [(n, d) for n in (5e7, 1.5e8, 5e8, 1.5e9, 5e9) for d in (1e9, 4e9, 1.6e10, 6e10, 2e11)]


def runs(law: Law, noise: float = 0.0, seed: int = 0) -> list[Trained]:
    draw = random.Random(seed)
    return [Trained(n, d, law.loss(n, d) * math.exp(draw.gauss(0, noise))) for n, d in GRID]


@pytest.mark.parametrize("law", PUBLISHED.values(), ids=PUBLISHED)
def test_planted_constants_come_back(law):
    found = fit(runs(law), resamples=0).law
    for name in ("E", "A", "alpha", "B", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=0.05), name


def test_a_few_ruined_runs_do_not_move_the_law():
    """What Huber's loss is for: two diverged runs pull a least-squares fit away, not this one."""
    law = PUBLISHED["Hoffmann et al. 2022"]
    ruined = [
        Trained(r.weights, r.tokens, r.loss * (1.5 if i in (3, 17) else 1))
        for i, r in enumerate(runs(law))
    ]
    found = fit(ruined, resamples=0).law
    assert found.alpha == pytest.approx(law.alpha, rel=0.05)
    assert found.loss(1e9, 1e11) == pytest.approx(law.loss(1e9, 1e11), rel=0.001)


def test_held_out_runs_fall_into_the_interval():
    """30 runs larger than all that were fitted; an interval of half the width misses more."""
    law, noise = PUBLISHED["Besiroglu et al. 2024"], 0.01
    inside = half = asked = 0
    for seed in range(3):
        found, draw = fit(runs(law, noise, seed), resamples=20, seed=seed), random.Random(99 + seed)
        for _ in range(10):
            n, d = 10 ** draw.uniform(9.7, 10), 10 ** draw.uniform(11.3, 11.7)
            held_out = law.loss(n, d) * math.exp(draw.gauss(0, noise))
            low, high = found.interval(n, d)
            inside += low <= held_out <= high
            half += abs(held_out - (low + high) / 2) <= (high - low) / 8
            asked += 1
    assert inside >= 27 and half <= 20, (inside, half, asked)


@pytest.mark.parametrize("law", PUBLISHED.values(), ids=PUBLISHED)
def test_below_its_regime_the_published_law_says_nothing(law):
    weights, tokens = 1e6, REGIME / 6 / 1e6
    assert predict(law, weights, tokens * 1.001) == law.loss(weights, tokens * 1.001)
    with pytest.raises(OnsilError, match=r"2\.1e\+15 FLOP") as refused:
        predict(law, weights, tokens * 0.95)
    assert "2.2e+15" in refused.value.en[1] and "2.2e+15" in refused.value.ko[1]


def test_a_fit_of_ones_own_does_not_go_below_its_smallest_run():
    law = Law(1.0, 50.0, 0.3, 60.0, 0.3)
    small = [Trained(n, d, law.loss(n, d)) for n in (1e5, 4e5, 1.6e6) for d in (1e5, 1e6, 1e7)]
    found = fit(small, resamples=0)
    assert found.law.lowest == flop(1e5, 1e5)
    assert predict(found.law, 1e5, 1e6) == pytest.approx(law.loss(1e5, 1e6), rel=1e-4)
    with pytest.raises(OnsilError):
        found.interval(9e4, 1e5)


@pytest.mark.parametrize("few", [GRID[:5], GRID[:1] * 8, GRID[:5] * 2])
def test_too_few_runs_are_refused(few):
    law = PUBLISHED["Hoffmann et al. 2022"]
    with pytest.raises(OnsilError, match=f"{len(few)} runs cannot"):
        fit([Trained(n, d, law.loss(n, d)) for n, d in few])


# -- the forecast -------------------------------------------------------------------------------


@pytest.mark.parametrize("row", SMALL_RUNS, ids=lambda row: f"{row.corpus}-{row.bytes}-{row.base}")
def test_the_small_runs_are_on_record(row):
    """Both figures of a row stand together in one line, or paragraph, of the file it names."""
    text = (ROOT / row.where).read_text(encoding="utf-8")
    parts = text.splitlines() if row.where.endswith(".jsonl") else text.split("\n\n")
    assert any(str(row.bits) in part and str(row.trigram) in part for part in parts)
    if row.where.endswith("grown.jsonl"):
        lines = [json.loads(line) for line in parts]
        alike = [r for r in lines if r["documents"]["bytes"] == row.bytes]
        assert {r["plan"]["width"] for r in alike} == {row.width}
        assert {bool(r["plan"].get("base")) for r in alike} == {row.base}
        last = alike[-1]["bits_per_byte"]
        assert (last["heldout_bits_per_byte"], last["ngram_bits_per_byte"]) == (
            row.bits,
            row.trigram,
        )


def test_the_forecast_is_the_ratio_of_earlier_runs_with_students_interval():
    made = [
        Small(str(i), "", 10**6, 128, False, bits, 2.0) for i, bits in enumerate((2.0, 2.2, 2.4))
    ]
    found = forecast(1.0, 10**6, 128, False, made)
    assert found.bits == pytest.approx((2.0 * 2.2 * 2.4) ** (1 / 3) / 2, abs=1e-4)
    logs = [0.0, math.log(1.1), math.log(1.2)]
    spread = math.sqrt(sum((x - sum(logs) / 3) ** 2 for x in logs) / 2)
    assert math.log(found.high / found.bits) == pytest.approx(
        4.303 * spread * (4 / 3) ** 0.5, abs=1e-3
    )
    assert found.low < found.bits < found.high and not found.why_not
    many = [Small(str(i), "", 10**6, 128, False, 2.0 + i % 3 / 5, 2.0) for i in range(12)]
    assert forecast(1.0, 10**6, 128, False, many).low > 0
    assert forecast(2.0, 10**6, 128, False, made).bits == pytest.approx(2 * found.bits, abs=2e-4)


def test_the_interval_holds_what_it_says():
    """Of planted corpora whose ratios scatter alike, 95 % fall inside; Student's t, not 1.96."""
    draw, inside, normal = random.Random(5), 0, 0
    for _ in range(2000):
        logs = [draw.gauss(0.05, 0.03) for _ in range(5)]
        made = [Small(str(i), "", 1, 1, False, math.exp(x), 1.0) for i, x in enumerate(logs[:4])]
        found = forecast(1.0, 1, 1, False, made)
        inside += found.low <= math.exp(logs[4]) <= found.high
        narrow = math.log(found.high / found.bits) * 1.96 / 3.182
        normal += abs(logs[4] - math.log(found.bits)) <= narrow
    assert 0.935 <= inside / 2000 <= 0.965 and normal / 2000 < 0.9


@pytest.mark.parametrize("name", [row.corpus for row in SMALL_RUNS if not row.base])
def test_each_run_on_record_lies_in_the_interval_of_the_others(name):
    left = next(row for row in SMALL_RUNS if row.corpus == name and not row.base)
    rest = [
        replace(row, bytes=left.bytes, width=left.width) for row in SMALL_RUNS if row.corpus != name
    ]
    found = forecast(left.trigram, left.bytes, left.width, False, rest)
    assert found.low <= left.bits <= found.high


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ((None, 10**6, 128, False), "no held-out text"),
        ((1.4, 10**6, 128, True), "few runs"),
        ((1.4, 50_000, 128, False), "unlike the runs"),
        ((1.4, 10**8, 128, False), "unlike the runs"),
        ((1.4, 10**6, 384, False), "unlike the runs"),
    ],
)
def test_where_no_run_is_alike_no_figure_is_given(asked, why):
    found = forecast(*asked)
    assert (found.bits, found.low, found.high, found.why_not) == (0, 0, 0, why)
