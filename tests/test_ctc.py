"""CTC against every alignment one by one, in the loop, refused in time, read back as symbols."""

import itertools
import json
import math
import random
import re
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from family_cases import SENSES, saved_once
from planted import PLANTED

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import ctc as recipe
import proving

from onsil.errors import OnsilError
from onsil.inference.ctc import collapsed, greedy, prefix_beam, scores_of
from onsil.models.checkpoint import load, save
from onsil.models.heads import new_symbols
from onsil.models.shape import Shape
from onsil.models.speech_encoder import SpeechEncoder
from onsil.models.transformer import Transformer
from onsil.training.ctc import Listening, Recording, ctc_loss, needed, tune
from onsil.training.loop import train

WIDTH = 16
SHAPE = Shape(6, WIDTH, 2, 2, causal=False, reads="vectors", tied=False)


def listener(seed: int = 0, **more) -> Transformer:
    return Transformer(replace(SHAPE, **more)).initialise(seed)


def scores(seed: int, *size: int) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*size, generator=drawn, dtype=torch.float64)


def all_transcripts(scores_TV: torch.Tensor, blank: int) -> dict[tuple[int, ...], torch.Tensor]:
    """The probability of each transcript: every alignment, one by one."""
    T, V = scores_TV.shape
    likely_TV, found = (
        scores_TV.softmax(-1),
        defaultdict(lambda: torch.zeros((), dtype=torch.double)),
    )
    for alignment in itertools.product(range(V), repeat=T):
        said = tuple(s for s, _ in itertools.groupby(alignment) if s != blank)
        found[said] = found[said] + math.prod(likely_TV[t, s] for t, s in enumerate(alignment))
    return found


# -- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("T", [1, 3, 5])
def test_the_loss_is_the_sum_over_every_alignment(T, blank):
    scores_TV = scores(T, T, 3)
    found = all_transcripts(scores_TV, blank)
    assert float(sum(found.values())) == pytest.approx(1.0, abs=1e-12)
    assert {len(said) for said in found} == set(range(T + 1))  # silence among them
    letters = [s for s in range(3) if s != blank]
    for size in range(T + 1):
        for said in itertools.product(letters, repeat=size):
            total, number = ctc_loss(scores_TV[None], [T], [said], blank)
            assert number == size and (said in found) == (needed(said) <= T)
            if said in found:
                assert abs(float(total) + math.log(found[said])) < 1e-11, said
            else:
                assert float(total) == math.inf


def test_gradients_are_those_of_the_sum_and_padding_has_none():
    frames, said = [5, 2, 4, 3], [[1, 1], [], [2, 1, 2], [2]]
    fast = scores(0, 4, 5, 3).requires_grad_()
    slow = fast.detach().clone().requires_grad_()
    total, number = ctc_loss(fast, frames, said)
    direct = sum(
        -all_transcripts(slow[i, :T], 0)[tuple(row)].log()
        for i, (T, row) in enumerate(zip(frames, said, strict=True))
    )
    assert number == 6 and float((total - direct).detach().abs()) < 1e-11
    (total * 1.7).backward()
    (direct * 1.7).backward()
    assert (fast.grad - slow.grad).abs().max() < 1e-11
    for i, T in enumerate(frames):
        assert not fast.grad[i, T:].any() and fast.grad[i, :T].any()


@torch.no_grad()
def test_padding_and_neighbours_do_not_change_a_loss():
    model, some = listener(), planted(0, 7)
    for p in model.parameters():  # far enough from noise that who sees whom matters
        p.mul_(8)
    assert len({len(r.heard) for r in some}) > 3
    alone = [ctc_loss(*scores_of(model, [r.heard]), [r.symbols])[0] for r in some]
    together, _ = ctc_loss(*scores_of(model, [r.heard for r in some]), [r.symbols for r in some])
    assert float(together) == pytest.approx(float(sum(alone)), rel=1e-5)


