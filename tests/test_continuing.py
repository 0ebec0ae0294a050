"""Going on from a base: new rows from old ones, old bits untouched, replay, and a killed run."""

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import DECODERS, make
from planted import PLANTED

from onsil.documents.types import Block, Document, write_documents
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, Workspace, stage
from onsil.models.adapters import new_prompt, save_prompt
from onsil.models.checkpoint import load, save
from onsil.models.new_rows import tables_of, with_new_rows
from onsil.models.prompted import PROMPT
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.expansion import expand_tokenizer, load_expansion
from onsil.tokenizer.train import train
from onsil.training import continuing
from onsil.training.continuing import (
    SENTINELS,
    Continuation,
    continue_pretraining,
    continued,
    denoising_batch,
    know_marks,
    longest_piece,
    mixture,
    only_rows,
)
from onsil.training.loop import Step
from onsil.training.objectives import NO_TARGET, causal_batch, token_loss
from onsil.training.samplers import TAGS

# Heads that are the embedding, that are not, and that have a bias (gptj, phi).
FAMILIES = ("llama", "llama tied", "gpt2", "gptj", "phi", "gemma2", "opt", "gpt_neox", "bloom")
SPELLED = {97: [5], 98: [3, 4, 4], 99: [96, 0], 100: [7, 8]}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Transformer:
    folder = tmp_path_factory.mktemp("family")
    make(DECODERS[request.param]).save_pretrained(folder)
    return load(folder)[0]


def test_what_is_widened_leaves_the_model_alone(family):
    """Not one weight is shared: to train the one would train the other."""
    wider = with_new_rows(family, SPELLED)
    before = [p.detach().clone() for p in family.parameters()]
    with torch.no_grad():
        for parameter in wider.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(p, old) for p, old in zip(family.parameters(), before, strict=True))


@torch.no_grad()
def test_a_new_row_is_the_mean_of_what_spelled_it(family):
    wider = with_new_rows(family, SPELLED)
    old, new = tables_of(family), tables_of(wider)
    assert old.keys() == new.keys() and "embedding.weight" in new
    assert ("head.weight" in new) == (not family.shape.tied)
    for name, table in new.items():
        assert len(table) == 101 and torch.equal(table[:97], old[name])
        for row, ids in SPELLED.items():
            wanted = torch.stack([old[name][i] for i in ids]).mean(0)
            assert torch.allclose(table[row], wanted, atol=1e-7)


@torch.no_grad()
def test_what_is_said_about_old_tokens_stays(family):
    wider = with_new_rows(family, SPELLED)
    ids = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    assert torch.equal(wider.encode(ids), family.encode(ids))
    # The rows are the same bits; a product with more columns may be summed in another order.
    old, new = family(ids), wider(ids)[..., :97]
    assert (old - new).abs().max() <= 1e-6 * max(1.0, float(old.abs().max()))


@torch.no_grad()
def test_it_is_the_published_family_on_disk(family, tmp_path):
    import transformers

    wider = with_new_rows(family, SPELLED)
    save(wider, tmp_path, {})
    again = load(tmp_path)[0]
    assert again.shape == wider.shape and again.origin.family == family.origin.family
    for name, value in wider.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[97, 5, 98, 99, 100, 6]])
    assert torch.allclose(theirs(ids).logits, again(ids), atol=1e-4)


