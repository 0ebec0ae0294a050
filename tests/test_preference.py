"""Preferences: the losses against slow direct sums and known limits, a planted preference found,
and the stages."""

import json
import math
import random
import re
from pathlib import Path

import pytest
import torch
from planted import PLANTED
from test_grow import PLAN
from test_training import TEXT

from onsil.documents.types import FileRef
from onsil.errors import OnsilError
from onsil.inference.generation import written
from onsil.lineage import Workspace, stage
from onsil.models.adapters import adapter_parameters, add_lora
from onsil.models.checkpoint import load, save
from onsil.models.heads import load_head, new_head
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.train import train as train_words
from onsil.training.loop import train
from onsil.training.objectives import token_loss
from onsil.training.online import (
    SILENT,
    reinforce,
)
from onsil.training.plan import adopt_plan
from onsil.training.policy import answer_batch, answer_logps, divergence, k3, sampled
from onsil.training.preference import (
    Ranking,
    adopt_preferences,
    align,
    implicit_rewards,
    pair_accuracy,
    ranking_logps,
    ranking_loss,
    reference_logps,
    reward_scores,
    train_reward,
)
from onsil.training.samplers import Pair

END = 1


def tiny(seed: int = 0, context: int = 48) -> Transformer:
    model = Transformer(decoder_shape(61, 64, 2, context)).initialise(seed)
    for name, p in model.named_parameters():  # far enough from noise that order matters
        if name.endswith(("q.weight", "k.weight", "v.weight", "o.weight")):
            p.data.mul_(8)
    return model


def rankings(seed: int, many: int = 12, answers: int = 2) -> list[Ranking]:
    draw = random.Random(seed)
    word = lambda n: [draw.randrange(5, 61) for _ in range(n)]  # noqa: E731
    return [
        Ranking(
            word(draw.randint(1, 9)), [[*word(draw.randint(0, 9)), END] for _ in range(answers)]
        )
        for _ in range(many)
    ]


@torch.no_grad()
def slow_logp(model: Transformer, prompt: list[int], answer: list[int]) -> float:
    """log π(answer | prompt), a text at a time and a token at a time."""
    total = 0.0
    for i, token in enumerate(answer):
        logits_V = model(torch.tensor([[*prompt, *answer[:i]]]))[0, -1].double()
        total += float(logits_V[token] - logits_V.exp().sum().log())
    return total


# -- log-probabilities and drawing ---------------------------------------------------------------


def test_packed_logps_are_those_of_each_answer_alone(monkeypatch):
    monkeypatch.setattr("onsil.training.policy.LOSS_CHUNK", 7)
    model, some = tiny(), rankings(0)
    with torch.no_grad():
        found = ranking_logps(model, some)
        for r, logp_K in zip(some, found, strict=True):
            slow = [slow_logp(model, r.prompt, answer) for answer in r.answers]
            assert logp_K.tolist() == pytest.approx(slow, abs=1e-4)
        again = reference_logps(model, some, batch_tokens=40)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, again, strict=True))


def test_supervised_fine_tuning_reads_prompts_in_order_too():
    model, pairs = tiny(), [Pair(r.prompt, r.answers[0]) for r in rankings(0)]
    with torch.no_grad():
        total, number = token_loss(model, answer_batch(pairs))
        logps = torch.cat(answer_logps(model, pairs))
    assert number == len(logps)
    assert float(total) == pytest.approx(-float(logps.sum()), abs=1e-3)


def test_the_likeliest_answers_are_those_written_one_by_one():
    model, prompts = tiny(3), [r.prompt for r in rankings(1)]
    together = sampled(model, prompts, END, 12, None)
    for prompt, answer in zip(prompts, together, strict=True):
        assert [t for t in answer if t != END] == list(written(model, prompt, frozenset([END]), 12))
        assert END not in answer[:-1] and (answer[-1] == END or len(answer) == 12)


