"""How gradients become steps: rates over a run, what Muon moves, parts of a batch, what is kept."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted import PLANTED

from onsil.errors import OnsilError
from onsil.models.shape import decoder_shape, hybrid_shape, race_shape
from onsil.models.transformer import Transformer
from onsil.training.loop import train
from onsil.training.muon import Muon
from onsil.training.objectives import causal_batch, pieces_of, schedule, token_loss
from onsil.training.optim import FAST, FAST_PEAK, RACE, Optimizer, Recipe, rate_share
from onsil.training.plan import plan_for, rate_for, with_recipe
from onsil.training.pretraining import recipe_of

PIECES = pieces_of([[5 + (i * j) % 80 for i in range(3, 60)] for j in range(3, 12)], 32)
STEPS = schedule([len(p) for p in PIECES], 96, 4, 0)
MUON = Recipe(optimizer="muon", embedding=2.0, head=0.5)


def model_of(make=decoder_shape) -> Transformer:
    return Transformer(make(97, 64, 2, 64)).initialise(0, wide=make is race_shape)


def run(scratch, recipe=MUON, stop_after=None, parts=1, make=decoder_shape, **more):
    scratch.mkdir(exist_ok=True)
    model = model_of(make)

    def loss_of(k):
        chosen = [PIECES[i] for i in STEPS[k]]
        if parts == 1:
            return token_loss(model, causal_batch(chosen))
        return (token_loss(model, causal_batch(chosen[n::parts])) for n in range(parts))

    losses = []
    loop = train(
        dict(model.named_parameters()), loss_of, len(STEPS), 3e-3, scratch, 5, recipe,
        **PLANTED | more,
    )  # fmt: skip
    for step in loop:
        losses.append(step.loss)
        if step.number == stop_after:
            break
    return model.state_dict(), losses


def test_rates_warm_up_and_come_down_as_their_words_say():
    wsd = [rate_share(k, 100, Recipe()) for k in range(100)]
    assert wsd[0] == 0.2 and wsd[4] == wsd[59] == 1.0 and 0 < wsd[-1] < 0.03
    cosine = [rate_share(k, 100, Recipe(schedule="cosine")) for k in range(100)]
    assert cosine[4] == 1.0 and abs(cosine[-1] - 0.1) < 1e-9 and abs(cosine[52] - 0.55) < 0.02
    root = [rate_share(k, 100, Recipe(schedule="inverse_sqrt")) for k in range(100)]
    assert root[4] == 1.0 and abs(root[19] - 0.5) < 1e-9 and abs(root[79] - 0.25) < 1e-9
    for shares in (wsd, cosine, root):
        assert all(0 < share <= 1 for share in shares)
        top = shares.index(1.0)
        assert shares[: top + 1] == sorted(shares[: top + 1])
        assert shares[top:] == sorted(shares[top:], reverse=True)


def test_muon_moves_the_matrices_of_the_blocks_and_nothing_else():
    parameters = dict(model_of().named_parameters())
    _, muon = Optimizer(parameters, 1e-3, 10, MUON).parts
    moved = {id(w) for group in muon.param_groups for w in group["params"]}
    names = {name for name, w in parameters.items() if id(w) in moved}
    assert len(names) == 2 * 7 and all("blocks." in n and "norm" not in n for n in names)


def test_each_kind_of_weight_has_the_rate_and_the_decay_of_its_word():
    shape = race_shape(97, 64, 2, 64)
    parameters = dict(Transformer(shape).initialise(0, wide=True).named_parameters())
    words = {"matrix": 2.0, "embedding": 3.0, "head": 4.0, "values": 5.0, "pairs": 6.0}
    recipe = Recipe("muon", scalars=7.0, matrix_decay=8.0, **words)
    optimizer = Optimizer(parameters, 0.1, 10, recipe)
    group_of = {
        id(w): group for part in optimizer.parts for group in part.param_groups
        for w in group["params"]
    }  # fmt: skip
    for name, factor in {
        "blocks.1.mlp.up.weight": 2, "embedding.weight": 3, "head.weight": 4,
        "blocks.1.attention.value.weight": 5, "pair.weight": 6, "skips": 7,
        "blocks.0.attention.shift": 7, "blocks.1.attention.value_gate.weight": 1,
    }.items():  # fmt: skip
        group = group_of[id(parameters[name])]
        assert group["peak"] == pytest.approx(0.1 * factor), name
        decay = 0.1 * 0.1 if parameters[name].dim() > 1 else 0.0
        decay *= 8 if factor == 2 else 1
        assert group["peak"] * group["weight_decay"] == pytest.approx(decay), name


def test_a_muon_step_is_orthogonal_and_as_large_as_adam_would_make_it():
    weight = torch.nn.Parameter(torch.zeros(64, 32))
    name = "blocks.0.mlp.up.weight"
    optimizer = Optimizer({name: weight}, 1.0, 1, Recipe("muon", weight_decay=0.0))
    weight.grad = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    optimizer.step(0)
    # Newton-Schulz with these constants leaves singular values between 0.7 and 1.2 (Jordan et al.).
    values = torch.linalg.svdvals(weight.detach()) / (0.2 * 64**0.5)
    assert values.min() > 0.5 and values.max() < 1.3
    assert abs(float(weight.detach().square().mean().sqrt()) - 0.2) < 0.04


def test_muon_gives_every_neuron_its_share_and_decays_only_what_the_step_shrinks():
    gradient = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    gradient[:32] *= 1e-3
    steps = []
    for decay in (0.0, 0.5):
        weight = torch.nn.Parameter(torch.ones(64, 32))
        weight.grad = gradient.clone()
        Muon([weight], lr=0.01, weight_decay=decay).step()
        steps.append((1 - weight.detach()) / 0.01)
    plain, decayed = steps
    sizes = plain.square().mean(1).sqrt()
    assert sizes.max() / sizes.min() < 1.2  # a thousandth of the gradient, and the same step
    told = plain.abs() > 1e-4
    assert torch.allclose((decayed - plain)[told], 0.5 * (plain[told] > 0), atol=1e-3)


@pytest.mark.parametrize("rows", [8, 24])
def test_a_muon_step_of_rows_on_several_workers_is_the_step_of_the_whole(rows):
    """FSDP2 lays rows of a matrix on the workers; a mean over them is then the mean of parts."""
    from torch import distributed
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    draw = torch.Generator().manual_seed(0)
    first, *gradients = (torch.randn(rows, 16, generator=draw) for _ in range(4))
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        mesh = init_device_mesh("cpu", (1,))
        laid = lambda whole: distribute_tensor(whole.clone(), mesh, [Shard(0)])  # noqa: E731
        whole, parts = first.clone().requires_grad_(), laid(first).requires_grad_()
        for weight, of in ((whole, torch.clone), (parts, laid)):
            optimizer = Muon([weight], lr=0.01)
            for gradient in gradients:
                weight.grad = of(gradient)
                optimizer.step()
        assert torch.equal(whole, parts.full_tensor()) and not torch.equal(whole, first)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("make", "recipe", "stop_after"),
    [(decoder_shape, MUON, 1), (decoder_shape, MUON, 7), (race_shape, RACE, 12)],
)
def test_stopped_and_resumed_is_bitwise_never_stopped(tmp_path, make, recipe, stop_after):
    whole, _ = run(tmp_path / "whole", recipe, make=make)
    run(tmp_path / "parts", recipe, stop_after, make=make)
    parts, _ = run(tmp_path / "parts", recipe, make=make)
    assert all(torch.equal(parts[name], weight) for name, weight in whole.items())


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path):
    """Also when the parts have different numbers of targets: Σ loss ÷ all targets."""
    whole, once = run(tmp_path / "once", Recipe())
    split, twice = run(tmp_path / "twice", Recipe(), parts=3)
    assert max(abs(a - b) for a, b in zip(once, twice, strict=True)) < 2e-4
    assert max(float((whole[n] - split[n]).abs().max()) for n in whole) < 2e-3


def test_a_run_refuses_the_checkpoint_of_other_data(tmp_path):
    run(tmp_path / "run", stop_after=9, data="a1")
    with pytest.raises(OnsilError, match="a1"):
        run(tmp_path / "run", data="b2")


def test_a_step_without_targets_names_its_documents(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    loop = train(
        {"w": weight}, lambda k: (weight.sum() * 0, 0), 3, 0.1, tmp_path,
        names_of=lambda k: ["규정/연차.hwp", "b.md"], data="planted",
    )  # fmt: skip
    with pytest.raises(OnsilError, match=r"규정/연차\.hwp, b\.md") as caught:
        list(loop)
    assert "규정/연차.hwp" in str(caught.value.ko)


def test_random_numbers_go_on_where_they_were(tmp_path):
    """A loss that draws (dropout, sampling) resumes to the same draws."""

    def once(stop_after=None):
        torch.manual_seed(4)
        weight = torch.nn.Parameter(torch.ones(8))
        loop = train(
            {"w": weight}, lambda k: ((weight * torch.rand(8)).square().sum(), 8), 20, 0.1,
            tmp_path / "run", **PLANTED,
        )  # fmt: skip
        for step in loop:
            if step.number == stop_after:
                return None
        return weight.detach()

    (tmp_path / "run").mkdir()
    once(stop_after=11)
    resumed = once()
    for file in (tmp_path / "run").iterdir():
        file.unlink()
    assert torch.equal(resumed, once())


def test_one_pass_from_noise_is_fast_and_many_passes_are_careful():
    """The recipe measured for much text overfits a small folder read twelve times. Which it is
    stands in the plan, and pretraining follows it."""
    bare = plan_for(50_000, 2_000, 500_000, 6, 0, lambda plan: (5_000, 5_000))
    plan, once = with_recipe(bare, None), with_recipe(replace(bare, decoder_epochs=1), None)
    assert (once.decoder_recipe, once.decoder_rate) == ("muon", FAST_PEAK)
    assert recipe_of(once, "decoder", 192) == (FAST, FAST_PEAK)
    assert recipe_of(plan, "decoder", plan.width) == (Recipe(), plan.learning_rate)
    assert recipe_of(once, "encoder", plan.width) == (FAST, FAST_PEAK / 3)
    assert recipe_of(plan, "encoder", plan.width) == (Recipe(), plan.learning_rate / 3)
    # A base's decoder may be wider than the plan, which then is twice too fast for it.
    own = hybrid_shape(400, 256, 2)
    from_base = with_recipe(replace(bare, decoder_epochs=1), own)
    assert recipe_of(from_base, "decoder", 256) == (Recipe(), plan.learning_rate / 2)
    assert from_base.decoder_rate == plan.learning_rate / 2
    assert [rate_for(width) for width in (128, 192, 256, 384)] == [0.002, 0.002, 0.001, 0.001]
    large = plan_for(3_000_000, 2_000, 500_000, 10_000, 0, lambda plan: (5_000, 5_000))
    assert (large.width, large.learning_rate) == (256, 0.001)


def test_a_plan_by_hand_is_followed_to_the_letter():
    """Without a word on the decoder it is AdamW at the plan's rate, however few the passes."""
    bare = plan_for(50_000, 2_000, 500_000, 6, 0, lambda plan: (5_000, 5_000))
    own = replace(bare, learning_rate=0.004, decoder_epochs=1)
    assert recipe_of(own, "decoder", own.width) == (Recipe(), 0.004)
    assert recipe_of(own, "decoder", 256) == (Recipe(), 0.002)
    told = replace(own, decoder_recipe="muon", decoder_rate=0.03)
    assert recipe_of(told, "decoder", own.width) == recipe_of(told, "decoder", 256) == (FAST, 0.03)


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).resolve().parents[1] / "docs" / "training.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(block, {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    losses = [float(loss) for _, loss in printed]
    assert printed[0] == re.search(r"# (10 \S+) …", page)[1].split()
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
