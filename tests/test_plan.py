"""The plan before the run: what may be asked, what it expects, and that what it can know is so."""

import json
import re
import subprocess
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from test_grow import OFFICE, PLAN, onsil

from onsil.corpus import curate, load_corpus
from onsil.documents import read
from onsil.errors import OnsilError
from onsil.evaluation.report import render
from onsil.evaluation.report_run import MAY_LACK
from onsil.evaluation.report_words import PLAN as PLAN_WORDS
from onsil.grow import energy_taken
from onsil.instruction import write_lessons
from onsil.lineage import Artifact, Workspace, stage
from onsil.models.checkpoint import load, save
from onsil.models.shape import decoder_shape, hybrid_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer, train_tokenizer
from onsil.tokenizer.train import END
from onsil.training import memory
from onsil.training.base import adopt
from onsil.training.loop import train
from onsil.training.memory import (
    Machine,
    nearest_shape,
    resident,
    weights_in,
)
from onsil.training.optim import FAST, FAST_PEAK, Recipe
from onsil.training.plan import (
    Plan,
    Text,
    adopt_plan,
    expected,
    load_plan,
    make_plan,
    measure_speed,
    parse_plan,
    plan_for,
    spelling_of,
    text_of,
)
from onsil.training.plan_words import WHY_NOT, described
from onsil.training.pretraining import pretrain
from onsil.training.request import MINUTES, Request, amount, request
from onsil.training.scaling import NO_FORECAST

# -- what a plan is -----------------------------------------------------------------------------


def test_more_minutes_make_a_longer_plan_and_a_plan_round_trips():
    short = plan_for(50_000, 2_000, 500_000, 1, 0, lambda plan: (5_000, 5_000))
    long = plan_for(50_000, 2_000, 500_000, 10, 0, lambda plan: (5_000, 5_000))
    assert long.reader_epochs > short.reader_epochs >= 1
    assert long.predicted_seconds <= 10 * 60
    assert parse_plan(json.dumps(asdict(long))) == long


def test_a_large_decoder_does_not_make_the_encoder_slow():
    """The base's decoder is larger than its encoder: each is planned by its own speed."""
    alike, apart = (
        plan_for(500_000, 2_000, 5_000_000, 20, 0, lambda plan, r=reads: (2_000, r))
        for reads in (2_000, 8_000)
    )
    assert apart.reader_lessons > alike.reader_lessons
    assert apart.encoder_epochs > alike.encoder_epochs
    assert (apart.decoder_epochs, apart.generator_lessons, apart.tokens_per_second) == (
        alike.decoder_epochs,
        alike.generator_lessons,
        2_000,
    )


@pytest.mark.parametrize(
    ("minutes", "reads", "width"), [(23, 4_000, 128), (24, 4_000, 192), (24, 2_000, 128)]
)
def test_the_size_is_the_largest_in_which_both_parts_read_the_text_once(minutes, reads, width):
    """Of 24 minutes theirs are 504 s: 333 of the decoder, 167 of an encoder as fast."""
    plan = plan_for(1_000_000, 2_000, 1_000_000, minutes, 0, lambda plan: (4_000, reads))
    assert plan.width == width


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"width": 1}', "null"])
def test_half_a_plan_is_none(text):
    with pytest.raises(OnsilError, match="not a plan"):
        parse_plan(text)


def test_a_plan_of_an_older_version_is_read():
    """It lacks what was added since; nothing of that decides anything."""
    old = parse_plan(json.dumps(PLAN))
    assert old.width == PLAN["width"] and old.minutes == PLAN["minutes"]
    assert {
        name for name, value in asdict(old).items() if name not in PLAN and not value
    } == MAY_LACK
    assert described(old).count("\n") == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("width", "64"), ("width", 64.0), ("seed", True), ("base", None), ("minutes", "6")),
        *(("width", 0), ("threads", 0), ("reader_epochs", -1), ("learning_rate", float("nan"))),
        *(("width", 65), ("width", 200), ("context", 1), ("seed", 2**63)),
        *(("compute", "fp16"), ("compiled", 1)),
        *(("decoder_recipe", "sgd"), ("decoder_recipe", ""), ("decoder_rate", -0.01)),
    ],
)
def test_an_impossible_value_is_named(field, value):
    with pytest.raises(OnsilError, match=f"{field} is {value!r}"):
        parse_plan(json.dumps(PLAN | {field: value}))