def test_answers_are_drawn_as_often_as_the_model_finds_them_likely():
    model, prompt = tiny(1), [7, 8, 9]
    model.head.weight.data.mul_(20)  # not uniform
    draw = torch.Generator().manual_seed(0)
    drawn = sampled(model, [prompt] * 4000, END, 1, draw)
    logits_V = model(torch.tensor([prompt]))[0, -1].detach()
    counts_V = torch.bincount(torch.tensor([a[0] for a in drawn]), minlength=61)
    chance_V = logits_V.softmax(0)
    assert chance_V.max() > 3 / 61
    assert ((counts_V / 4000 - chance_V).abs() < 4 * (chance_V / 4000).sqrt() + 1e-3).all()


def test_drawing_is_a_function_of_the_seed():
    model, prompts = tiny(), [r.prompt for r in rankings(2)]
    a, b, c = (sampled(model, prompts, END, 9, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert a == b != c


def test_k3_is_the_divergence_on_average():
    torch.manual_seed(0)
    now_V, ref_V = torch.randn(40).log_softmax(0), torch.randn(40).log_softmax(0)
    exact = float((now_V.exp() * (now_V - ref_V)).sum())
    assert float((now_V.exp() * k3(now_V, ref_V)).sum()) == pytest.approx(exact, abs=1e-5)
    assert (k3(now_V, ref_V) >= 0).all() and float(k3(now_V, now_V).abs().sum()) == 0.0
    assert divergence(tiny(), tiny(), [[5, 6]], END) == 0.0
    assert (divergence(tiny(), tiny(1), [[5, 6]] * 8, END) or 0) > 0.01


# -- rankings and DPO ----------------------------------------------------------------------------


def test_the_loss_of_a_ranking_is_the_mean_over_its_pairs():
    reward_K = [1.3, 0.2, -0.5, 0.9]
    direct = 0.0
    for better in range(4):
        for worse in range(better + 1, 4):
            direct -= math.log(1 / (1 + math.exp(reward_K[worse] - reward_K[better])))
    loss, number = ranking_loss([torch.tensor(reward_K), torch.tensor([2.0, 0.0])])
    assert number == 2
    assert float(loss) == pytest.approx(direct / math.comb(4, 2) + math.log(1 + math.exp(-2)))
    assert pair_accuracy([torch.tensor(reward_K), torch.tensor([1.0, 1.0])]) == [4 / 6, 0.5]


def test_dpo_is_the_published_formula():
    """−log σ(β[(log π(w) − log π(l)) − (log π_ref(w) − log π_ref(l))]), as TRL states it."""
    policy, start, some, beta = tiny(1), tiny(2), rankings(3), 0.3
    direct = 0.0
    for prompt, (chosen, rejected), _ in some:
        of_policy = slow_logp(policy, prompt, chosen) - slow_logp(policy, prompt, rejected)
        of_start = slow_logp(start, prompt, chosen) - slow_logp(start, prompt, rejected)
        direct -= math.log(1 / (1 + math.exp(-beta * (of_policy - of_start))))
    kept = reference_logps(start, some)
    loss, number = ranking_loss(implicit_rewards(ranking_logps(policy, some), kept, beta))
    assert float(loss.detach()) == pytest.approx(direct, abs=1e-3) and number == len(some)


@pytest.mark.parametrize("adapter", [False, True])
def test_at_the_start_dpo_is_log_2_and_moves_towards_the_chosen(adapter):
    model, some = tiny(1), rankings(4)
    kept = reference_logps(model, some, 10_000)
    parameters = dict(model.named_parameters())
    if adapter:
        add_lora(model, rank=2, alpha=4)
        parameters = adapter_parameters(model)
    loss, number = ranking_loss(implicit_rewards(ranking_logps(model, some), kept, 0.5))
    # The batches differ in their rounding and in nothing else.
    assert float(loss.detach()) / number == pytest.approx(math.log(2), abs=1e-5)
    loss.backward()
    with torch.no_grad():
        for p in parameters.values():
            assert p.grad is not None
            p -= 1e-3 * p.grad
        gained = implicit_rewards(ranking_logps(model, some), kept, 1.0)
    assert sum(float(g[0] - g[1]) for g in gained) > 0


def test_exactly_log_2_where_policy_and_reference_are_the_same_numbers():
    logps = [torch.tensor([-3.0, -7.5])]
    loss, _ = ranking_loss(implicit_rewards(logps, logps, 0.1))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-7)


def planted(seed: int, many: int, answers: int) -> list[Ranking]:
    """The more 60s an answer has, the better it is."""
    draw, found = random.Random(seed), []
    for _ in range(many):
        counts = sorted(draw.sample(range(6), answers), reverse=True)
        said = [[60] * n + [draw.randrange(5, 60) for _ in range(6 - n)] for n in counts]
        for answer in said:
            draw.shuffle(answer)
        found.append(Ranking([draw.randrange(5, 60)], [[*a, END] for a in said]))
    return found


def judge(told: list[Ranking], scratch: Path) -> float:
    stack, head = new_head(tiny(), "sequence", ("reward",))
    parameters = dict(stack.named_parameters())
    parameters |= {f"head.{name}": p for name, p in head.named_parameters()}
    loss_of = lambda k: ranking_loss(reward_scores(stack, head, told[k * 8 : k * 8 + 8]))  # noqa: E731
    for _ in train(parameters, loss_of, len(told) // 8, 2e-3, scratch, **PLANTED):
        pass
    with torch.no_grad():
        right = pair_accuracy(reward_scores(stack, head, planted(99, 60, 2)))
    return sum(right) / len(right)


def test_a_reward_model_learns_a_planted_order_from_rankings_of_four(tmp_path):
    told = planted(0, 480, 4)
    (tmp_path / "told").mkdir()
    (tmp_path / "control").mkdir()
    draw = random.Random(1)
    control = [Ranking(r.prompt, draw.sample(r.answers, 4)) for r in told]
    accuracy = judge(told, tmp_path / "told")
    assert accuracy > 0.9 and accuracy > judge(control, tmp_path / "control") + 0.2


def test_padding_and_neighbours_do_not_change_a_reward():
    stack, head = new_head(tiny(), "sequence", ("reward",))
    some = rankings(6, answers=3)
    with torch.no_grad():
        together = torch.cat(reward_scores(stack, head, some))
        alone = torch.cat([reward_scores(stack, head, [r])[0] for r in some])
    assert torch.allclose(together, alone, atol=1e-5) and together.std() > 0


# -- stages --------------------------------------------------------------------------------------

WORDS = "가나다라마바사아자차"


@stage(version=1)
def make_tokenizer(*, out: Path, run) -> dict:
    train_words([*TEXT, *WORDS], 400).save(str(out / "tokenizer.json"))
    return {}


@stage(version=1)
def make_decoder(*, tokenizer, out: Path, run) -> dict:
    size = load_tokenizer(tokenizer.path).get_vocab_size()
    save(Transformer(decoder_shape(size, 64, 2, 32)).initialise(0), out, run.ancestry)
    return {}


def preferences(many: int) -> str:
    """Of two answers the one that ends in 요 is better; the last fifth is held out."""
    draw, rows = random.Random(0), []
    for n in range(many):
        prompt, said = ("".join(draw.choices(WORDS, k=2)) for _ in range(2))
        split = "heldout" if n % 5 == 4 else "train"
        rows.append({"prompt": prompt, "chosen": said + "요", "rejected": said, "split": split})
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    ws = Workspace(folder / "ws")
    (folder / "p.jsonl").write_text(preferences(300), encoding="utf-8")
    words = make_tokenizer(ws)
    # At a rate for noise: the policy's share of it is what a trained model stands.
    plan = adopt_plan(ws, text=json.dumps(PLAN | {"learning_rate": 0.02}))
    ref = FileRef("p.jsonl", "0")
    lessons = adopt_preferences(ws, file=ref, run={"source": folder})
    decoder = make_decoder(ws, tokenizer=words)
    return ws, {"decoder": decoder, "tokenizer": words, "lessons": lessons, "plan": plan}


def notes_of(artifact) -> dict:
    return json.loads((artifact / "notes.json").read_text())


def test_the_stages_judge_align_and_reinforce(made):
    ws, parts = made
    judge = train_reward(ws, **parts)
    notes = notes_of(judge)
    assert notes["pairs"] == 240 and notes["heldout_pairs"] == 60 and notes["left"] == 0
    assert notes["heldout_accuracy"] > 0.9
    _, head = load_head(judge.path)
    assert head.names == ("reward",)

    notes = notes_of(align(ws, **parts))
    assert notes["heldout_accuracy"] > max(0.9, notes["reference_accuracy"])
    assert notes["chosen_gain"] > notes["rejected_gain"] and notes["kl"] > 0

    tuned = reinforce(ws, **parts, reward=judge, rounds=15)
    notes = notes_of(tuned)
    assert notes["reward_after"] > notes["reward_before"] and notes["kl"] > 0
    assert len(json.loads((tuned / "curve.json").read_text())) == notes["rounds"] == 15
    load(tuned.path)


def test_a_reward_that_never_comes_is_told_not_crashed(made):
    ws, parts = made
    notes = notes_of(reinforce(ws, **parts, rounds=40))
    assert notes["silent"] and notes["rounds"] == SILENT and notes["reward_after"] == 0.0


def test_the_same_preferences_make_the_same_bytes_and_beta_matters(made, tmp_path):
    _, parts = made
    again = Workspace(tmp_path / "ws")
    words = make_tokenizer(again)
    same = parts | {"tokenizer": words, "decoder": make_decoder(again, tokenizer=words)}
    weights = [
        (align(ws, **some, **more) / "model.safetensors").read_bytes()
        for ws, some, more in (
            (made[0], parts, {}),
            (again, same, {}),
            (made[0], parts, {"beta": 0.5}),
        )
    ]
    tensors = [w[int.from_bytes(w[:8], "little") + 8 :] for w in weights]
    assert tensors[0] == tensors[1] != tensors[2]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"prompt": "가", "chosen": "나", "rejected": "다"}', "line 2: KeyError: 'split'"),
        ('{"prompt": "가", "chosen": "나", "rejected": 3, "split": "train"}', "must be text"),
        ('{"prompt": "가", "chosen": "나", "rejected": "나", "split": "train"}', "both .* '나'"),
        ('{"prompt": "가", "chosen": "나", "rejected": "다", "split": "dev"}', "split 'dev'"),
        ("[]", "line 2: TypeError"),
        ("{", "line 2: JSONDecodeError"),
    ],
)
def test_a_line_that_is_no_preference_is_named(tmp_path, row, why):
    (tmp_path / "p.jsonl").write_text(preferences(1) + "\n" + row + "\n", encoding="utf-8")
    ws = Workspace(tmp_path / "ws")
    with pytest.raises(OnsilError, match=why):
        adopt_preferences(ws, file=FileRef("p.jsonl", "1"), run={"source": tmp_path})


