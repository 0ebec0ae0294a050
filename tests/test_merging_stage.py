"""Merging in a workspace: the same bits, both parents' documents, origin, terms, every refusal."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pages import runs_as_it_says
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from onsil.cli import app
from onsil.corpus import curate
from onsil.documents import read
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, Workspace, affected, file_lineage, history, stage, verify
from onsil.models.checkpoint import load, save
from onsil.models.licence import Licence, licence_of
from onsil.models.merging import average, slerp, task_arithmetic
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.release import export_model, load_checkpoint, merge_models, method_of
from onsil.release.merging import SCALE, Average, Slerp, TaskArithmetic, carried
from onsil.tokenizer.templates import ONSIL
from onsil.tokenizer.train import train
from onsil.tokenizer.turns import Message, load_template, save_template
from onsil.training.continuing import Continuation, continue_pretraining
from onsil.training.permission import OWN, check_teacher
from onsil.training.supervised import load_chat

DOCUMENTS = {
    "a": "# 휴가 규정\n\n쓰지 않은 연차는 다음 해에 5일까지 이월한다. 병가는 60일까지 쓴다.\n",
    "b": "# 출장 규정\n\n숙박비는 하루 80,000원까지 지급한다. 교통비는 실비로 지급한다.\n",
}


@stage(version=1)
def words(*, text: str, out: Path, run: Run) -> dict:
    train([*DOCUMENTS.values(), text] * 3, 400).save(str(out / "tokenizer.json"))
    return {}


@stage(version=1)
def seedling(*, words: Artifact, seed: int, width: int = 64, out: Path, run: Run) -> dict:
    """A model from noise that can be asked."""
    save(Transformer(decoder_shape(400, width, 1, 64)).initialise(seed), out, run.ancestry)
    shutil.copyfile(words / "tokenizer.json", out / "tokenizer.json")
    save_template(ONSIL, out)
    return {}


@stage(version=1)
def nudged(
    *,
    model: Artifact,
    seed: int,
    change: str = "",
    teacher: Artifact | None = None,
    words: Artifact | None = None,
    out: Path,
    run: Run,
) -> dict:
    """A model that went on a little from another; `change`: what makes it one of another kind."""
    begun, extra = load(model.path)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in begun.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=draw)
    if change == "head":
        extra = {"qa_outputs.weight": torch.randn(2, 64, generator=draw)}
    if change == "bf16":
        begun = begun.to(torch.bfloat16)
        begun.origin = None
    elif begun.origin.dtypes["model.norm.weight"] != torch.float32:
        begun.origin = None  # tuned in more bits than it was kept in
    save(begun, out, run.ancestry, extra)
    if change != "no tokenizer":
        shutil.copyfile((words or model) / "tokenizer.json", out / "tokenizer.json")
    save_template(replace(ONSIL, name="other") if change == "template" else ONSIL, out)
    if change == "prompt":
        (out / "prompt").mkdir()
    if change == "documents":
        (out / "model.json").write_text("{}")
    return {}


class Garden:
    """A workspace with a base and two models, `a` and `b`, tuned from it."""

    def __init__(self, root: Path):
        self.ws, self.root = Workspace(root / "ws"), root
        self.words = words(self.ws, text="합치기")
        self.base = seedling(self.ws, words=self.words, seed=0)
        self.put("base", self.base)
        self.a = self.put("a", nudged(self.ws, model=self.base, seed=1))
        self.b = self.put("b", nudged(self.ws, model=self.base, seed=2))

    def put(self, name: str, made: Artifact) -> Artifact:
        self.ws.register(name, made)
        return made

    def merge(self, *names: str, method: str = "average", amounts: str = "", **more) -> Artifact:
        return merge_models(self.ws, names, method_of(method, amounts, len(names)), **more)

    def published(self, name: str, seed: int, licence: str, lineage: bool = False) -> Artifact:
        """A checkpoint from outside, under a licence or none."""
        folder = self.root / name
        shutil.copytree(seedling(self.ws, words=self.words, seed=seed).path, folder)
        if not lineage:
            weights = folder / "model.safetensors"
            save_file(load_file(weights), weights, {"format": "pt"})
        if licence:
            (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        return self.put(name, load_checkpoint(self.ws, folder))


@pytest.fixture(scope="module")
def garden(tmp_path_factory) -> Garden:
    return Garden(tmp_path_factory.mktemp("garden"))


@pytest.fixture
def own(tmp_path) -> Garden:
    return Garden(tmp_path)


def record_of(garden: Garden, made: Artifact) -> dict:
    record = garden.ws.record(made.key)
    assert record is not None
    return record


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load(folder)[0].named_parameters())


# -- what is made -------------------------------------------------------------------------------


def test_a_merge_is_what_its_formula_says(garden):
    a, b, base = (load(made.path)[0] for made in (garden.a, garden.b, garden.base))
    for made, wanted in (
        (garden.merge("a", "b"), average([a, b])),
        (garden.merge("a", "b", amounts="1,3"), average([a, b], [1, 3])),
        (garden.merge("a", "b", method="slerp", amounts="0.25"), slerp(a, b, 0.25)),
        (garden.merge("a", "b", method="task"), task_arithmetic(base, [a, b], [SCALE, SCALE])),
        (
            garden.merge("a", "b", method="task", amounts="0.5,-0.25"),
            task_arithmetic(base, [a, b], [0.5, -0.25]),
        ),
    ):
        found = parameters(made.path)
        for name, tensor in wanted.named_parameters():
            assert torch.equal(found[name], tensor), name


def test_a_merge_is_the_same_bits_again(garden, own):
    """In the same workspace nothing runs, in another one, and made anew, every byte is the same."""
    for more in ({}, {"method": "task"}, {"method": "slerp"}):
        made = garden.merge("a", "b", **more)
        finished = record_of(garden, made)["finished_at"]
        assert garden.merge("a", "b", **more) == made
        assert record_of(garden, made)["finished_at"] == finished
        assert own.merge("a", "b", **more).digest == made.digest
        shutil.rmtree(made.path)
        assert garden.merge("a", "b", **more).digest == made.digest
        assert garden.ws.is_whole(made)


def test_it_can_be_asked_as_its_parents_were(garden):
    made = garden.merge("a", "b")
    for name in ("tokenizer.json", "template.json"):
        assert (made / name).read_bytes() == (garden.a / name).read_bytes()
    assert load_template(made.path) == ONSIL
    assert isinstance(load_chat(made.path).answer([Message("user", "숙박비는?")], limit=3), str)
    assert not (made / "README.md").exists()


def test_types_are_those_of_the_first_and_not_of_the_base(own):
    """What was learnt is not rounded to the bits of a base in bf16."""
    short = nudged(own.ws, model=own.base, seed=3, change="bf16")
    made = [nudged(own.ws, model=short, seed=seed) for seed in (1, 2)]
    for name, one in zip(("c", "d"), made, strict=True):
        own.put(name, one)
    own.put("short", short)
    (begun, _), *tuned = (load(one.path) for one in (short, *made))
    wanted = task_arithmetic(begun, [model for model, _ in tuned], [SCALE, SCALE])
    found = parameters(own.merge("c", "d", method="task").path)
    for name, tensor in wanted.named_parameters():
        assert torch.equal(found[name], tensor), name
    kept = load(own.merge("short", "c").path, dtype=None)[0]
    assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}


# -- where it comes from ------------------------------------------------------------------------


def test_every_document_of_both_parents_is_seen(tmp_path):
    ws = Workspace(tmp_path / "ws")
    known = words(ws, text="합치기")
    base, made = seedling(ws, words=known, seed=0), {}
    for name, text in DOCUMENTS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.md").write_text(text)
        corpus = curate(ws, documents=read(ws, tmp_path / name))
        made[name] = continue_pretraining(
            ws,
            model=base,
            tokenizer=known,
            corpus=corpus,
            replay=None,
            how=Continuation(context=64),
        )
        ws.register(name, made[name])
    both = merge_models(ws, ["a", "b"], Average())
    ws.register("both", both)
    parents = {record["key"] for made in made.values() for _, record in history(ws, made.key)}
    assert parents < {record["key"] for _, record in history(ws, both.key)}
    for name in DOCUMENTS:
        seen = {called for row in affected(ws, f"{name}.md") for called in row["names"]}
        assert seen == {f"{name}@v1", "both@v1"}
    assert all(row["ok"] for row in verify(ws, both.key))
    nodes = file_lineage(both / "model.safetensors")["nodes"]
    files = [n["arguments"]["files"] for n in nodes.values() if n["stage"].startswith("read_files")]
    assert len(files) == 2
    record = ws.record(both.key)
    assert record is not None and record["notes"]["origin"]["digest"] == base.digest


def test_the_nearest_common_ancestor_is_the_base(own):
    """Of models tuned in two steps the nearest; one that another went on from is itself the base;
    who only taught is none."""
    middle = nudged(own.ws, model=own.base, seed=3)
    own.put("c", nudged(own.ws, model=middle, seed=4))
    own.put("d", nudged(own.ws, model=middle, seed=5))
    own.put("middle", middle)
    for names, begun in (
        (("c", "d"), middle), (("c", "a"), own.base), (("d", "middle"), middle),
        (("middle", "c"), middle), (("a", "base"), own.base),
    ):  # fmt: skip
        record = record_of(own, own.merge(*names, method="task"))
        assert record["notes"]["origin"] == {"digest": begun.digest, "said": ""}
        assert record["arguments"]["base"]["artifact"] == begun.digest
    further = own.merge("c", "d", method="task", base="base")
    assert record_of(own, further)["arguments"]["base"]["artifact"] == own.base.digest
    stranger = seedling(own.ws, words=own.words, seed=9)
    own.put("taught", nudged(own.ws, model=stranger, teacher=own.base, seed=1))
    with pytest.raises(OnsilError, match="did not begin as one"):
        own.merge("a", "taught")
    with pytest.raises(OnsilError, match="did not begin as one"):
        own.merge("c", "d", base="a")


def test_a_checkpoint_tells_where_it_began_elsewhere(own, tmp_path):
    """`b` is tuned on another machine from the same base, and loaded here."""
    there = Garden(tmp_path / "there")
    export_model(there.ws, "b", tmp_path / "carried")
    loaded = own.put("brought", load_checkpoint(own.ws, tmp_path / "carried"))
    made = own.merge("a", "brought", method="task")
    assert record_of(own, made)["notes"]["origin"]["digest"] == own.base.digest
    assert loaded.key != own.b.key
    assert parameters(made.path).keys() == parameters(own.a.path).keys()


def test_who_vouches_for_the_origin_stays_in_the_lineage(own):
    other = seedling(own.ws, words=own.words, seed=7)
    own.put("other", other)
    said = "both were tuned from X 1B, by their cards"
    made = own.merge("a", "other", origin=said)
    assert record_of(own, made)["arguments"]["origin"] == {"digest": "", "said": said}
    nodes = file_lineage(made / "model.safetensors")["nodes"]
    assert said in json.dumps(nodes[made.key])
    with pytest.raises(OnsilError, match="names no base"):
        own.merge("a", "other", method="task", origin=said)
    assert own.merge("a", "other", method="task", origin=said, base="b")


# -- terms of use -------------------------------------------------------------------------------


def test_a_licence_is_not_washed_off(own):
    """Not by tuning in between, not by merging, not by merging again."""
    base = own.published("nc", 11, "cc-by-nc-4.0")
    for seed in (1, 2, 3):
        own.put(f"t{seed}", nudged(own.ws, model=base, seed=seed))
    with pytest.raises(OnsilError, match=r"cc-by-nc-4\.0.*selling"):
        own.merge("t1", "t2")
    made = own.put("m", own.merge("t1", "t2", permission="its authors, in a letter of 3 May"))
    assert licence_of(made.path, {}).name == "cc-by-nc-4.0"
    assert "letter of 3 May" in json.dumps(record_of(own, made)["arguments"])
    with pytest.raises(OnsilError, match="teaching other models"):
        check_teacher(made.path)
    with pytest.raises(OnsilError, match=r"cc-by-nc-4\.0"):
        own.merge("m", "t3")
    with pytest.raises(OnsilError, match=r"cc-by-nc-4\.0"):
        own.merge("a", "b", base="nc", origin="they look alike")


def test_what_says_nothing_of_its_licence_stays_silent(own):
    base = own.published("silent", 12, "")
    own.put("t1", nudged(own.ws, model=base, seed=1))
    with pytest.raises(OnsilError, match="does not say under which licence"):
        own.merge("silent", "t1")
    made = own.merge("silent", "t1", permission="asked by telephone")
    assert not (made / "README.md").exists()
    with pytest.raises(OnsilError, match="does not say under which licence"):
        check_teacher(made.path)


def test_free_terms_come_along(own):
    base = own.published("free", 13, "apache-2.0")
    own.put("t1", nudged(own.ws, model=base, seed=1))
    made = own.merge("free", "t1")
    assert licence_of(made.path, {}).name == "apache-2.0"
    assert base.digest in (made / "README.md").read_text()
    shutil.rmtree(base.path)  # what cannot be looked up is not free
    with pytest.raises(OnsilError, match="does not say under which licence"):
        own.put("t2", nudged(own.ws, model=own.a, seed=2, teacher=base))
        own.merge("a", "t2")


def test_one_licence_speaks_for_all_or_none_does():
    nc, nd, open_, gemma = map(Licence, ("cc-by-nc-4.0", "cc-by-nc-nd-4.0", "mit", "gemma"))
    assert carried([OWN, OWN], "") == {"licence": "", "all": []}
    assert carried([OWN, open_, gemma], "")["licence"] == "gemma"
    assert carried([open_, Licence("apache-2.0")], "")["licence"] == "apache-2.0+mit"
    assert carried([nc, nd, open_], "yes") == {
        "licence": "cc-by-nc-nd-4.0", "all": ["cc-by-nc-4.0", "cc-by-nc-nd-4.0", "mit"]
    }  # fmt: skip
    assert carried([open_, Licence("unknown")], "yes")["licence"] == ""
    assert carried([nc, Licence("unknown")], "yes")["licence"] == "cc-by-nc-4.0"
    with pytest.raises(OnsilError, match="exaone"):
        carried([Licence("exaone"), nd], "yes")


# -- what is refused ----------------------------------------------------------------------------


def test_methods_are_as_they_are_typed():
    assert method_of("average", "", 3) == Average()
    assert method_of("average", "1, 2.5", 2) == Average((1.0, 2.5))
    assert method_of("task", "", 2) == TaskArithmetic((SCALE, SCALE))
    assert method_of("task", "0.5", 3) == TaskArithmetic((0.5, 0.5, 0.5))
    assert method_of("task", "0.5,-1", 2) == TaskArithmetic((0.5, -1.0))
    assert method_of("slerp", "0.25", 2) == Slerp(0.25)
    assert method_of("slerp", "", 2) == Slerp(0.5)


@pytest.mark.parametrize(
    ("name", "amounts", "many"),
    [("mean", "", 2), ("average", "1", 2), ("task", "1,2,3", 2), ("slerp", "", 3),
     ("slerp", "0.1,0.9", 2), ("task", "half", 2)],
)  # fmt: skip
def test_other_methods_and_numbers_are_refused(name, amounts, many, both_languages):
    both_languages(lambda: method_of(name, amounts, many), repr(name), repr(amounts))


@pytest.fixture
def both_languages(monkeypatch):
    """What is refused is refused in English and in Korean, each with the values in it."""

    def check(act, *values: str) -> None:
        with pytest.raises(OnsilError) as raised:
            act()
        said = {}
        for language in ("en", "ko"):
            monkeypatch.setenv("ONSIL_LANG", language)
            said[language] = str(raised.value)
            what, why, then = said[language].split("\n")
            assert what and why and then
            for value in values:
                assert value in said[language], said[language]
        assert re.search("[가-힣]", said["ko"]) and not re.search("[가-힣]", said["en"])

    return check


def test_every_refusal_in_both_languages(own, both_languages):
    ws, base = own.ws, own.base
    refused = lambda *names, told=(), **more: both_languages(  # noqa: E731
        lambda: own.merge(*names, **more), *told
    )
    refused("a", "a", told=[f"a@v1 ({own.a.digest[:12]})"])
    both_languages(lambda: merge_models(ws, ["a", "b", "base"], Slerp(0.25)), "slerp", "0.25")
    for change in ("documents", "no tokenizer", "prompt"):
        made = own.put("changed", nudged(ws, model=base, seed=3, change=change))
        refused("a", "changed", told=[made.digest[:12]])
    made = own.put("changed", nudged(ws, model=base, seed=3, change="template"))
    refused("a", "changed", told=[own.a.digest[:12], made.digest[:12]])
    own.put("changed", nudged(ws, model=base, seed=3, change="head"))
    refused("a", "changed", told=["qa_outputs.weight"])
    other = words(ws, text="다른 낱말")
    own.put("changed", nudged(ws, model=base, seed=3, words=other))
    refused("a", "changed", told=["(", ", "])
    stranger = own.put("stranger", seedling(ws, words=own.words, seed=8))
    refused("a", "stranger", told=[base.digest[:12], stranger.digest[:12]])
    refused("a", "stranger", method="task", origin="they look alike")
    wide = own.put("wide", seedling(ws, words=own.words, seed=8, width=128))
    refused("a", "wide", told=["(400, 64)", "(400, 128)"], origin="they look alike")
    refused("a", "b", told=["t=1.5"], method="slerp", amounts="1.5")
    refused("a", "b", told=["-1.0"], amounts="-1,2")
    refused("a", "b", told=["nan"], amounts="nan,1")
    refused("a", "nobody", told=["'nobody'"])
    own.published("exaone", 11, "exaone")
    refused("exaone", "a", told=["exaone (README.md)"], origin="they look alike")
    own.published("nd", 12, "cc-by-nd-4.0")
    refused("exaone", "nd", told=["cc-by-nd-4.0, exaone"], origin="yes", permission="yes")
    own.published("silent", 13, "")
    refused("silent", "a", origin="they look alike")
    (wide / "config.json").write_text("{}")
    refused("a", "wide", told=[wide.digest[:12]])
    (base / "config.json").write_text("{}")
    refused("a", "b", method="task", told=[base.digest[:12]])
    shutil.rmtree(base.path)
    refused("a", "b", method="task", told=[base.digest[:12]])


# -- the command --------------------------------------------------------------------------------


def test_the_command_names_what_it_made_and_passes_everything_on(own, monkeypatch):
    monkeypatch.setenv("ONSIL_HOME", str(own.ws.root))
    typed = ["merge", "a", "b", "--name", "c", "--method", "task", "--amounts", "0.5,0.25"]
    said = CliRunner().invoke(app, typed, catch_exceptions=False)
    assert said.exit_code == 0 and "c@v1" in said.output
    by_hand = own.merge("a", "b", method="task", amounts="0.5,0.25")
    assert own.ws.resolve("c")[2].digest == by_hand.digest
    own.put("stranger", seedling(own.ws, words=own.words, seed=5))
    typed = ["merge", "a", "stranger", "--name", "d"]
    with pytest.raises(OnsilError):
        CliRunner().invoke(app, typed, catch_exceptions=False)
    said = CliRunner().invoke(app, [*typed, "--origin", "I say so"], catch_exceptions=False)
    assert said.exit_code == 0
    assert record_of(own, own.ws.resolve("d")[2])["notes"]["origin"]["said"] == "I say so"


# -- the page -----------------------------------------------------------------------------------


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs_as_it_says("merging.md")