# -- what may be asked --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2M", 2_000_000),
        ("500k", 500_000),
        ("1.5m", 1_500_000),
        ("4,000,000", 4_000_000),
        ("1_000.5k", 1_000_500),
    ],
)
def test_amounts(text, number):
    assert amount(text, "--size") == number


@pytest.mark.parametrize("text", ["", "M", "-2M", "2T", "0", "0.1", "two", "1e6", "1,5M", "1_0"])
def test_what_is_no_amount_is_shown(text):
    with pytest.raises(OnsilError) as refused:
        amount(text, "--tokens")
    assert f"--tokens {text}" in refused.value.en[0] and f"--tokens {text}" in refused.value.ko[0]


def test_requests():
    assert request(None, None, None, False, False) == Request(MINUTES, 0, 0)
    assert request(2.0, None, None, False, True) == Request(2.0, 0, 0)
    assert request(None, 10**6, 5_000, False, False) == Request(0.0, 10**6, 5_000)
    assert request(None, None, None, True, True) == Request()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ((6.0, None, None, True, False), ("--plan", "--minutes")),
        ((None, 10**6, None, True, False), ("--plan", "--size")),
        ((None, None, 10**6, True, False), ("--plan", "--tokens")),
        ((6.0, None, 10**6, False, False), ("--minutes", "--tokens")),
        ((None, 10**6, None, False, True), ("--base", "--size")),
        ((0.0, None, None, False, False), ("--minutes 0",)),
        ((float("nan"), None, None, False, False), ("--minutes nan",)),
    ],
)
def test_what_contradicts_itself_is_refused_in_both_languages(asked, named):
    with pytest.raises(OnsilError) as refused:
        request(*asked)
    for option in named:
        assert option in refused.value.en[0] and option in refused.value.ko[0]


def test_the_command_refuses_before_it_reads(tmp_path):
    asked = ("--name", "x", "--minutes", "5", "--tokens", "1M")
    run = subprocess.run(
        onsil(tmp_path / "ws", "grow", str(tmp_path), *asked), capture_output=True, text=True
    )
    assert run.returncode == 1 and run.stderr.count("\n") == 3 and "Traceback" not in run.stderr
    assert "--minutes" in run.stderr and "--tokens" in run.stderr


@pytest.mark.parametrize("vocabulary", [1000, 8000])
@pytest.mark.parametrize("size", [500_000, 2_000_000, 4_000_000])
def test_the_nearest_shape_has_the_weights_it_states(size, vocabulary):
    shape, count = nearest_shape(size, vocabulary, 512)
    assert weights_in(shape) == count == sum(p.numel() for p in Transformer(shape).parameters())
    assert abs(count - size) < 0.05 * size


def test_a_size_smaller_than_the_vocabulary_is_refused():
    with pytest.raises(
        OnsilError, match="No decoder of 20,000 weights: the nearest has"
    ) as refused:
        nearest_shape(20_000, 8000, 512)
    assert "8,000" in refused.value.en[1] and "8,000" in refused.value.ko[1]


@pytest.mark.parametrize("passes", [3, 17])
def test_passes_that_were_asked_fix_the_minutes(passes):
    plan = plan_for(
        50_000, 2_000, 500_000, 0.0, 0, lambda plan: (5_000, 5_000), passes_asked=passes
    )
    decoding = passes * 50_000 / (5_000 * 0.75)
    assert plan.decoder_epochs == passes
    assert plan.minutes == pytest.approx(decoding / 0.2 / 60, abs=0.01)
    assert 0.4 * plan.minutes * 60 < plan.predicted_seconds < 1.1 * plan.minutes * 60


# -- what it expects ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict:
    ws = Workspace(tmp_path_factory.mktemp("plan") / "ws")
    corpus = curate(ws, documents=read(ws, OFFICE))
    words, lessons = train_tokenizer(ws, corpus=corpus), write_lessons(ws, corpus=corpus)
    parts = {"corpus": corpus, "tokenizer": words, "lessons": lessons}
    made = make_plan(ws, **parts, minutes=0.0, size=150_000, tokens=6_000)
    return {"ws": ws, "parts": parts, "plan": made}