def test_nothing_to_train_on_is_refused(tmp_path, made):
    text = '{"prompt": "가", "chosen": "나", "rejected": "다", "split": "heldout"}'
    (tmp_path / "p.jsonl").write_text(text, encoding="utf-8")
    ws = Workspace(tmp_path / "ws")
    with pytest.raises(OnsilError, match="no line to train on"):
        adopt_preferences(ws, file=FileRef("p.jsonl", "2"), run={"source": tmp_path})
    long = json.loads(text) | {"prompt": "가" * 99, "split": "train"}
    (tmp_path / "p.jsonl").write_text(json.dumps(long), encoding="utf-8")
    ref = FileRef("p.jsonl", "3")
    lessons = adopt_preferences(made[0], file=ref, run={"source": tmp_path})
    with pytest.raises(OnsilError, match="fits the 32 tokens"):
        align(made[0], **made[1] | {"lessons": lessons})


# -- the page ------------------------------------------------------------------------------------


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    page = Path(__file__).resolve().parents[1] / "docs" / "preference.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) >= 3
    monkeypatch.chdir(tmp_path)
    known: dict = {}
    for example in examples:
        exec(example, known)
    assert known["accuracy"] > 0.95 and known["losses"][0] == pytest.approx(math.log(2), abs=1e-5)
    assert known["after_dpo"] > known["before"] + 0.1 and known["gone"] < 1.0
    assert known["after_grpo"] > known["before"] + 0.3
