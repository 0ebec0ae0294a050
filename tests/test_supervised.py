"""Fine-tuning on chats: exact isolation, honest counts, refusals, the same bits after a crash."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import runs_as_it_says

from onsil.documents.types import FileRef
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, Workspace, stage
from onsil.lineage.spelling import file_digest
from onsil.models.adapters import load_adapter
from onsil.models.checkpoint import load, save
from onsil.models.prompted import PROMPT
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.template import NO_TARGET
from onsil.tokenizer.templates import ONSIL
from onsil.tokenizer.train import END, PAD, train
from onsil.tokenizer.turns import Message, load_template, prompt_ids, render
from onsil.training import supervised
from onsil.training.objectives import token_loss
from onsil.training.supervised import (
    ADAPTER,
    Tuning,
    adopt_chats,
    chat_batch,
    chats_in,
    checked,
    finetune_chat,
    learner,
    lessons_of,
    load_chat,
    share_that_stops,
)

CAPITALS = [
    ("한국", "서울"),
    ("일본", "도쿄"),
    ("중국", "베이징"),
    ("태국", "방콕"),
    ("영국", "런던"),
]
TUNING = Tuning(epochs=60, rate=3e-3, batch_tokens=128)


@stage(version=1)
def word_list(*, out: Path, run: Run) -> dict:
    text = [f"{a}의 수도는 어디인가요? {b}입니다. user assistant" for a, b in CAPITALS] * 3
    train(text, 400).save(str(out / "tokenizer.json"))
    return {}


@stage(version=1)
def fresh(*, context: int, out: Path, run: Run) -> dict:
    save(Transformer(decoder_shape(400, 64, 2, context)).initialise(0), out, {})
    return {}


def chats(ws: Workspace, rows: list[dict], folder: Path) -> Artifact:
    file = folder / "mine.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
    return adopt_chats(
        ws, file=FileRef("mine.jsonl", file_digest(file)), run={"source": folder, "say": None}
    )


def capital_rows(split: str = "train") -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"{country}의 수도는 어디인가요?"},
                {"role": "assistant", "content": f"{city}입니다."},
            ],
            "split": split,
        }
        for country, city in CAPITALS
    ]


class Bench:
    """A workspace with a decoder, a tokenizer and five chats, learnt and asked."""

    def __init__(self, root: Path, context: int = 128):
        self.ws = Workspace(root / "ws")
        self.words, self.decoder = word_list(self.ws), fresh(self.ws, context=context)
        self.chats = chats(self.ws, [*capital_rows(), *capital_rows("heldout")], root)

    def tune(self, tuning: Tuning = TUNING, **others: Any) -> Artifact:
        given: dict[str, Any] = {
            "decoder": self.decoder, "tokenizer": self.words, "chats": self.chats,
            "template": ONSIL, "tuning": tuning,
        }  # fmt: skip
        return finetune_chat(self.ws, **(given | others))


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def tuned(bench) -> Artifact:
    return bench.tune()


def weights_digest(model: torch.nn.Module) -> str:
    known = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        known.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return known.hexdigest()


# -- it learns to answer and to stop ------------------------------------------------------------


def test_it_answers_what_it_was_taught_and_stops(tuned):
    model = load_chat(tuned.path)
    for country, city in CAPITALS:
        assert (
            model.answer([Message("user", f"{country}의 수도는 어디인가요?")]) == f"{city}입니다."
        )
    notes = json.loads((tuned / "notes.json").read_text())
    assert notes["stops"] == 1.0 and notes["warnings"] == []
    assert notes["heldout_loss"][1] < 0.1 < notes["heldout_loss"][0]


def test_who_serves_asks_in_the_ids_of_training(bench, tuned):
    """The template comes from the folder, and gives what training rendered."""
    model = load_chat(tuned.path)
    assert load_template(tuned.path) == model.template == ONSIL
    words = load_tokenizer(bench.words.path)
    for _, turns in chats_in(bench.chats, "train"):
        chat = render(words, ONSIL, turns)
        asked = prompt_ids(model.tokenizer, model.template, turns[:1])
        assert chat.ids[: len(asked)] == asked and chat.said[len(asked)]


def test_other_tools_are_told_where_it_ends(tuned):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tuned.path)
    assert theirs.generation_config.eos_token_id == END != PAD
    model = load_chat(tuned.path)
    asked = prompt_ids(model.tokenizer, ONSIL, [Message("user", "영국의 수도는 어디인가요?")])
    said = theirs.generate(torch.tensor([asked]), max_new_tokens=20, do_sample=False)[0]
    assert said[-1] == END
    told = model.tokenizer.decode(said[len(asked) : -1].tolist(), skip_special_tokens=False)
    assert told == "런던입니다."


def test_one_that_does_not_stop_is_told_of(bench):
    said: list[str] = []
    tuning = replace(TUNING, epochs=1, rate=1e-5)
    made = bench.tune(tuning, run={"say": said.append})
    notes = json.loads((made / "notes.json").read_text())
    assert notes["stops"] == 0.0 and "ended by themselves" in " ".join(notes["warnings"])
    assert any("ended by themselves" in line for line in said)


def test_the_probe_counts_the_stop_and_not_the_limit(tuned, bench):
    model = load_chat(tuned.path)
    asked = [prompt_ids(model.tokenizer, ONSIL, [Message("user", f"{a}의 수도는 어디인가요?")])
             for a, _ in CAPITALS]  # fmt: skip
    answer = len(model.tokenizer.encode("서울입니다.").ids)
    assert share_that_stops(model.model, asked[:1], END, answer + 1) == 1.0
    assert share_that_stops(model.model, asked[:1], END, answer) == 0.0
    assert share_that_stops(model.model, asked, PAD, 60) == 0.0
    assert share_that_stops(model.model, [tuple(range(5, 133))], END, 60) is None


# -- three ways to learn ------------------------------------------------------------------------


def test_an_adapter_is_folded_in_and_kept_beside(bench):
    made = bench.tune(replace(TUNING, method="lora", rank=8, rate=1e-2))
    model = load_chat(made.path)
    assert model.answer([Message("user", "일본의 수도는 어디인가요?")]) == "도쿄입니다."
    laid = load(bench.decoder.path)[0].eval()
    load_adapter(laid, made / ADAPTER)
    ids = torch.tensor([prompt_ids(model.tokenizer, ONSIL, [Message("user", "태국")])])
    with torch.no_grad():
        assert (laid(ids) - model.model(ids)).abs().max() < 1e-4
    notes = json.loads((made / "notes.json").read_text())
    # Seven matrices a layer (q k v o gate up down), each r · (in + out), with 4 heads of 16.
    layers = [m for n, m in load(bench.decoder.path)[0].named_modules() if "blocks" in n]
    linear = [m for m in layers if isinstance(m, torch.nn.Linear)]
    assert notes["trained_parameters"] == sum(8 * (m.in_features + m.out_features) for m in linear)


@pytest.mark.parametrize("rank", [2, 8])
def test_alpha_is_twice_the_rank(bench, rank):
    """So α/r is 2 at every rank, as PEFT will read it, and a step moves the weights as far."""
    made = bench.tune(replace(TUNING, method="lora", rank=rank, epochs=1))
    config = json.loads((made / ADAPTER / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (rank, 2 * rank)


def test_a_prompt_learns_alone(bench):
    made = bench.tune(replace(TUNING, method="prompt", rank=4, rate=1e-1))
    notes = json.loads((made / "notes.json").read_text())
    assert notes["trained_parameters"] == 4 * 64
    assert notes["heldout_loss"][1] < notes["heldout_loss"][0]
    assert weights_digest(load(made.path)[0]) == weights_digest(load(bench.decoder.path)[0])
    assert (made / PROMPT).is_dir()


@torch.no_grad()
@pytest.mark.parametrize("method", ["full", "lora", "qlora", "prompt"])
def test_a_learnt_prompt_is_not_left_behind_by_tuning_on(bench, method):
    prompted = bench.tune(replace(TUNING, method="prompt", rank=4, epochs=1))
    with pytest.raises(OnsilError, match="has a learnt prompt") as refused:
        bench.tune(replace(TUNING, method=method, epochs=1), decoder=prompted)
    assert "go on from there" in refused.value.en[2]


def test_a_prompted_decoder_is_the_prompt_read_before_each_document(bench):
    model = load(bench.decoder.path)[0].eval()
    learnt = learner(model, Tuning(method="prompt", rank=3))
    reader = learnt.reader
    assert reader.shape.context == 128 - 3  # the rows take their places
    documents = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    row = torch.tensor([[t for d in documents for t in d]])
    packed = reader.logits(reader.encode(row, lengths=[4, 2, 3]))[0].split([4, 2, 3])
    for ids, logits in zip(documents, packed, strict=True):
        alone = reader.prompt(model, torch.tensor([ids]))[0]
        assert (alone - logits).abs().max() < 1e-5
        cache = reader.new_cache()
        steps = [reader.logits(reader.encode(torch.tensor([[t]]), cache=cache)) for t in ids]
        assert (torch.cat(steps, 1)[0] - alone).abs().max() < 1e-5


# -- documents end to end -----------------------------------------------------------------------


def parts_of(bench: Bench):
    words = load_tokenizer(bench.words.path)
    return lessons_of(list(chats_in(bench.chats, "train")), words, ONSIL, 128).parts


@torch.no_grad()
def test_packed_chats_are_the_chats_alone(bench):
    model, parts = load(bench.decoder.path)[0].eval(), parts_of(bench)
    batch = chat_batch(parts)
    packed = model(batch.ids, lengths=batch.lengths)[0].split(batch.lengths)
    for part, logits in zip(parts, packed, strict=True):
        alone = model(torch.tensor([part.ids[:-1]]))[0]
        assert (alone - logits).abs().max() < 1e-5
    whole, count = token_loss(model, batch)
    each = [token_loss(model, chat_batch([part])) for part in parts]
    assert abs(float(whole) - sum(float(t) for t, _ in each)) < 1e-3
    assert count == sum(n for _, n in each) == sum(sum(part.said) for part in parts)


@torch.no_grad()
def test_what_a_neighbour_says_changes_no_bit(bench):
    model, parts = load(bench.decoder.path)[0].eval(), parts_of(bench)
    first, second = chat_batch(parts[:2]), chat_batch(parts[:2])
    n = first.lengths[0]
    second.ids[0, :n] = torch.arange(5, 5 + n)
    told = [model(b.ids, lengths=b.lengths)[0, n:] for b in (first, second)]
    assert torch.equal(*told)
    open_to_all = [model(b.ids)[0, n:] for b in (first, second)]
    assert not torch.equal(*open_to_all)


def test_targets_are_the_next_tokens_of_the_answer(bench):
    batch = chat_batch(parts_of(bench))
    spots = (batch.targets[0] != NO_TARGET).nonzero()[:, 0]
    ends = batch.targets[0][spots] == END
    assert int(ends.sum()) == len(CAPITALS)
    for spot in spots[~ends]:
        assert batch.targets[0, spot] == batch.ids[0, spot + 1]


# -- counted and refused ------------------------------------------------------------------------


def chat_of(*contents: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message(roles[i % 2], content) for i, content in enumerate(contents)]


def test_every_token_that_is_not_trained_on_is_counted(bench):
    words = load_tokenizer(bench.words.path)
    told = [(1, chat_of("가" * 400, "나")), (2, chat_of("다")), (3, chat_of("라", "마" * 300))]
    lessons = lessons_of(told, words, ONSIL, 100)
    whole = [render(words, ONSIL, turns) for _, turns in told]
    assert lessons.targets == sum(whole[0].said) + sum(whole[2].said)
    assert lessons.silent == [2] and lessons.cut == 2
    assert lessons.unread == len(whole[0].ids) - 101
    warned = " ".join(supervised.warnings(lessons, 1.0, 9))
    assert f"{lessons.unread:,} tokens of questions" in warned
    assert "1 chats have nothing to learn: 2" in warned


@pytest.mark.parametrize(
    ("turns", "share", "why"),
    [(chat_of("가" * 2000, ""), "0.02%", "forgets"), (chat_of("", "가" * 2000), "99.", "talk")],
)
def test_next_to_no_and_next_to_all_targets_are_refused(bench, turns, share, why):
    words = load_tokenizer(bench.words.path)
    with pytest.raises(OnsilError, match=rf"{share}.*chats 7") as raised:
        checked(lessons_of([(7, turns)], words, ONSIL, 100_000))
    assert why in raised.value.en[1] and share in raised.value.ko[0]
    assert "대화 7" in raised.value.ko[0]


def test_one_answer_among_mute_chats_is_refused(bench):
    words = load_tokenizer(bench.words.path)
    told = [(n, chat_of("한국" * 30)) for n in range(1, 200)] + [(200, chat_of("한국", "서울"))]
    lessons = lessons_of(told, words, ONSIL, 128)
    mute = sum(len(render(words, ONSIL, turns).ids) for _, turns in told[:-1])
    assert lessons.counts()["tokens_without_targets"] == mute
    with pytest.raises(OnsilError, match=r"0\.\d\d% of the tokens .*chats 1, 2, 3"):
        checked(lessons)
    assert checked(lessons_of(told[196:], words, ONSIL, 128)).silent == [197, 198, 199]


def test_an_answer_to_a_question_nobody_can_read_is_refused(bench):
    words = load_tokenizer(bench.words.path)
    with pytest.raises(OnsilError, match="chats 1 "):
        checked(lessons_of([(1, chat_of("가" * 2000, "나"))], words, ONSIL, 100))
    checked(lessons_of([(1, chat_of("가" * 20, "나"))], words, ONSIL, 100))


def test_mute_chats_do_not_hide_that_all_else_is_said(bench):
    words = load_tokenizer(bench.words.path)
    told = [(1, chat_of("", "가" * 2000)), (2, chat_of("가" * 300))]
    with pytest.raises(OnsilError, match=r"99\..*chats 1 "):
        checked(lessons_of(told, words, ONSIL, 100_000))


def test_nothing_to_learn_is_refused(bench, tmp_path):
    mute = chats(bench.ws, [{"messages": [{"role": "user", "content": "a"}]}] * 3, tmp_path)
    with pytest.raises(OnsilError, match=r"0\.00% of the tokens"):
        bench.tune(chats=mute)


def test_a_step_that_fails_names_its_chats(bench, tmp_path, monkeypatch):
    ws = Workspace(tmp_path / "ws")
    monkeypatch.setattr(supervised, "token_loss", lambda model, batch: (torch.tensor(0.0), 0))
    with pytest.raises(OnsilError, match=r"chats\.jsonl:\d"):
        finetune_chat(
            ws, decoder=bench.decoder, tokenizer=bench.words, chats=bench.chats,
            template=ONSIL, tuning=TUNING,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "Line 2"),
        ('{"messages": []}', "Line 2"),
        ('{"messages": [{"role": "user"}]}', "content"),
        ('{"messages": [{"role": "user", "content": 3}]}', "texts"),
        ('{"messages": [{"role": "user", "content": "a"}], "split": "dev"}', "'dev'"),
    ],
)
def test_a_line_that_is_no_chat_is_named(bench, tmp_path, line, named):
    (tmp_path / "f").write_text(json.dumps(capital_rows()[0]) + "\n" + line + "\n")
    with pytest.raises(OnsilError, match=named):
        file = FileRef("f", file_digest(tmp_path / "f"))
        adopt_chats(bench.ws, file=file, run={"source": tmp_path})


def test_a_role_the_template_has_not_is_named_with_its_line(bench, tmp_path):
    row = {"messages": [{"role": "human", "content": "a"}], "split": "train"}
    odd = chats(bench.ws, [*capital_rows(), row], tmp_path)
    with pytest.raises(OnsilError, match=r"chats\.jsonl:6: Turn 1 is of role 'human'"):
        bench.tune(chats=odd)


def test_one_chat_in_twenty_is_held_out_where_nothing_is_said(bench, tmp_path):
    rows = [{"messages": [{"role": "user", "content": str(n)}]} for n in range(2000)]
    made = chats(bench.ws, rows, tmp_path)
    held = [turns[0].content for _, turns in chats_in(made, "heldout")]
    assert 60 < len(held) < 140
    again = chats(bench.ws, rows[::-1], tmp_path)
    assert sorted(held) == sorted(turns[0].content for _, turns in chats_in(again, "heldout"))


# -- the same bits ------------------------------------------------------------------------------


class Killed(BaseException):
    """As a process is: nothing may catch it."""


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "prompt"])
def test_killed_and_resumed_is_never_killed(tmp_path, monkeypatch, method):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    tuning = replace(TUNING, epochs=12, method=method)
    whole = Bench(tmp_path / "whole").tune(tuning)
    bench, real, calls = Bench(tmp_path / "parts"), supervised.token_loss, [0]

    def dying(model, batch):
        calls[0] += torch.is_grad_enabled()
        if calls[0] == 9:
            raise Killed
        return real(model, batch)

    monkeypatch.setattr(supervised, "token_loss", dying)
    with pytest.raises(Killed):
        bench.tune(tuning)
    calls[0] = 100
    made = bench.tune(tuning)
    steps = json.loads((made / "notes.json").read_text())["steps"]
    assert 100 < calls[0] < 100 + steps  # it went on from where it was
    assert made.digest == whole.digest


# -- the page -----------------------------------------------------------------------------------


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs_as_it_says("finetuning.md")