def test_steps_tokens_weights_and_the_trigram_come_true(small):
    """All that follows from the plan alone is what training then notes, to the last one."""
    ws, parts, made = small["ws"], small["parts"], small["plan"]
    given = {"corpus": parts["corpus"], "tokenizer": parts["tokenizer"], "plan": made}
    plan = load_plan(made)
    decoder = ws.record(pretrain(ws, **given, kind="decoder").key)["notes"]
    assert plan.decoder_steps == decoder["steps"] and plan.decoder_tokens == decoder["tokens"]
    assert plan.parameters == decoder["parameters"]
    assert abs(plan.parameters - 150_000) < 0.25 * 150_000
    assert plan.trigram_bits_per_byte == decoder["ngram_bits_per_byte"]
    encoder = ws.record(pretrain(ws, **given, kind="encoder").key)["notes"]
    assert plan.encoder_steps == encoder["steps"]


def test_an_encoder_that_begins_as_the_bases_decoder_has_its_context(small, tmp_path):
    ws, parts = small["ws"], small["parts"]
    size = load_tokenizer(parts["tokenizer"].path).get_vocab_size()
    (tmp_path / "decoder").mkdir()
    (tmp_path / "tokenizer.json").write_bytes((parts["tokenizer"] / "tokenizer.json").read_bytes())
    save(Transformer(decoder_shape(size, 64, 1, 40)).initialise(0), tmp_path / "decoder", {})
    trained = {name: parts[name] for name in ("corpus", "tokenizer")}
    trained["base"] = base = adopt(ws, tmp_path)
    plan = replace(load_plan(small["plan"]), batch_tokens=64, encoder_epochs=1)
    text = text_of(load_corpus(parts["corpus"]), load_tokenizer(parts["tokenizer"].path))
    told = expected(plan, text, base, 1.0)
    encoder = pretrain(ws, **trained, plan=adopt_plan(ws, text=spelling_of(plan)), kind="encoder")
    assert told.encoder_steps == ws.record(encoder.key)["notes"]["steps"]
    assert load(encoder.path)[0].shape.context == 40


def test_tokens_become_whole_passes_and_less_than_one_is_refused(small):
    plan = load_plan(small["plan"])
    once = plan.decoder_tokens // plan.decoder_epochs
    assert plan.decoder_tokens == once * plan.decoder_epochs
    assert abs(plan.decoder_tokens - 6_000) <= once / 2 and plan.minutes > 0
    few = small["parts"] | {"minutes": 0.0, "tokens": once - 1}
    with pytest.raises(OnsilError, match=f"--tokens {once - 1:,} .* takes {once:,}"):
        make_plan(small["ws"], **few)


def test_a_plan_beyond_the_machines_memory_is_refused(small, monkeypatch):
    """Before anything is measured or kept; `small` was planned on the machine as it is."""
    have = load_plan(small["plan"]).predicted_memory_mb // 4
    machine = Machine(have * 2**20, 2**40)
    monkeypatch.setattr("onsil.training.plan.machine_memory", lambda: machine)
    asked = small["parts"] | {"minutes": 0.0, "size": 150_000, "tokens": 6_000, "seed": 1}
    with pytest.raises(OnsilError, match=f"the machine has {have:,} MB"):
        make_plan(small["ws"], **asked)


@pytest.mark.parametrize(("drawn", "told"), [(None, "modelled"), (31.5, "measured")])
def test_a_thread_more_is_a_core_more_unless_it_was_measured(monkeypatch, drawn, told):
    monkeypatch.setenv("ONSIL_WATTS_PER_CORE", "10")
    text = Text([[5, 6, 7] * 20], [], 0, 60, 100, END)
    plan = replace(parse_plan(json.dumps(PLAN)), predicted_seconds=360)
    one, three = (expected(replace(plan, threads=n), text, None, drawn) for n in (1, 3))
    assert one.watts == (drawn or 10) and three.watts == (drawn or 30)
    assert three.predicted_watt_hours == pytest.approx(three.watts / 10)
    assert one.energy_source == three.energy_source == told