@torch.no_grad()
def test_rows_of_a_padded_vocabulary_are_taken_and_the_model_given_stays():
    model = Transformer(decoder_shape(64, 32, 1, 32)).initialise(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wider = with_new_rows(model, {60: [1, 2]})
    assert wider.shape == model.shape and wider is not model
    table = wider.state_dict()["embedding.weight"]
    assert torch.equal(table[60], before["embedding.weight"][[1, 2]].mean(0))
    assert all(torch.equal(model.state_dict()[n], v) for n, v in before.items())


# ── steps ───────────────────────────────────────────────────────────────────────────────────────

HOW = Continuation(epochs=2, rate=1e-2, batch_tokens=64, context=32, new_rows=0.5)


@pytest.mark.parametrize("name", ["llama", "llama tied", "gptj"])
def test_first_only_new_rows_learn_and_every_other_bit_stays(name, tmp_path):
    make(DECODERS[name]).save_pretrained(tmp_path)
    model = with_new_rows(load(tmp_path)[0], SPELLED)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    draw = random.Random(0)
    batch = causal_batch([[*SPELLED, *(draw.randrange(3, 101) for _ in range(20))]])
    asked = []

    def loss_of(k: int):
        asked.append(k)
        return token_loss(model, batch)

    steps = continued(model, loss_of, 12, SPELLED, HOW, tmp_path, **PLANTED)
    for _ in range(6):
        next(steps)
    after = model.state_dict()
    tables = tables_of(model)
    for key, value in before.items():
        if key in tables or key == "head.weight":
            assert torch.equal(after[key][:97], value[:97]), key
            assert (after[key][97:] != value[97:]).float().mean() > 0.9, key
        else:
            assert torch.equal(after[key], value), key
    assert [step.number for step in steps] == [7, 8, 9, 10, 11, 12]
    assert asked == list(range(12))
    assert not torch.equal(after["embedding.weight"][:97], before["embedding.weight"][:97])
    assert all(p.requires_grad for p in model.parameters())


def test_a_gradient_that_is_no_number_stays_out_of_new_rows():
    model = Transformer(decoder_shape(16, 32, 1, 32)).initialise(0)
    with only_rows(model, [14, 15]) as tables:
        weight = tables["embedding.weight"]
        (weight[:2].sum() * float("inf") * 0 + weight.sum()).backward()
        assert weight.grad is not None
        assert torch.equal(weight.grad[:, 0], (torch.arange(16) >= 14).float())
        weight.grad = None
    weight.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))  # afterwards all rows learn again


def test_which_pieces_a_step_has_follows_from_seed_and_step():
    draw = random.Random(0)
    domain = [draw.randint(5, 30) for _ in range(200)]
    general = [draw.randint(5, 30) for _ in range(40)]
    how = Continuation(epochs=2, batch_tokens=400, replayed=0.25)
    steps = mixture(domain, general, how)
    assert steps == mixture(domain, general, how) != mixture(domain, general, replace(how, seed=1))
    read = Counter(i for new, _ in steps for i in new)
    assert read == dict.fromkeys(range(200), 2)  # twice whole, whatever is replayed
    again = Counter(i for _, old in steps for i in old)
    assert set(again) == set(range(40)) and max(again.values()) - min(again.values()) <= 2
    new = sum(domain[i] for part, _ in steps for i in part)
    old = sum(general[i] for _, part in steps for i in part)
    assert 0.22 < old / (old + new) < 0.28
    assert all(old == [] for _, old in mixture(domain, [], how))
    assert all(old == [] for _, old in mixture(domain, general, replace(how, replayed=0.0)))
    assert all(old for _, old in mixture(domain, [30], how))  # one piece, again and again


@pytest.mark.parametrize("seed", [81, *range(100, 104)])
def test_the_domain_is_read_whole_however_the_replay_falls_into_steps(seed):
    """Another order of the general pieces may make fewer steps than the first."""
    draw = random.Random(seed)
    general = [draw.randint(40, 512) for _ in range(draw.choice([8, 12, 20, 30, 40]))]
    domain = [512] * 6_000
    how = Continuation(epochs=1 + (seed > 100), batch_tokens=4096, seed=1)
    steps = mixture(domain, general, how)
    read = Counter(i for new, _ in steps for i in new)
    assert read == dict.fromkeys(range(6_000), how.epochs)
    assert all(old for _, old in steps)


# ── denoising ───────────────────────────────────────────────────────────────────────────────────


