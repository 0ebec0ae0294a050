"""Training steps in compiled stretches: the same model, the same bits every time, or a clear no."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from test_grow import OFFICE

from onsil.corpus import curate
from onsil.documents import read
from onsil.errors import OnsilError
from onsil.lineage import Workspace
from onsil.models.checkpoint import load
from onsil.models.compiling import compiled, compiler
from onsil.models.shape import decoder_shape, encoder_shape, hybrid_shape, race_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer import train_tokenizer
from onsil.training.loop import train
from onsil.training.objectives import Batch, token_loss
from onsil.training.plan import Plan, adopt_plan
from onsil.training.plan_words import described
from onsil.training.pretraining import pretrain
from onsil.training.speed import COMPILED_FROM, compiling, faster
from tests.planted import PLANTED

needs_compiler = pytest.mark.skipif(not compiler(), reason="needs a C++ compiler")
VOCABULARY, LENGTHS = 97, ([16] * 5, [9, 30, 1, 17], [44], [1], [20, 20])


def shapes():
    hybrid = hybrid_shape(VOCABULARY, 64, 3, 64)
    assert "".join(hybrid.kind(i) for i in range(3)) == "CCG"
    return {
        "hybrid": hybrid,
        "race": race_shape(VOCABULARY, 64, 2, 64),
        "post": replace(encoder_shape(VOCABULARY, 64, 2, 64), segments=0),
        "sandwich": replace(decoder_shape(VOCABULARY, 64, 2, 64), wiring="sandwich"),
    }


def new_model(shape, compute="bf16") -> Transformer:
    model = Transformer(shape, compute).initialise(0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def batch_of(lengths) -> Batch:
    generator = torch.Generator().manual_seed(sum(lengths))
    ids, wanted = torch.randint(0, VOCABULARY, (2, 1, sum(lengths)), generator=generator)
    return Batch(ids, lengths, wanted)


def told(model, lengths) -> tuple[float, torch.Tensor]:
    """The loss, and all gradients in a row."""
    loss, _ = token_loss(model, batch_of(lengths))
    wanted = list(model.parameters())
    back = torch.autograd.grad(loss, wanted, allow_unused=True)
    return float(loss.detach()), torch.cat([g.flatten() for g in back if g is not None])


@needs_compiler
@pytest.mark.parametrize(
    "name", ["hybrid", *(pytest.param(n, marks=pytest.mark.slow) for n in list(shapes())[1:])]
)
def test_compiled_steps_are_as_near_to_float32_as_plain_ones(name):
    shape = shapes()[name]
    truth, plain = new_model(shape, "fp32"), new_model(shape)
    wanted = [told(truth, lengths) for lengths in LENGTHS]
    before = [told(plain, lengths) for lengths in LENGTHS]
    with compiled(plain, 80):
        with torch.compiler.set_stance("fail_on_recompile"):  # the first five really are compiled
            found = [told(plain, lengths) for lengths in LENGTHS if sum(lengths) > 1]
        found.insert(3, told(plain, LENGTHS[3]))
        with torch.no_grad():
            assert torch.equal(
                plain.encode(batch_of([7]).ids), new_model(shape).encode(batch_of([7]).ids)
            )
    assert [told(plain, lengths)[0] for lengths in LENGTHS] == [loss for loss, _ in before]
    for (loss, back), (plain_loss, plain_back), (true_loss, true_back) in zip(
        found, before, wanted, strict=True
    ):
        assert abs(loss - true_loss) <= abs(plain_loss - true_loss) + 4e-3 * true_loss
        size = true_back.norm()
        assert (back - true_back).norm() / size < 1.2 * (
            plain_back - true_back
        ).norm() / size + 2e-3


def test_a_stretch_is_given_the_table_of_its_own_layer():
    shape = replace(decoder_shape(VOCABULARY, 64, 2, 64), positions="relative")
    model, seen = new_model(replace(shape, relative_layers=True)), []
    for block in model.blocks:
        block.stretches = lambda block, x, views, table: seen.append(table) or x
    model.encode(batch_of([7]).ids)
    assert seen == [block.relative for block in model.blocks] and None not in seen


def steps_of(folder, until: int, many: int = 6, stretches: bool = True) -> Transformer:
    """A model after `until` of `many` steps of two threads, going on from what the folder holds."""
    model = new_model(shapes()["hybrid"])
    parameters = dict(model.named_parameters())
    loss_of = lambda k: token_loss(model, batch_of(LENGTHS[k % len(LENGTHS)]))  # noqa: E731
    with compiled(model, 80) if stretches else nullcontext():
        for step in train(parameters, loss_of, many, 3e-3, folder, 6, **PLANTED):
            if step.number == until:
                break
    return model


@needs_compiler
def test_a_compiled_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path):
    for name in ("whole", "broken", "plain"):
        (tmp_path / name).mkdir()
    torch.set_num_threads(2)
    try:
        whole = steps_of(tmp_path / "whole", 6).state_dict()
        steps_of(tmp_path / "broken", 3)
        broken = steps_of(tmp_path / "broken", 6).state_dict()
        plain = steps_of(tmp_path / "plain", 6, stretches=False).state_dict()
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert not all(torch.equal(whole[name], plain[name]) for name in whole)
    assert all(torch.allclose(whole[name], plain[name], atol=0.02) for name in whole)


BROKEN = """
from onsil.models.compiling import compiled, compiler
from onsil.models.shape import hybrid_shape
from onsil.models.transformer import Transformer
model = Transformer(hybrid_shape(97, 64, 2, 64), "bf16").initialise(0)
with compiled(model, 80):
    pass