# -- the loop ------------------------------------------------------------------------------------


def planted(seed: int, many: int, longest: int = 4) -> list[Recording]:
    """Each symbol is a direction, held for two to four frames; rests, noise and repeats between."""
    draw, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    found = []
    for n in range(many):
        said = [draw.randint(1, 5) for _ in range(draw.randint(1, longest))]
        rows: list[int] = []
        for symbol in said:
            rows += [symbol] * draw.randint(2, 4) + [0] * draw.randint(1, 2)
        heard = torch.eye(WIDTH)[rows] + 0.2 * torch.randn(len(rows), WIDTH, generator=noise)
        found.append(Recording(f"r{n}", heard, said))
    return found


def loss_in_parts(model: Transformer, some: list[Recording], size: int):
    for start in range(0, len(some), size):
        part = some[start : start + size]
        heard, symbols = [r.heard for r in part], [r.symbols for r in part]
        yield ctc_loss(*scores_of(model, heard), symbols)


def test_a_step_is_the_same_in_one_part_or_in_ten(tmp_path):
    some = [*planted(1, 9), Recording("rest", torch.zeros(5, WIDTH), [])]
    whole = []
    for size in (10, 3, 1):
        (scratch := tmp_path / str(size)).mkdir()
        model = listener()
        steps = list(
            train(
                dict(model.named_parameters()),
                lambda k, model=model, size=size: loss_in_parts(model, some, size),
                3,
                1e-3,
                scratch,
                **PLANTED,
            )
        )
        whole.append(steps)
        assert [s.targets for s in steps] == [sum(len(r.symbols) for r in some)] * 3
    for steps in whole[1:]:
        for one, other in zip(whole[0], steps, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-5)
            assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)


HOW = Listening(epochs=12, rate=1e-2, batch_inputs=200)


def wrong_of(model: Transformer, some: list[Recording]) -> int:
    with torch.no_grad():
        found, frames = scores_of(model, [r.heard for r in some])
    rows = zip(found, frames, some, strict=True)
    return sum(greedy(row[:T]) != r.symbols for row, T, r in rows)


def test_a_planted_task_is_learnt_and_a_seed_gives_one_run(tmp_path):
    told, asked = planted(2, 160), planted(3, 60)
    curves = []
    for seed in (0, 0, 1):
        (scratch := tmp_path / str(len(curves))).mkdir()
        model = listener()
        before = wrong_of(model, asked)
        loop, number = tune(model, told, replace(HOW, seed=seed), scratch)
        curves.append([step.loss for step in loop])
        assert len(curves[-1]) == number
    assert curves[0] == curves[1] != curves[2]
    assert before >= 55 and wrong_of(model, asked) <= 6


def test_a_killed_run_continues_to_the_same_bits(tmp_path):
    told, models = planted(4, 40), []
    for name, stops in (("whole", [999]), ("killed", [7, 12, 999])):
        (scratch := tmp_path / name).mkdir()
        for stop in stops:
            model = listener()
            loop, number = tune(model, told, HOW, scratch)
            for step in itertools.islice(loop, stop):
                last = step.number
        assert last == number > 14
        models.append(model)
    for name, p in models[0].named_parameters():
        assert torch.equal(p, models[1].get_parameter(name)), name


def test_a_run_with_other_settings_does_not_go_on(tmp_path):
    told = planted(4, 40)
    for _ in itertools.islice(tune(listener(), told, HOW, tmp_path)[0], 7):
        pass
    with pytest.raises(OnsilError, match="a run on other data"):
        next(tune(listener(), told, replace(HOW, seed=HOW.seed + 1), tmp_path)[0])