def test_a_small_text_gets_a_reason_instead_of_a_forecast(small):
    plan = load_plan(small["plan"])
    assert plan.no_forecast == "unlike the runs" and not plan.predicted_bits_per_byte
    assert plan.energy_source in ("measured", "modelled")
    expected = plan.watts * plan.predicted_seconds / 3600
    assert plan.predicted_watt_hours == pytest.approx(expected, abs=0.01)
    assert plan.predicted_memory_mb > 100


EXPECTING = replace(
    parse_plan(json.dumps(PLAN)),
    parameters=1_007_744,
    decoder_tokens=389_580,
    decoder_steps=216,
    trigram_bits_per_byte=1.4,
    predicted_bits_per_byte=1.46,
    bits_low=1.3,
    bits_high=1.65,
    predicted_memory_mb=700,
    threads=2,
    watts=24.0,
    predicted_watt_hours=1.9,
    energy_source="modelled",
)


def test_a_plan_says_the_rate_and_recipe_that_pretraining_uses(small, monkeypatch, tmp_path):
    """Of few passes from noise and of many; a plan by hand is told apart by its learning rate."""
    ws, few = small["ws"], load_plan(small["plan"])
    used = []

    def noted(parameters, loss_of, steps, peak, scratch, **more):
        used.append((more["recipe"], peak))
        return train(parameters, loss_of, steps, peak, scratch, **more)

    monkeypatch.setattr("onsil.training.pretraining.train", noted)
    parts = {k: small["parts"][k] for k in ("corpus", "tokenizer")}
    once = few.decoder_tokens // few.decoder_epochs
    sizes = {"minutes": 0.0, "size": 150_000}
    one = make_plan(ws, **small["parts"], **sizes, tokens=once)
    by_hand = json.dumps(PLAN | {"width": 32, "depth": 1, "decoder_epochs": 1})
    made = [one, small["plan"], adopt_plan(ws, text=by_hand)]
    for plan in made:
        pretrain(Workspace(tmp_path / "ws"), **parts, plan=plan, kind="decoder")
    said = [described(load_plan(plan)).splitlines()[0] for plan in made]
    words = {"adamw": "AdamW", "muon": "Muon"}
    for (recipe, peak), line in zip(used, said, strict=True):
        assert f"{words[recipe.optimizer]} {peak:g})" in line
    slow = [(Recipe(), few.learning_rate), (Recipe(), PLAN["learning_rate"])]
    assert used == [(FAST, FAST_PEAK), *slow]


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_plan_is_said_line_by_line(monkeypatch, language):
    monkeypatch.setenv("ONSIL_LANG", language)
    said = described(EXPECTING, Machine(2**40, 2**40))
    for figure in ("1,007,744", "216", "700 MB", "1.9 Wh", "12 W", "1.46 [1.30, 1.65]", "2.4e+12"):
        assert figure in said, figure
    assert {"en": "modelled", "ko": "추정"}[language] in said
    assert {"en": "Warning", "ko": "주의"}[language] not in said
    assert len(said.splitlines()) == 7
    measured = described(replace(EXPECTING, energy_source="measured"))
    assert {"en": "measured at the processor: 24 W", "ko": "측정한 전력 24 W"}[language] in measured
    for word, both in WHY_NOT.items():
        assert both[language == "en"] in described(replace(EXPECTING, no_forecast=word))
    crowded = Machine(2**40, 0)
    told = described(replace(EXPECTING, predicted_memory_mb=resident() // 2**20 + 900), crowded)
    assert {"en": "Warning", "ko": "주의"}[language] in told
    large = described(replace(EXPECTING, parameters=10**9, decoder_tokens=10**9))
    assert "6.0e+18 FLOP" in large and "nats" in large


def test_every_reason_has_words():
    assert set(WHY_NOT) == set(NO_FORECAST)


# -- what came of it ----------------------------------------------------------------------------


@stage(version=1)
def taught(*, after: Artifact | None, out, run) -> dict:
    (out / "weights").write_text(after.digest if after else "")
    return {}


def test_energy_is_measured_only_if_it_was_read_in_every_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("ONSIL_WATTS_PER_CORE", "36")
    ws = Workspace(tmp_path)
    counter = iter([100.0, 7300.0, 8000.0, None])
    ws.joules = lambda: next(counter)
    made = taught(ws, after=None)
    assert energy_taken(ws, made)["whole"] == {"watt_hours": 2.0, "source": "measured"}
    later = taught(ws, after=made)  # the counter is gone before it is done
    spent = sum((ws.record(some.key) or {})["cpu_seconds"] for some in (made, later))
    modelled = {"watt_hours": pytest.approx(spent / 100), "source": "modelled"}
    assert energy_taken(ws, later)["whole"] == modelled
    assert energy_taken(ws, made)["whole"]["source"] == "measured"


def stage_row(name: str, seconds: float, **notes) -> dict:
    return {"stage": name, "object": name * 8, "seconds": seconds, "notes": notes}


def report(plan: Plan, **outcome) -> str:
    notes = {
        "ngram_bits_per_byte": 1.4,
        "heldout_bits_per_byte": outcome.pop("bits", 1.5),
        "parameters": 1_007_744,
        "steps": 216,
        "tokens": 389_580,
    }
    rows = [stage_row("pretrain", 100.0, **notes), stage_row("finetune", 50.0)]
    rows.append(stage_row("instruct", 30.0))
    page = render({"plan": asdict(plan)}, {"stages": rows, "total_seconds": 200.0} | outcome)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_the_report_puts_what_came_of_it_beside_the_plan():
    spent = {"training": {"watt_hours": 2.2, "source": "measured"}}
    text = report(replace(EXPECTING, predicted_seconds=90), training_peak_rss_mb=1400, energy=spent)
    for row in (
        "Training (s) 90 180 2.00",
        "Weights of the decoder 1,007,744 1,007,744 1.00",
        "Decoder steps 216 216 1.00",
        "Decoder, bits per byte 1.46 [1.300, 1.650] 1.5 ✓ 1.03",
        "Peak memory until trained (MB) 700 1,400 2.00",
        "Energy of training (Wh) 1.9 추정 · modelled 2.2 측정 · measured 1.16",
    ):
        assert row in text, row
    assert "1.7 ✕" in report(EXPECTING, bits=1.7)


@pytest.mark.parametrize("why", NO_FORECAST)
def test_the_report_says_the_plans_words_in_both_languages(why):
    text = report(replace(EXPECTING, no_forecast=why))
    assert " ".join(WHY_NOT[why]) in text and "Energy is 추정 · modelled" in text


def test_the_report_has_a_name_for_every_field_of_a_plan():
    assert set(PLAN_WORDS) == {f.name for f in fields(Plan)}


def test_an_older_plan_shows_a_dash_and_no_row_of_zeros():
    old = parse_plan(json.dumps(PLAN))
    spent = {"training": {"watt_hours": 2.2, "source": "modelled"}}
    text = report(old, training_peak_rss_mb=1400, energy=spent)
    assert "Energy of training (Wh) – 2.2 추정 · modelled –" in text
    assert "Decoder, bits per byte – 1.5 –" in text
    assert "Weights of the decoder" not in text and "95 % interval" not in text
    assert "Seed 0" in text


def test_the_speed_is_that_of_the_model_that_will_be_trained(monkeypatch):
    """A base's own shape, in rows no longer than it can read, and not one of its width."""
    asked = []

    def noted(shape, compute):
        asked.append(shape)
        return Transformer(shape, compute)

    monkeypatch.setattr("onsil.models.transformer.Transformer", noted)
    plan = replace(parse_plan(json.dumps(PLAN)), width=32, depth=2, batch_tokens=64)
    own = replace(decoder_shape(300, 64, 1, 32), positions="learned")
    assert measure_speed(plan, 300, 64, own, seconds=0.0) > 0
    assert measure_speed(plan, 300, 64, seconds=0.0) > 0
    assert asked == [own, hybrid_shape(300, 32, 2)]


# -- the page -----------------------------------------------------------------------------------


def test_the_example_of_the_page_runs(capsys, monkeypatch):
    monkeypatch.setattr(memory, "processor_flags", lambda: "avx512_bf16")
    page = Path(__file__).resolve().parents[1] / "docs" / "plan.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(example, {})
    printed = re.search(r"```text\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert printed and capsys.readouterr().out == printed[1]
