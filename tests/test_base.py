"""Starting from a base: shipped in int8, adopted whole or refused, and worth starting from."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from family_cases import DECODERS, ENCODERS, PAIRS, make
from test_grow import OFFICE, PLAN, onsil

from onsil.corpus import curate
from onsil.documents import read
from onsil.errors import OnsilError
from onsil.instruction import write_lessons
from onsil.lineage import Artifact, Workspace, file_lineage
from onsil.models.checkpoint import load
from onsil.models.weights import packed, unpacked
from onsil.tokenizer import load_tokenizer, train_tokenizer
from onsil.tokenizer.template import render_pair
from onsil.tokenizer.train import specials_of
from onsil.training.base import adopt, shrink
from onsil.training.finetuning import instruct
from onsil.training.loop import train
from onsil.training.plan import adopt_plan, load_plan, make_plan
from onsil.training.pretraining import pretrain


@pytest.fixture(scope="module")
def ws(tmp_path_factory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("base") / "ws")


@pytest.fixture(scope="module")
def grown(ws) -> dict[str, Artifact]:
    corpus = curate(ws, documents=read(ws, OFFICE))
    words = train_tokenizer(ws, corpus=corpus)
    plan = adopt_plan(ws, text=json.dumps(PLAN))
    made = {"corpus": corpus, "tokenizer": words, "plan": plan}
    for kind in ("encoder", "decoder"):
        made[kind] = pretrain(ws, corpus=corpus, tokenizer=words, plan=plan, kind=kind)
    return made


@pytest.fixture(scope="module")
def base(ws, grown, tmp_path_factory) -> Path:
    """A base folder as it is shipped: int8 weights and the tokenizer."""
    folder = tmp_path_factory.mktemp("shipped")
    shutil.copyfile(grown["tokenizer"] / "tokenizer.json", folder / "tokenizer.json")
    for kind in ("encoder", "decoder"):
        shutil.copytree(shrink(ws, model=grown[kind]).path, folder / kind)
    return folder


def test_int8_is_within_half_a_step_of_every_weight(grown):
    state = load(grown["encoder"].path)[0].state_dict()
    back = unpacked(packed(state))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        if tensor.dim() == 2:
            step = tensor.abs().amax(1, keepdim=True) / 127
            assert ((back[name] - tensor).abs() <= step / 2 + 1e-7).all(), name
        else:
            assert torch.equal(back[name], tensor)


def test_the_shipped_files_are_a_quarter_and_read_the_same_way(grown, base):
    small, large = (f / "model.safetensors" for f in (base / "encoder", grown["encoder"].path))
    assert small.stat().st_size < 0.4 * large.stat().st_size
    ours, theirs = (load(f)[0] for f in (base / "encoder", grown["encoder"].path))
    ids = torch.arange(5, 40)[None]
    near = torch.nn.functional.cosine_similarity(ours.encode(ids), theirs.encode(ids), dim=-1)
    assert near.min() > 0.999


def test_going_on_from_a_base_starts_where_the_base_ended(ws, grown, base):
    """One pass from the base is far below one pass from noise."""
    plan = adopt_plan(ws, text=json.dumps(PLAN | {"decoder_epochs": 1}))
    parts = {"corpus": grown["corpus"], "tokenizer": grown["tokenizer"], "plan": plan}
    losses = {}
    for name, start in (("noise", None), ("base", adopt(ws, base))):
        made = pretrain(ws, **parts, kind="decoder", base=start)
        losses[name] = json.loads((made / "curve.json").read_text())[0][1]
    assert losses["base"] < 0.9 * losses["noise"]


def test_a_plan_from_a_base_reads_a_text_four_times_at_most(ws, grown, base):
    lessons = write_lessons(ws, corpus=grown["corpus"])
    parts = {"corpus": grown["corpus"], "tokenizer": grown["tokenizer"], "lessons": lessons}
    noise = load_plan(make_plan(ws, **parts, minutes=30.0))
    start = load_plan(make_plan(ws, **parts, minutes=30.0, base=adopt(ws, base)))
    assert (noise.decoder_epochs, noise.encoder_epochs) == (12, 40)
    assert (start.decoder_epochs, start.encoder_epochs) == (4, 1)


def test_a_base_of_two_sizes_is_timed_in_both(ws, grown, base, tmp_path, monkeypatch):
    """A deeper decoder is timed as it is, and the encoder's size by a decoder of that."""
    parts = {"corpus": grown["corpus"], "tokenizer": grown["tokenizer"]}
    plan = adopt_plan(ws, text=json.dumps(PLAN | {"depth": 3, "decoder_epochs": 1}))
    deep = shrink(ws, model=pretrain(ws, **parts, plan=plan, kind="decoder"))
    shutil.copytree(base, tmp_path / "two", ignore=shutil.ignore_patterns("decoder"))
    shutil.copytree(deep.path, tmp_path / "two" / "decoder")
    lessons, asked = write_lessons(ws, corpus=grown["corpus"]), []

    def measured(plan, vocabulary, text_tokens, own=None):
        asked.append(own.depth if own else None)
        return 1_000 if own else 4_000

    monkeypatch.setattr("onsil.training.plan.measure_speed", measured)
    for folder, timed in ((base, [2]), (tmp_path / "two", [3, None])):
        asked.clear()
        start = adopt(ws, folder)
        made = load_plan(make_plan(ws, **parts, lessons=lessons, minutes=7.0, base=start))
        assert (asked, made.tokens_per_second) == (timed, 1_000)