def test_denoising_has_ul2r_s_shares_and_loses_nothing():
    words = train(["a b c d e f"], 300)
    marks, added = know_marks(words)
    assert len(added) == len(TAGS) + len(SENTINELS)
    assert know_marks(words) == (marks, {})
    assert all(max(ids) < min(added) for ids in added.values())
    pieces = [list(range(10, 10 + longest_piece(64, "ul2r"))) for _ in range(2000)]
    batch = denoising_batch(pieces, marks, "0-0")
    assert batch.prefixes is None and batch.targets is not None
    modes, names = Counter(), {i: mode for mode, i in marks.tags.items()}
    sentinels = set(marks.sentinels)
    rows = zip(
        batch.ids[0].split(batch.lengths), batch.targets[0].split(batch.lengths), strict=True
    )
    for (ids, targets), piece in zip(rows, pieces, strict=True):
        modes[names[int(ids[0])]] += 1
        whole, asked = [*ids.tolist(), int(targets[-1])], targets.tolist()
        assert sorted(x for x in whole if 10 <= x < 60) == piece and len(ids) <= 64
        # Everything is asked for but a mark where it is read: each but the last stands there once.
        left_out = [x for x, y in zip(whole[1:], asked, strict=True) if y == NO_TARGET]
        assert [y for y in asked if y != NO_TARGET and y in sentinels][:-1] == left_out
        assert all(y in (x, NO_TARGET) for x, y in zip(whole[1:], asked, strict=True))
    # 2,000 draws: three standard deviations of the shares are under 3.4 points.
    for mode, share in {"S": 0.5, "R": 0.25, "X": 0.25}.items():
        assert abs(modes[mode] / 2000 - share) < 0.034
    same = denoising_batch(pieces, marks, "0-0")
    assert torch.equal(same.ids, batch.ids)
    assert not torch.equal(denoising_batch(pieces, marks, "0-1").ids[0, :500], batch.ids[0, :500])


# ── the stage ───────────────────────────────────────────────────────────────────────────────────

GENERAL = [f"the {a} sat near the {b} and saw a {c}" for a in ("cat", "dog", "owl", "hen")
           for b in ("door", "river", "old house") for c in ("mat", "bird")]  # fmt: skip
DOMAIN = [
    f"제{i}조 국민은 {what}의 자유를 가진다."
    for i in range(1, 9)
    for what in ("신체", "양심", "언론")
]


@stage(version=1)
def corpus_of(*, texts: list[str], out: Path, run: Run) -> dict:
    documents = [
        Document(f"{i}.txt", str(i), "text", "", (Block("paragraph", text),))
        for i, text in enumerate(texts)
    ]
    write_documents(documents, out / "documents.jsonl")
    split = {d.path: "train" if i % 4 else "heldout" for i, d in enumerate(documents)}
    (out / "split.json").write_text(json.dumps(split))
    return {}


@stage(version=1)
def english_base(*, own: bool, out: Path, run: Run) -> dict:
    words = train(GENERAL, 300)
    words.save(str(out / "tokenizer.json"))
    folder = out / "decoder" if own else out
    folder.mkdir(exist_ok=True)
    save(Transformer(decoder_shape(words.get_vocab_size(), 32, 1, 64)).initialise(0), folder, {})
    return {}


@stage(version=1)
def with_prompt(*, base: Artifact, out: Path, run: Run) -> dict:
    shutil.copytree(base.path, out, dirs_exist_ok=True)
    model = load(base / "decoder")[0]
    (out / "decoder" / PROMPT).mkdir()
    save_prompt(new_prompt(model, 2, 0), model, out / "decoder" / PROMPT, "base", {})
    return {}


class Bench:
    """A base in English, a corpus in Korean, and a tokenizer grown for it."""

    def __init__(self, root: Path):
        self.ws = Workspace(root)
        self.base = english_base(self.ws, own=True)
        self.domain = corpus_of(self.ws, texts=DOMAIN)
        self.general = corpus_of(self.ws, texts=GENERAL)
        self.words = expand_tokenizer(self.ws, base=self.base, corpus=self.domain, many=40)

    def go_on(self, how: Continuation = HOW, **others: Any) -> Artifact:
        given: dict[str, Any] = {
            "model": self.base, "tokenizer": self.words, "corpus": self.domain,
            "replay": self.general, "how": how,
        }  # fmt: skip
        run = {"say": others.pop("say", None)}
        return continue_pretraining(self.ws, **(given | others), run=run)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def notes_of(made: Artifact) -> dict:
    return json.loads((made / "notes.json").read_text())


