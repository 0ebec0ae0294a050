"""Writing on: what the published classes write, drawn as asked, stopping where it should."""

import json

import pytest
import torch
from family_cases import DECODERS, PAIRS, make
from served import grow_small
from test_base import published
from test_grow import OFFICE, PLAN
from typer.testing import CliRunner

from onsil.cli import app
from onsil.errors import OnsilError
from onsil.inference import Sampling, load_writer, written
from onsil.models.adapters import new_prompt, save_prompt
from onsil.models.checkpoint import load
from onsil.models.prompted import PROMPT as LEARNT

PROMPT = [5, 17, 9, 40, 3, 22]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "mixtral", "bloom", "exaone4"])
def test_greedy_writing_is_the_published_one(name, tmp_path):
    oracle = make(DECODERS[name])
    oracle.save_pretrained(tmp_path)
    model = load(tmp_path)[0].eval()
    wanted = oracle.generate(
        torch.tensor([PROMPT]),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert list(written(model, PROMPT, limit=20)) == wanted[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("name", ["t5", "umt5", "marian"])
def test_an_encoder_decoder_writes_the_published_target(name, tmp_path):
    oracle = make(PAIRS[name])
    oracle.save_pretrained(tmp_path)
    model = load(tmp_path)[0].eval()
    wanted = oracle.generate(
        torch.tensor([PROMPT]),
        max_new_tokens=15,
        do_sample=False,
        num_beams=1,
        decoder_start_token_id=1,
        eos_token_id=None,
        forced_eos_token_id=None,
        pad_token_id=0,
    )
    assert list(written(model, PROMPT, limit=15, start=1)) == wanted[0, 1:].tolist()


def test_it_stops_before_a_stop_token_and_at_its_limit(tmp_path):
    make(DECODERS["llama"]).save_pretrained(tmp_path)
    model = load(tmp_path)[0].eval()
    free = list(written(model, PROMPT, limit=12))
    at = next(i for i in range(3, 12) if free[i] not in free[:i])
    assert list(written(model, PROMPT, frozenset([free[at]]), 12)) == free[:at]
    assert list(written(model, PROMPT, limit=0)) == []


def test_learned_positions_end_where_the_table_ends(tmp_path):
    make(DECODERS["gpt2"]).save_pretrained(tmp_path)
    model = load(tmp_path)[0].eval()
    assert len(list(written(model, PROMPT, limit=200))) == model.shape.context - len(PROMPT)


def test_a_seed_draws_the_same_text_and_another_seed_another(tmp_path):
    make(DECODERS["llama"]).save_pretrained(tmp_path)
    model = load(tmp_path)[0].eval()
    one, same, other = (
        list(written(model, PROMPT, limit=20, how=Sampling(1.5, 1.0, seed))) for seed in (1, 1, 2)
    )
    assert one == same != other


def test_pieces_are_whole_characters_and_add_up(tmp_path):
    folder = published("gpt_neox", tmp_path / "published")
    writer = load_writer(folder, folder, load)
    pieces = list(writer.write("연차는", 15))
    assert "\ufffd" not in "".join(pieces[:-1])
    bounded = published("gpt2", tmp_path / "two")
    with pytest.raises(OnsilError, match="the model holds 64"):
        list(load_writer(bounded, bounded, load).write("연차는 이월" * 40, 5))


def test_a_learnt_prompt_is_read_before_the_text(tmp_path):
    folder = published("gpt_neox", tmp_path / "published")
    plain = load_writer(folder, folder, load)
    model = load(folder)[0].eval()
    rows = new_prompt(model, 5, 0)
    rows.rows_PD.data.normal_(0, 1, generator=torch.Generator().manual_seed(0))
    (folder / LEARNT).mkdir()
    save_prompt(rows, model, folder / LEARNT, "base", {})
    writer = load_writer(folder, folder, load)
    said = "".join(writer.write("연차는", 12))
    assert said != "".join(plain.write("연차는", 12))
    ids, made = writer.tokenizer.encode("연차는").ids, []
    with torch.no_grad():
        while len(made) < 12:
            x = torch.cat([rows.rows_PD[None], model.embedding(torch.tensor([ids + made]))], 1)
            made.append(int(model.logits(model.encode(vectors_BTD=x)[0, -1]).argmax()))
    assert said == writer.tokenizer.decode(made)


@pytest.mark.parametrize("what", ["reader", "no tokenizer", "speech"])
def test_what_cannot_write_says_so(what, tmp_path):
    folder = published("bert" if what == "reader" else "gpt_neox", tmp_path / "published")
    if what == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    if what == "speech":
        make(PAIRS["whisper"]).save_pretrained(folder)
    with pytest.raises(OnsilError, match="cannot write"):
        load_writer(folder, folder, load)


@pytest.fixture
def run(tmp_path):
    """The command in a workspace of its own, with a published decoder loaded as `seed`."""

    def command(*words: str):
        return CliRunner().invoke(app, words, env={"ONSIL_HOME": str(tmp_path / "ws")})

    folder = published("gpt_neox", tmp_path / "published")
    assert command("load", str(folder), "--name", "seed").exit_code == 0
    return command


def test_a_loaded_model_writes_and_is_not_asked(run):
    once, again = (run("write", "seed", "연차는", "--tokens", "8") for _ in range(2))
    assert once.exit_code == 0, once.exception
    assert once.stdout == again.stdout and once.stdout.startswith("연차는")
    assert "seed@v1" in once.stdout
    assert "checkpoint" in run("models").stdout
    for refused in (("ask", "seed", "연차?"), ("chat", "seed"), ("report", "seed")):
        said = run(*refused).exception
        assert isinstance(said, OnsilError) and "was not grown from documents" in said.en[0]


def test_a_base_can_be_named(run, tmp_path):
    """Its folder is what `grow` is given; that a model grows from one, test_base.py says."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(PLAN | {"base": "f" * 64}))
    said = run("grow", str(OFFICE), "--name", "desk", "--plan", str(plan), "--base", "seed")
    assert isinstance(said.exception, OnsilError)
    told = said.exception.en[0]
    assert str(tmp_path / "ws" / "objects") in told and "made for another one" in told


def test_a_grown_model_writes_too(tmp_path):
    env = {"ONSIL_HOME": str(grow_small(tmp_path))}
    said = CliRunner().invoke(app, ["write", "desk", "연차", "--tokens", "3"], env=env)
    assert said.exit_code == 0 and said.stdout.startswith("연차")