def test_what_goes_on_from_a_base_steps_as_its_own_width_wants(ws, grown, base, monkeypatch):
    """A plan for 256 asks half of what a part of 64 takes."""
    rates = []

    def noted(parameters, loss_of, steps, rate, *rest, **more):
        rates.append(rate)
        return train(parameters, loss_of, steps, rate, *rest, **more)

    for room in ("pretraining", "finetuning"):
        monkeypatch.setattr(f"onsil.training.{room}.train", noted)
    wide = {"width": 256, "learning_rate": 0.001, "decoder_epochs": 1, "generator_lessons": 20}
    plan = adopt_plan(ws, text=json.dumps(PLAN | wide | {"encoder_epochs": 1}))
    parts = {"corpus": grown["corpus"], "tokenizer": grown["tokenizer"], "plan": plan}
    start = adopt(ws, base)
    made = [pretrain(ws, **parts, kind=kind, base=start) for kind in ("encoder", "decoder")]
    lessons, words = write_lessons(ws, corpus=grown["corpus"]), grown["tokenizer"]
    instruct(ws, decoder=made[1], tokenizer=words, lessons=lessons, plan=plan)
    assert rates == pytest.approx([0.002 / 3, 0.002, 0.001])


def test_grow_from_a_base_answers_and_names_it_in_its_lineage(base, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(PLAN | {"decoder_epochs": 1, "encoder_epochs": 1}))
    home = tmp_path / "ws"
    command = ("grow", str(OFFICE), "--name", "desk", "--plan", str(plan), "--base", str(base))
    run = subprocess.run(onsil(home, *command), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    said = subprocess.run(onsil(home, "lineage", "desk"), capture_output=True, text=True).stdout
    assert "adopt_base@2" in said and "train_tokenizer" not in said
    asked = subprocess.run(onsil(home, "ask", "desk", "안녕?"), capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr


def test_one_checkpoint_with_its_tokenizer_is_a_base_of_one_part(ws, grown, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(grown["encoder"] / name, tmp_path / name)
    shutil.copyfile(grown["tokenizer"] / "tokenizer.json", tmp_path / "tokenizer.json")
    adopted = adopt(ws, tmp_path)
    assert (adopted / "encoder" / "model.safetensors").exists()
    assert not (adopted / "decoder").exists()


def spoiled(base: Path, folder: Path, what: str) -> Path:
    shutil.copytree(base, folder)
    if what == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif what == "other vocabulary":
        config = json.loads((folder / "encoder" / "config.json").read_text())
        (folder / "encoder" / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    elif what == "speech":
        shutil.rmtree(folder / "encoder")
        make(PAIRS["whisper"]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("what", ["no tokenizer", "other vocabulary", "speech"])
def test_what_does_not_belong_together_is_refused(ws, base, tmp_path, what):
    with pytest.raises(OnsilError):
        adopt(ws, spoiled(base, tmp_path / "base", what))


def published(name: str, folder: Path) -> Path:
    """A checkpoint as its authors would publish it: other family, other tokenizer, no word of ours
    in it, and a tokenizer that frames what it reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=90 if name == "bert" else 95,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=[],
        show_progress=False,
    )
    words.train_from_iterator(["연차는 10일까지 이월할 수 있다. 숙박비는 8만원까지."], trainer)
    frame = [("<s>", words.token_to_id("<s>")), ("</s>", words.token_to_id("</s>"))]
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=frame)
    make((DECODERS | ENCODERS)[name]).save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("name", ["gpt_neox", "roberta", "bert"])
@torch.no_grad()
def test_any_published_decoder_or_encoder_is_a_base(ws, name, tmp_path):
    """It keeps its answers to what it knew, and gets rows for what our renderers write."""
    folder = published(name, tmp_path / "published")
    before, after = load(folder)[0].eval(), None
    adopted = adopt(ws, folder)
    part = adopted / ("decoder" if before.shape.causal else "encoder")
    after = load(part)[0].eval()
    words = load_tokenizer(adopted.path)
    special = specials_of(words)
    assert max(special) < after.shape.vocabulary and len(set(special)) == 5
    assert words.encode("이월").ids == words.encode("이월", add_special_tokens=False).ids
    known = before.shape.vocabulary
    ids = torch.arange(3, 40)[None]
    assert torch.allclose(after(ids)[..., :known], before(ids), atol=1e-5)
    if not before.shape.causal:
        task = render_pair(words, "이월은?", "연차는 10일까지 이월할 수 있다.", (4, 7), True)
        assert task.target not in (None, (0, 0)) and max(task.segments) < after.shape.segments
        assert (
            after.encode(torch.tensor([task.ids]), torch.tensor([task.segments])).isfinite().all()
        )


def test_grow_from_a_published_decoder_answers(tmp_path):
    plan, home = tmp_path / "plan.json", tmp_path / "ws"
    plan.write_text(json.dumps(PLAN | {"decoder_epochs": 1, "encoder_epochs": 1}))
    folder = published("gpt_neox", tmp_path / "published")
    command = ("grow", str(OFFICE), "--name", "desk", "--plan", str(plan), "--base", str(folder))
    run = subprocess.run(onsil(home, *command), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    said = subprocess.run(onsil(home, "lineage", "desk"), capture_output=True, text=True).stdout
    assert "adopt_base@2" in said


def test_the_base_in_this_repository_is_one_and_says_what_it_is_made_of(ws):
    folder = Path(__file__).resolve().parents[1] / "base"
    adopted = adopt(ws, folder)
    for part, last in (("encoder", "finetune"), ("decoder", "pretrain")):
        assert (adopted / part / "model.safetensors").exists()
        said = file_lineage(folder / part / "model.safetensors")
        stages = {node["stage"].partition("@")[0] for node in said["nodes"].values()}
        assert {"read_files", "curate", "pretrain", last, "shrink"} <= stages
        assert sum(f.stat().st_size for f in (folder / part).iterdir()) < 16_000_000


def test_a_grow_starts_from_our_base_unless_told(tmp_path):
    """Without a plan from ours, with `none` from noise; the plan it leaves repeats it."""
    from onsil.grow import NO_BASE, starting_point
    from onsil.training.base import shipped

    ws = Workspace(tmp_path / "ws")
    ours = starting_point(ws, None, None)
    assert ours is not None and (ours / "decoder").is_dir() and (ours / "encoder").is_dir()
    assert ours.digest == adopt(ws, shipped()).digest
    assert starting_point(ws, NO_BASE, None) is None
    assert starting_point(ws, None, json.dumps(PLAN)) is None
    again = starting_point(ws, None, json.dumps(PLAN | {"base": ours.digest}))
    assert again is not None and again.digest == ours.digest
    with pytest.raises(OnsilError, match="made for another one"):
        starting_point(ws, None, json.dumps(PLAN | {"base": "0" * 64}))
