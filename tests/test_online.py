"""GRPO: its arithmetic, a killed run that continues to the same bits, what a round is drawn with
and counted by; what the stages hold on to."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_grow import PLAN
from test_preference import (
    END,
    make_decoder,
    make_tokenizer,
    notes_of,
    preferences,
    rankings,
    tiny,
)

from onsil.documents.types import FileRef
from onsil.errors import OnsilError
from onsil.lineage import Workspace
from onsil.tokenizer.train import train
from onsil.training.online import (
    GRPO,
    SILENT,
    Rounds,
    advantages,
    exactly,
    policy_loss,
    reinforce,
    reinforced,
)
from onsil.training.plan import adopt_plan
from onsil.training.policy import answer_logps, divergence, sampled
from onsil.training.preference import Ranking, adopt_preferences, align, train_reward

# -- the arithmetic and the run ------------------------------------------------------------------


def test_advantages_are_standard_scores_and_nothing_where_a_group_agrees():
    found = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.3] * 4, [3.0, 1.0, 1.0, 1.0]]))
    assert torch.allclose(found[0], torch.tensor([0.866, -0.866, -0.866, 0.866]), atol=1e-3)
    assert found[1].tolist() == [0.0] * 4
    assert float(found.sum(1).abs().max()) < 1e-5
    # Seven times 0.7 has, rounded, another mean than 0.7.
    assert advantages(torch.full((1, 7), 0.7)).tolist() == [[0.0] * 7]


def test_the_policy_loss_is_the_published_formula():
    torch.manual_seed(0)
    now = [torch.randn(n) / 3 - 2 for n in (3, 1, 4)]
    then = [t + torch.randn(len(t)) / 3 for t in now]
    ref = [t + torch.randn(len(t)) / 3 for t in now]
    weight, clip, beta, direct = [1.2, -0.7, -1.0], 0.2, 0.04, 0.0
    for a, p, q, r in zip(weight, now, then, ref, strict=True):
        terms = []
        for x, y, z in zip(p.tolist(), q.tolist(), r.tolist(), strict=True):
            ratio = math.exp(x - y)
            gain = min(ratio * a, max(0.8, min(1.2, ratio)) * a)
            terms.append(-(gain - beta * (math.exp(z - x) - (z - x) - 1)))
        direct += sum(terms) / len(terms)
    found = policy_loss(now, then, weight, clip, ref, beta)
    assert float(found) == pytest.approx(direct, abs=1e-5)


def test_the_clip_stops_the_gradient_only_on_the_side_that_was_rewarded():
    for ahead, weight, moves in ((0.5, 1.0, False), (0.5, -1.0, True), (-0.5, -1.0, False)):
        now = torch.tensor([ahead], requires_grad=True)
        policy_loss([now], [torch.zeros(1)], [weight], 0.2).backward()
        assert (float(now.grad.abs()) > 0) == moves


def says_sixty(asked: list[int], answers: list[list[int]]) -> list[float]:
    return [answer.count(60) / len(answer) for answer in answers]


HOW = GRPO(rounds=12, prompts=3, group=6, updates=2, limit=6, rate=1e-3)


def run(scratch: Path, stop_after: int = 10**9, how: GRPO = HOW, rewards=says_sixty, start=None):
    """A model after some rounds, or killed in the middle of one."""
    scratch.mkdir(exist_ok=True)
    model = copy.deepcopy(start or tiny())
    prompts = [r.prompt for r in rankings(7)]
    seen = []
    loop = reinforced(model, dict(model.named_parameters()), prompts, rewards, how, END, scratch)
    for step in loop:
        seen.append(step)
        if len(seen) == stop_after:
            break
    return model, seen


def test_a_rewarded_token_is_said_more_often(tmp_path):
    _, seen = run(tmp_path, how=GRPO(rounds=40, prompts=4, group=8, limit=6, rate=1e-3))
    assert sum(r.reward for r in seen[-5:]) > sum(r.reward for r in seen[:5]) + 1.0


@pytest.mark.parametrize("killed_at", [1, 5, 8])
def test_a_killed_run_continues_to_the_same_bits(tmp_path, killed_at, monkeypatch):
    whole, seen = run(tmp_path / "whole")
    run(tmp_path / "killed", killed_at)
    assert json.loads((tmp_path / "killed" / "latest.json").read_text())["step"] > 0
    model, _ = run(tmp_path / "killed")
    for name, p in whole.named_parameters():
        assert torch.equal(p, model.get_parameter(name)), name
    curves = [json.loads((tmp_path / x / "curve.json").read_text()) for x in ("whole", "killed")]
    assert curves[0] == curves[1] == [list(r) for r in seen]


def test_a_run_killed_between_the_steps_of_a_round_continues_to_the_same_bits(tmp_path):
    """The answers of a round are found again, not drawn anew from weights that have moved."""

    class Killed(Exception):
        pass

    from onsil.training import online

    whole, _ = run(tmp_path / "whole")
    calls = 0
    real = online.policy_loss

    def dies(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 8:  # the second step of the fourth round
            raise Killed
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online, "policy_loss", dies)
        with pytest.raises(Killed):
            run(tmp_path / "killed")
    assert json.loads((tmp_path / "killed" / "latest.json").read_text())["step"] == 7
    model, _ = run(tmp_path / "killed")
    for name, p in whole.named_parameters():
        assert torch.equal(p, model.get_parameter(name)), name


def test_no_signal_for_a_long_time_ends_the_run_and_leaves_the_model(tmp_path):
    start = tiny()
    long = GRPO(rounds=SILENT + 30, prompts=2, group=2, updates=1, limit=3, rate=1e-4)
    flat = lambda asked, answers: [0.0] * len(asked)  # noqa: E731
    model, seen = run(tmp_path, how=long, rewards=flat, start=start)
    assert len(seen) == SILENT and not any(r.signal for r in seen)
    for name, p in start.named_parameters():
        assert torch.allclose(p, model.get_parameter(name), rtol=1e-3), name


def test_holding_on_to_the_reference_keeps_the_policy_nearer(tmp_path):
    start, prompts, gone = tiny(), [r.prompt for r in rankings(7)], []
    for beta in (0.0, 1.0):
        model, scratch = copy.deepcopy(start), tmp_path / str(beta)
        scratch.mkdir()
        how = GRPO(rounds=20, prompts=3, group=6, limit=6, rate=1e-3, beta=beta)
        parameters, held = dict(model.named_parameters()), start if beta else None
        for _ in reinforced(model, parameters, prompts, says_sixty, how, END, scratch, held):
            pass
        gone.append(divergence(model, start, prompts, END))
    assert gone[1] < 0.75 * gone[0]


# -- rounds ----------------------------------------------------------------------------------------

PROMPTS = [r.prompt for r in rankings(7)]


def first_token_of_the_first(asked: list[int], answers: list[list[int]]) -> list[float]:
    """A reward for one prompt; whatever is said to the others is worth the same."""
    return [a[0] / 60 if p == 0 else 0.5 for p, a in zip(asked, answers, strict=True)]


def drawn(scratch, number: int, seed: int = 0) -> list[list[int]]:
    how = GRPO(rounds=9, prompts=1, group=16, limit=6, beta=1.0, seed=seed)
    rounds = Rounds(tiny(), PROMPTS[:1], first_token_of_the_first, how, END, scratch)
    return [pair.target for pair in rounds.drawn(number).pairs]


def test_every_round_draws_anew_and_the_same_round_the_same(tmp_path):
    """One prompt and weights that have not moved: all that differs is the seed of the round."""
    told = [drawn(tmp_path, number) for number in range(4)]
    assert all(len(answers) == 16 for answers in told)
    assert len({str(answers) for answers in told}) == 4
    assert drawn(tmp_path, 2) == told[2] != drawn(tmp_path, 2, seed=1)


def test_answers_that_say_nothing_count_in_the_mean(tmp_path):
    """Three of four prompts have no difference in reward; the gradient is over all answers."""
    how = GRPO(rounds=2, prompts=4, group=8, updates=1, limit=6, rate=1e-3)
    given = (PROMPTS[:4], first_token_of_the_first, how, END, tmp_path)
    start, model = tiny(), tiny()
    first = Rounds(start, *given).drawn(0)
    assert len(first.pairs) == 8
    loss = policy_loss(answer_logps(start, first.pairs), first.before, first.advantages, how.clip)
    weights = dict(start.named_parameters())
    wanted = torch.autograd.grad(loss / 32, list(weights.values()))
    assert torch.stack([g.norm() for g in wanted]).norm() < 0.9  # not clipped
    for _ in reinforced(model, dict(model.named_parameters()), *given):
        pass
    gathered = load_file(tmp_path / "step1.safetensors")
    for name, gradient in zip(weights, wanted, strict=True):
        assert torch.allclose(gathered[f"exp_avg/{name}"], 0.1 * gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("updates", [1, 2])
def test_a_policy_whose_scores_are_no_numbers_stops_and_names_its_prompts(tmp_path, updates):
    """The weights blow up between two rounds: what was seen before them and the checkpoint stay."""
    how = GRPO(rounds=4, prompts=2, group=8, updates=updates, limit=6)
    model, broken = tiny(), tiny()
    broken.get_parameter("final_norm.weight").data.fill_(float("inf"))
    given = (PROMPTS[:4], first_token_of_the_first, how, END, tmp_path)
    with pytest.raises(OnsilError) as caught:
        for seen in reinforced(model, dict(model.named_parameters()), *given):
            if seen.step == 2 * updates:
                model.load_state_dict(broken.state_dict())
    what, _, then = caught.value.en
    assert f"stopped at step {2 * updates + 1}: the model's scores are not finite" in what
    assert re.search(r"\(prompt \d, prompt \d", what) and "Lower the learning rate" in then
    assert "점수가 유한하지 않습니다" in caught.value.ko[0]
    assert [row[0] for row in json.loads((tmp_path / "curve.json").read_text())] == [
        updates,
        2 * updates,
    ]
    kept = json.loads((tmp_path / "latest.json").read_text())
    assert kept["step"] == 2 * updates and (tmp_path / kept["file"]).is_file()


@pytest.mark.parametrize("seed", [None, 0])
def test_nothing_is_drawn_from_scores_that_are_no_numbers(seed):
    """Outside training too: the likeliest of them is no word, and none can be drawn."""
    model = tiny()
    model.get_parameter("final_norm.weight").data.fill_(float("nan"))
    draw = None if seed is None else torch.Generator().manual_seed(seed)
    with pytest.raises(OnsilError, match="scores are not finite"):
        sampled(model, PROMPTS[:3], END, 4, draw)


# -- stages --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    ws = Workspace(folder / "ws")
    (folder / "p.jsonl").write_text(preferences(100), encoding="utf-8")
    words = make_tokenizer(ws)
    plan = adopt_plan(ws, text=json.dumps(PLAN | {"learning_rate": 0.02}))
    lessons = adopt_preferences(ws, file=FileRef("p.jsonl", "0"), run={"source": folder})
    decoder = make_decoder(ws, tokenizer=words)
    return ws, {"decoder": decoder, "tokenizer": words, "lessons": lessons, "plan": plan}


def test_alignment_holds_every_row_against_its_own_reference(made):
    """Nothing has been gained over the reference yet, so the first loss is log 2 to the digit."""
    ws, parts = made
    curve = json.loads((align(ws, **parts) / "curve.json").read_text())
    assert curve[0] == [1, 0.6931] and curve[-1][1] < 0.69


def test_reinforcement_stays_nearer_with_a_larger_beta(made):
    ws, parts = made
    judge = train_reward(ws, **parts)
    free, held = (
        notes_of(reinforce(ws, **parts, reward=judge, rounds=8, beta=beta)) for beta in (0.0, 5.0)
    )
    assert 0 < held["kl"] < 0.75 * free["kl"]


def test_a_stray_special_token_is_no_right_answer():
    words = train(["서울", "부산"], 300)
    right, end = words.encode("서울").ids, words.token_to_id("<|end|>")
    rewards_of = exactly(words, [Ranking([5], [[*right, end]])], end)
    mask = words.token_to_id("<|mask|>")
    answers = [[*right, end], [mask, *right, end], [*right, mask, end], right]
    assert rewards_of([0] * 4, answers) == [1.0, 0.0, 0.0, 0.0]
