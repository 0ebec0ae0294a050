"""The distillation recipes at toy size: they run, and say what they claim to say."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import fu
import gemma
import step_by_step
import turc

# -- gemma --------------------------------------------------------------------------------------


def test_a_student_of_a_good_teacher_beats_one_that_learns_alone():
    """Sentences from a small grammar; the texts of the test were never seen."""
    draw = random.Random(0)
    who, what, how = ("철수", "영희", "민수"), ("책을", "빵을", "옷을"), ("샀다", "보았다")
    texts = [
        " ".join(f"{draw.choice(who)}가 {draw.choice(what)} {draw.choice(how)}." for _ in range(4))
        for _ in range(120)
    ]
    sizes = replace(
        gemma.Sizes(), student=(32, 1), teacher=(64, 2), vocabulary=300, teacher_passes=8,
        passes=2, longer=3, rate=1e-2, teacher_rate=4e-3, compute="fp32",
    )  # fmt: skip
    arms = gemma.arms_of(gemma.text_of(texts, 20, sizes.vocabulary), sizes)
    told = {name: arm(0) for name, arm in arms.items()}
    assert {len(scores) for scores in told.values()} == {20}
    means = {name: sum(scores) / 20 for name, scores in told.items()}
    assert means["alone"] < means["alone, longer"] < means["teacher"] < 0
    assert means["alone"] < means["distilled"]


# -- turc ---------------------------------------------------------------------------------------


def test_the_arms_differ_in_what_they_did_and_not_in_what_they_are_judged_on():
    """Planted sentences: one of a few words says which kind it is."""
    draw = random.Random(0)

    def some(number: int) -> tuple[list[list[int]], list[int]]:
        labels = [draw.randrange(4) for _ in range(number)]
        rows = [
            [2, *(draw.randrange(300, 320) for _ in range(6)), 500 + 5 * k + draw.randrange(5), 3]
            for k in labels
        ]
        return rows, labels

    (reading, _), (labelled, labels), (test, answers) = some(100), some(40), some(60)
    known = turc.Known(reading, reading, labelled, labels, test, answers)
    sizes = replace(
        turc.Sizes(), student=(32, 1), reading_passes=1, distil_passes=2, tuning_passes=2,
        teacher_reading=0, distil_rate=5e-3,
    )  # fmt: skip
    arms = turc.arms_of(known, sizes)
    told = {name: arm(0) for name, arm in arms.items()}
    assert {len(scores) for scores in told.values()} == {60}
    assert told["PD"] == arms["PD"](0)
    assert len({tuple(scores) for scores in told.values()}) > 1


def test_sentences_to_learn_from_choose_by_and_be_judged_by_are_apart(monkeypatch):
    found = {kind: [f"{n}번 {kind}" for n in range(40)] for kind in turc.KINDS}
    monkeypatch.setattr(turc, "sentences", lambda: found)
    sizes = replace(turc.Sizes(), reading=60, transfer=30, labels=5, items=8)
    known, dev = turc.sentences_of(sizes), turc.sentences_of(sizes, test=False)
    many = [len(x) for x in (known.reading, known.transfer, known.labelled, known.test)]
    assert many == [60, 30, 20, 32] and len(dev.test) == 32
    parts = [{tuple(t) for t in x} for x in (known.reading, known.labelled, known.test, dev.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 144
    assert {tuple(t) for t in known.transfer} <= parts[0]
    assert [known.labels.count(k) for k in range(4)] == [5] * 4
    assert [known.answers.count(k) for k in range(4)] == [8] * 4


# -- step by step -------------------------------------------------------------------------------


def test_reasons_are_right_and_the_test_has_prices_of_its_own():
    sizes = replace(step_by_step.Sizes(), questions=200, items=100)
    known, test = step_by_step.split(sizes, 1)
    seen = {tuple(item.question.split()[:2]) for item in known}
    for item in (*known, *test):
        price, many, budget = (int(x[:-1]) for x in item.question.split())
        fits = price * many <= budget
        assert item.answer == ("가능" if fits else "부족")
        assert item.reason.startswith(f"{price * many}원") and item.reason.endswith(item.answer)
    assert not seen & {tuple(item.question.split()[:2]) for item in test}
    assert step_by_step.split(sizes, 2)[1] == test


def test_the_loss_is_the_mixture_and_both_arms_run():
    sizes = replace(step_by_step.Sizes(), questions=20, items=20, steps=3, width=32, depth=1)
    known, _ = step_by_step.split(sizes, 1)
    model = step_by_step.new_model(sizes, 0)
    with torch.no_grad():
        alone, why, both = (
            step_by_step.loss_of(model, known, alpha)[0].item() for alpha in (1.0, 0.0, 0.25)
        )
    assert both == pytest.approx(0.25 * alone + 0.75 * why, rel=1e-5)
    for alpha in (0.5, 1.0):
        assert len(step_by_step.arm(sizes, alpha)(0)) == 20


# -- fu -----------------------------------------------------------------------------------------


def test_the_four_formats():
    asked, shown = fu.problem(0, (3, 5, 2, 6)), fu.problem(6, (1, 1, 1, 1))
    assert fu.zero_shot(asked, False) == ("월+3+5+2+6 답:", "수")
    prompt, said = fu.zero_shot(asked, True)
    assert prompt == "월+3+5+2+6 풀이:" and said == "월,목,화,목,수 답:수"
    prompt, said = fu.in_context([shown], asked, False)
    assert prompt == "일+1+1+1+1 답:목\n월+3+5+2+6 답:" and said == "수"
    prompt, said = fu.in_context([shown], asked, True)
    assert prompt.startswith("일+1+1+1+1 풀이:일,월,화,수,목 답:목\n월+3")


def test_both_tunings_learn_the_same_problems_in_as_many_texts():
    known = fu.problems(50, "0")
    assert not set(known) & set(fu.problems(20, "1", frozenset(known)))
    worked, bare = (fu.formats_of(known, 1, steps, 0) for steps in (True, False))
    assert (len(worked), len(bare)) == (4, 2)
    for formats in (worked, bare):
        assert sum(map(len, formats)) == 100 and min(map(len, formats)) > 10
        for texts in formats:  # a format has one length
            assert len({len(prompt + said) for prompt, said in texts}) == 1
    assert sum(fu.STEPS in "".join(texts[0]) for texts in worked) == 2
    assert not any(fu.STEPS in prompt + said for texts in bare for prompt, said in texts)


def test_the_arms_run_and_note_what_they_cost():
    sizes = replace(fu.Sizes(), problems=20, items=5, passes=1, width=32, depth=1)
    texts = ["재미있는 영화였다.", "다시 보고 싶지 않다."] * 20
    costs: dict[str, list[float]] = {}
    for name, arm in fu.arms_of(sizes, texts, texts[:4], costs).items():
        assert len(arm(0)) == 5 and len(costs[name]) == 1
    assert len({tuple(loss) for loss in costs.values()}) == 3


def test_a_solution_is_right_only_when_every_letter_is():
    words = fu.Letters(["가"])
    model = fu.reader(words, ["가나"] * 4, replace(fu.Sizes(), width=32, depth=1))
    item = fu.problem(0, (3, 5, 2, 6))
    pair = fu.pair_of(words, *fu.zero_shot(item, False))

    def loss_of(step: int):
        batch = fu.prefix_batch([pair])
        return fu.token_loss(model, replace(batch, prefixes=None))

    assert fu.right(model, words, [item], False) == [0.0]
    fu.learn(dict(model.named_parameters()), loss_of, 60, 1e-2)
    assert fu.right(model, words, [item], False) == [1.0]
    assert fu.right(model, words, [item], True) == [0.0]