def test_another_blank_is_another_task(tmp_path):
    """The last score may be the blank; then 0 is a symbol."""
    told = [r._replace(symbols=[s - 1 for s in r.symbols]) for r in planted(5, 100)]
    model = listener()
    for _ in tune(model, told, replace(HOW, blank=5), tmp_path)[0]:
        pass
    with torch.no_grad():
        found, frames = scores_of(model, [r.heard for r in told])
    rows = zip(found, frames, told, strict=True)
    assert sum(greedy(row[:T], 5) != r.symbols for row, T, r in rows) <= 10


def test_ids_are_read_as_vectors_are(tmp_path):
    """A stack of tokens: each symbol is spelled by one of two ids, as often as it likes."""
    draw, told = random.Random(0), []
    for n in range(120):
        said = [draw.randint(1, 5) for _ in range(draw.randint(1, 4))]
        ids = [i for s in said for i in [*[s * 2 + draw.randint(0, 1)] * draw.randint(2, 4), 0]]
        told.append(Recording(f"t{n}", torch.tensor(ids), said))
    model = listener(reads="tokens", vocabulary=12)
    for _ in tune(model, told, HOW, tmp_path)[0]:
        pass
    assert wrong_of(model, told) <= 6


# -- refused -------------------------------------------------------------------------------------


def heard(frames: int) -> torch.Tensor:
    return torch.zeros(frames, WIDTH)


@pytest.mark.parametrize(
    ("recordings", "why"),
    [
        ([("여름", 2, [1, 2, 3]), ("b", 9, [1])], r"^1 recordings .*: 여름 \(2 < 3\)\."),
        ([("a", 3, [4, 4, 1])], r"a \(3 < 4\)"),  # the repeat needs a rest
        ([("a", 0, []), ("b", 1, [1])], r"a \(0 < 1\)"),
        ([(f"r{n}", 1, [1, 2]) for n in range(7)], r"^7 recordings .* r4 \(1 < 2\) …"),
        ([("a", 9, [1, 6])], r"a has the symbol 6; the head has 0 to 5, of which 0 is the blank"),
        ([("a", 9, [0])], "a has the symbol 0"),
        ([("a", 9, [-1])], "a has the symbol -1"),
        ([("a", 9, []), ("b", 9, [])], "silence alone, not one symbol: [ab], [ab]"),
        ([], "there are no recordings"),
    ],
)
def test_what_cannot_be_learnt_is_refused_before_the_run(tmp_path, recordings, why):
    told = [Recording(name, heard(frames), said) for name, frames, said in recordings]
    with pytest.raises(OnsilError, match=why) as refused:
        tune(listener(), told, HOW, tmp_path)
    assert not list(tmp_path.iterdir())
    assert told == [] or told[0].name in refused.value.ko[0]


def test_a_step_that_fails_names_its_recordings(tmp_path):
    told = planted(6, 3)
    told[1] = told[1]._replace(name="회의/3층.wav", heard=told[1].heard * math.nan)
    with pytest.raises(OnsilError, match=r"step 1: loss nan.*회의/3층\.wav") as stopped:
        list(tune(listener(), told, replace(HOW, batch_inputs=999), tmp_path)[0])
    assert "회의/3층.wav" in stopped.value.ko[0] and "r0" in stopped.value.ko[0]


def test_what_just_fits_is_taken(tmp_path):
    told = [Recording("a", heard(4), [4, 4, 1]), Recording("b", heard(1), []), *planted(0, 3)]
    steps = list(tune(listener(), told, replace(HOW, epochs=1), tmp_path)[0])
    assert all(math.isfinite(step.loss) for step in steps)


# -- symbols again -------------------------------------------------------------------------------


def planted_scores(alignment: list[int], symbols: int = 4) -> torch.Tensor:
    return 9 * torch.eye(symbols)[alignment]