def test_the_notes_say_before_and_after_in_bytes(bench):
    made = bench.go_on()
    notes = notes_of(made)
    for name in ("domain", "general"):
        before, after = notes["bits_per_byte"][name]
        assert after < before < 12, name  # the base knows nothing yet
    assert notes["new_rows"] == len(load_expansion(bench.words)) == 40
    assert notes["steps"]["new_rows"] == notes["steps"]["everything"] > 2
    general, domain = notes["tokens"]["general"], notes["tokens"]["domain"]
    assert 0.15 < general / (general + domain) < 0.35
    model, words = load(made.path)[0], load_tokenizer(made.path)
    assert model.shape.vocabulary == words.get_vocab_size()
    assert (made / "tokenizer.json").read_bytes() == (bench.words / "tokenizer.json").read_bytes()


def test_before_is_the_base_with_its_own_words(bench):
    """One step at a rate of nothing: with the base's words the model is what it was."""
    still = replace(HOW, rate=0.0)
    own = notes_of(bench.go_on(still, tokenizer=bench.base))["bits_per_byte"]
    grown = notes_of(bench.go_on(still))["bits_per_byte"]
    assert own["domain"][0] == own["domain"][1] == grown["domain"][0] != grown["domain"][1]


def test_without_replay_it_is_said_so(bench):
    told: list[str] = []
    made = bench.go_on(replay=None, say=told.append)
    assert list(notes_of(made)["bits_per_byte"]) == ["domain"]
    assert any("no general text was replayed" in text for text in told)
    made = bench.go_on(replace(HOW, replayed=0.0))
    notes = notes_of(made)
    assert notes["tokens"]["general"] == 0 and notes["bits_per_byte"]["general"][1] is not None
    assert any("no general text" in text for text in notes["warnings"])


def test_a_killed_run_continues_to_the_same_bits(tmp_path, monkeypatch):
    how = replace(HOW, batch_tokens=32)
    wanted = Bench(tmp_path / "a").go_on(how).digest
    for kill_at in (0.3, 0.7):  # among the steps of new rows; among the others
        bench = Bench(tmp_path / str(kill_at))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(continuing, "report_progress", stopping_at(kill_at))
            bench.go_on(how)
        assert list((tmp_path / str(kill_at) / "work").glob("*/scratch/*/step*.safetensors"))
        assert bench.go_on(how).digest == wanted


def stopping_at(share: float) -> Callable[..., Iterator[Step]]:
    """Passes steps on up to a share of them, then stops as a kill would between two."""

    def stopping(steps: Iterator[Step], total: int, *rest: Any) -> Iterator[Step]:
        for step in steps:
            if step.number > share * total:
                raise KeyboardInterrupt
            yield step

    return stopping


def test_rows_are_made_once(bench):
    """Going on from what was made with the same words keeps what its rows have learnt."""
    made = bench.go_on()
    still = replace(HOW, rate=0.0)
    again = bench.go_on(still, model=made)
    assert notes_of(again)["new_rows"] == 0
    first, last = load(made.path)[0].state_dict(), load(again.path)[0].state_dict()
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_a_model_without_a_tokenizer_of_its_own_gets_rows_behind_its_last(bench):
    alone = english_base(bench.ws, own=True)
    made = bench.go_on(model=Artifact(alone.digest, alone / "decoder"))
    assert notes_of(made)["new_rows"] == 40


def test_words_of_another_model_are_refused(bench):
    with pytest.raises(OnsilError, match="not the model's, nor grown from it"):
        bench.go_on(model=bench.go_on(), tokenizer=bench.base)


def test_a_learnt_prompt_is_not_left_behind(bench):
    prompted = with_prompt(bench.ws, base=bench.base)
    with pytest.raises(OnsilError, match="has a learnt prompt"):
        bench.go_on(model=prompted)


def test_ul2r_brings_its_marks_and_goes_on_twice(bench):
    how = replace(HOW, objective="ul2r", epochs=1)
    made = bench.go_on(how)
    words = load_tokenizer(made.path)
    assert notes_of(made)["new_rows"] == 40 + len(TAGS) + len(SENTINELS)
    assert load(made.path)[0].shape.vocabulary == words.get_vocab_size()
    assert words.encode("[S2S]").ids != [words.token_to_id("[S2S]")]  # text is text
    assert notes_of(bench.go_on(how, model=made, tokenizer=made))["new_rows"] == 0


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    page = Path(__file__).resolve().parents[1] / "docs" / "continuing.md"
    monkeypatch.chdir(tmp_path)
    known: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, known)
    assert known["after"] < known["before"]