"""


def test_a_compiler_that_fails_is_named_and_nothing_is_left(tmp_path):
    environment = os.environ | {"CXX": "/bin/false", "TMPDIR": str(tmp_path), "ONSIL_LANG": "en"}
    done = subprocess.run(
        [sys.executable, "-c", BROKEN], env=environment, capture_output=True, text=True
    )
    assert done.returncode and "OnsilError: The training steps could not be compiled" in done.stderr
    assert not [*tmp_path.glob("onsil-*")]


def test_no_compiler_is_no_version(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert compiler() == ""


def test_a_refusal_says_what_to_install(monkeypatch):
    monkeypatch.setattr("onsil.models.compiling._try", lambda *_: 1 / 0)
    with pytest.raises(OnsilError) as refused, compiled(new_model(shapes()["hybrid"]), 80):
        pass
    assert "python3-dev" in refused.value.en[2] and "division by zero" in refused.value.en[0]


# -- when a plan asks for it --------------------------------------------------------------------

PLAN = Plan(
    width=64, depth=3, context=64, batch_tokens=256, learning_rate=0.002, decoder_epochs=1,
    encoder_epochs=0, reader_epochs=0, reader_lessons=0, generator_lessons=0, compute="bf16",
    threads=1, compiled=False, seed=0, minutes=1.0, tokens_per_second=1_000, predicted_seconds=1,
)  # fmt: skip


def test_nothing_is_compiled_for_a_short_run():
    def never(_):
        raise AssertionError("measured for nothing")

    assert faster(PLAN, COMPILED_FROM - 1, never, print) is None


def refuse(_):
    raise OnsilError(("1", "2", "3"), ("1", "2", "3"))


@needs_compiler
@pytest.mark.parametrize(
    ("measure", "pays"), [(lambda _: 1_300, True), (lambda _: 990, False), (refuse, False)]
)
def test_compiling_has_to_pay(measure, pays, capsys):
    found = faster(PLAN, COMPILED_FROM, measure, print)
    assert (found is not None) == pays
    assert found is None or (found[0] == 1_300 and found[1] < 1)
    assert capsys.readouterr().out.strip() == compiling()


def test_compiling_that_takes_longer_than_it_saves_is_left_out(monkeypatch):
    """Six seconds of 120 are saved at 1,053 tokens a second; it took 2, then 7."""
    monkeypatch.setattr("onsil.models.compiling.compiler", lambda: "g++")
    for took, pays in ((2.0, True), (7.0, False)):
        clock = iter((0.0, took))
        own = SimpleNamespace(monotonic=lambda c=clock: next(c))  # of this module alone
        monkeypatch.setattr("onsil.training.speed.time", own)
        assert (faster(PLAN, 120, lambda _: 1_053, print) is not None) == pays


def test_where_no_compiler_is_none_is_asked(monkeypatch):
    monkeypatch.setattr("onsil.models.compiling.compiler", lambda: "")
    assert faster(PLAN, 10_000, lambda _: 1_000_000, print) is None


@needs_compiler
def test_a_plan_that_says_so_is_followed_and_the_compiler_noted(tmp_path):
    """The decoder's steps are those of compiled stretches; the encoder's are not."""
    ws = Workspace(tmp_path / "ws")
    corpus = curate(ws, documents=read(ws, OFFICE))
    given = {"corpus": corpus, "tokenizer": train_tokenizer(ws, corpus=corpus)}
    made = {}
    for kind in ("decoder", "encoder"):
        for here in (False, True):
            text = json.dumps(asdict(replace(PLAN, compiled=here, encoder_epochs=1)))
            plan = adopt_plan(ws, text=text)
            made[kind, here] = pretrain(ws, **given, plan=plan, kind=kind)
    notes = {which: (ws.record(model.key) or {})["notes"] for which, model in made.items()}
    assert notes["decoder", True]["compiler"] == compiler()
    assert not any("compiler" in notes[which] for which in notes if which != ("decoder", True))
    weights = {which: load(model.path)[0].state_dict() for which, model in made.items()}
    for kind, same in (("decoder", False), ("encoder", True)):
        one, other = weights[kind, False], weights[kind, True]
        assert all(torch.equal(one[name], other[name]) for name in one) == same
        assert all(torch.allclose(one[name], other[name], atol=0.02) for name in one)
    assert "compiled" in described(replace(PLAN, compiled=True)).splitlines()[0]