def test_an_alignment_is_read_without_repeats_and_then_without_blanks():
    cases = {
        (0, 1, 1, 0, 1, 2, 2, 0, 0, 3): [1, 1, 2, 3],
        (0, 0): [],
        (2,): [2],
        (1, 2, 1): [1, 2, 1],
    }
    for alignment, said in cases.items():
        planted_TV = planted_scores(list(alignment))
        assert collapsed(alignment) == greedy(planted_TV) == said
        for width in (1, 5):
            assert prefix_beam(planted_TV, width).symbols == said
    assert (
        collapsed([2, 0, 0, 2, 1], blank=2) == greedy(planted_scores([2, 0, 0, 2, 1]), 2) == [0, 1]
    )


@pytest.mark.parametrize("blank", [0, 2])
def test_a_beam_wide_enough_finds_the_likeliest_transcript(blank):
    better = 0
    for seed in range(40):
        scores_TV = scores(seed, 5, 3) / 2
        found = all_transcripts(scores_TV, blank)
        best = max(found, key=lambda said: float(found[said]))
        told = prefix_beam(scores_TV, len(found), blank)
        assert tuple(told.symbols) == best
        assert abs(told.logp - math.log(found[best])) < 1e-11
        assert abs(told.logp + float(ctc_loss(scores_TV[None], [5], [best], blank)[0])) < 1e-11
        by_width = [prefix_beam(scores_TV, width, blank).logp for width in (1, 3)]
        assert max(by_width) <= told.logp + 1e-12
        better += tuple(greedy(scores_TV, blank)) != best
    assert better >= 3  # the best alignment is often not that of the best transcript


def test_a_beam_of_one_is_neither_greedy_nor_exact():
    """It adds up what ends in a rest and what goes on, where greedy takes the likelier 2; and it
    drops the beginning of a 1 whose alignments are likelier together than silence."""
    likely_TV = torch.tensor([[0.1, 0.8, 0.1], [0.35, 0.25, 0.4]]).log()
    assert greedy(likely_TV) == [1, 2] and prefix_beam(likely_TV, 1).symbols == [1]
    likely_TV = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    assert greedy(likely_TV) == prefix_beam(likely_TV, 1).symbols == []
    assert prefix_beam(likely_TV, 2) == ([1], pytest.approx(math.log(1 - 0.36)))


# -- published speech encoders -------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return saved_once(SENSES, tmp_path_factory)


WAVES = torch.randn(2, 4_000, generator=torch.Generator().manual_seed(1))
SPOKEN = [[3, 3, 7], [40, 1]]


@pytest.mark.parametrize("name", ["wav2vec2 base", "wav2vec2 stable"])
@torch.no_grad()
def test_the_loss_is_that_of_the_published_class(name, checkpoints):
    oracle, folder = checkpoints(name)
    oracle.config.ctc_loss_reduction = "sum"
    waves, keep = WAVES.clone(), torch.ones(2, 4_000)
    waves[1, 3_000:], keep[1, 3_000:] = 0.0, 0.0
    labels = torch.tensor([SPOKEN[0], [*SPOKEN[1], -100]])
    wanted = oracle.eval()(waves, attention_mask=keep.long(), labels=labels).loss
    heard = [WAVES[0], WAVES[1, :3_000]]
    total, number = ctc_loss(*scores_of(load(folder)[0].eval(), heard), SPOKEN)
    assert number == 5 and float(total) == pytest.approx(float(wanted), rel=1e-5)


def test_a_published_encoder_learns_symbols_of_ones_own_and_is_kept(checkpoints, tmp_path):
    """From the bare model to a Wav2Vec2ForCTC that the published class opens."""
    from transformers import Wav2Vec2ForCTC

    bare, rest = load(checkpoints("wav2vec2 bare")[1])
    model = new_symbols(bare, 9, seed=3)
    assert float(model.stack.head.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    told = [Recording(f"w{n}", WAVES[n], [1 + n, 8, 8]) for n in range(2)]
    long = Recording("w2", WAVES[0, :1_000], [1, 2, 3])  # 2 vectors
    with pytest.raises(OnsilError, match=r"w2 \(2 < 3\)"):
        tune(model, [*told, long], HOW, tmp_path)
    steps = list(tune(model, told, Listening(10, 3e-3, 8_000), tmp_path)[0])
    assert steps[-1].loss < steps[0].loss / 2
    (folder := tmp_path / "kept").mkdir()
    save(model, folder, {}, rest)
    oracle = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    again = load(folder)[0].eval()
    with torch.no_grad():
        mine, theirs, kept = model(WAVES), oracle(WAVES).logits, again(WAVES)
    assert torch.equal(mine, kept) and (mine - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 9
    with pytest.raises(OnsilError, match="vocab_size is 1"):
        new_symbols(bare, 1)
    fresh = SpeechEncoder(bare.shape).initialise(0)
    assert new_symbols(fresh, 4)(WAVES).shape[-1] == 4


# -- the recipe ----------------------------------------------------------------------------------


def hummed() -> recipe.Clips:
    """Each digit a tone of its own, a third of a second long; a little noise."""
    noise = torch.Generator().manual_seed(0)
    at = torch.arange(2_700) / 8_000
    tones = [(d, torch.sin(2_000 * (1 + d) * at)) for d in range(10)]
    return {
        name: [(d, tone + 0.1 * torch.randn(2_700, generator=noise)) for d, tone in tones]
        for name in (*recipe.LEARN, *recipe.DEV, *recipe.JUDGE)
    }


def test_the_recipe_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "clips", hummed)
    monkeypatch.setattr(recipe, "TOLD", 60)
    monkeypatch.setattr(recipe, "ASKED", 12)
    monkeypatch.setattr(proving, "RESULTS", tmp_path / "proofs.jsonl")
    monkeypatch.setattr(recipe, "EPOCHS", 1)
    monkeypatch.setattr(recipe, "THROAT", (1.0, 1.0))  # a tone moved is another digit
    monkeypatch.setattr(recipe, "NEIGHBOURS", 3)
    row = recipe.main(seeds=(0,))
    assert len(row["means"]) == 5 and row["settings"]["strings"] == 60
    assert row["means"]["nearest part"] > -0.5  # of tones of one length; by lot it is −0.9
    for name, (mean, low, high) in row["settings"]["digit error rate"].items():
        assert low <= mean <= high and mean == pytest.approx(-row["means"][name])
    assert not row["holds"]  # twelve strings and one seed are too few


def test_no_speaker_is_in_two_parts_and_edits_are_counted():
    parts = [*recipe.LEARN, *recipe.DEV, *recipe.JUDGE]
    assert len(parts) == len(set(parts)) == 5
    cases = {"": 3, "abc": 0, "abbc": 1, "ac": 1, "axc": 1, "cab": 2, "xyz": 3, "abcabc": 3}
    for said, fewest in cases.items():
        assert recipe.edits([ord(c) for c in said], [ord(c) for c in "abc"]) == fewest
    two = [Recording("a", heard(3), [1, 2, 3]), Recording("b", heard(3), [4])]
    assert recipe.scored([[1, 2], [4]], two) == [-0.5, 0.0]  # one of four digits: mean −0.25


@pytest.mark.slow
def test_real_digits_are_strung_together(onsil_data):
    if not (onsil_data / "fsdd").is_dir():
        pytest.skip("needs real data: set $ONSIL_DATA")
    assert {name: len(some) for name, some in recipe.clips().items()} == dict.fromkeys(
        ("george", "jackson", "lucas", "nicolas", "theo"), 500
    )
    for one in recipe.strings(recipe.JUDGE, 20, 0):
        assert one.heard.shape[1] == 160 and 3 <= len(one.symbols) <= 5
        assert needed(one.symbols) <= len(one.heard) and one.heard.isfinite().all()


# -- the page ------------------------------------------------------------------------------------


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = Path(__file__).resolve().parents[1] / "docs" / "ctc.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    told = re.search(r"# (\[.*\])$", example, re.MULTILINE)
    assert told and capsys.readouterr().out.strip() == told[1]
