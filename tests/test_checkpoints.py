"""Published checkpoints through the three commands: in, looked at, out with the same bytes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import textwrap
import time
from pathlib import Path
from typing import Any

import family_cases
import pytest
import torch
from family_cases import DECODERS, ENCODERS, SMALL, Case, make
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_grow import OFFICE, PLAN, onsil
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from onsil.cli import app
from onsil.errors import OnsilError
from onsil.lineage import Workspace
from onsil.models.checkpoint import load, save
from onsil.models.licence import licence_of, named_in_card, told
from onsil.models.vocabulary import widened
from onsil.release import described, export_model, inspect_model, load_checkpoint, name_of
from onsil.release.inspection import inspect_folder

ROOT = Path(__file__).resolve().parents[1]
CARD = "---\nlanguage:\n- ko\nlicense: apache-2.0\ntags:\n- tiny\n---\n# A model\n"


def tokenizer_in(folder: Path) -> None:
    """A tokenizer.json of 97 words, with a chat template beside it."""
    words = {f"w{i}": i for i in range(97)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "w2"}')
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")


def in_old_words(folder: Path) -> None:
    """config.json as it was before rope_parameters and dtype."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type")} | rope
    config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """Three published checkpoints: sharded and untied with all companions, bf16 with experts, and
    tied in the old dialect."""
    home = tmp_path_factory.mktemp("published")
    folders = {name: home / name for name in ("shards", "experts", "old words")}
    make(DECODERS["llama"]).save_pretrained(folders["shards"], max_shard_size="100KB")
    tokenizer_in(folders["shards"])
    (folders["shards"] / "README.md").write_text(CARD)
    (folders["shards"] / "training_args.bin").write_bytes(b"\x80pickle")
    make(DECODERS["mixtral"]).to(torch.bfloat16).save_pretrained(folders["experts"])
    tied = DECODERS["llama linear"].arguments | {"tie_word_embeddings": True}
    make(Case("LlamaConfig", tied, "LlamaForCausalLM")).save_pretrained(folders["old words"])
    in_old_words(folders["old words"])
    return folders


def run(home: Path, *command: str, language: str = "en") -> subprocess.CompletedProcess:
    return subprocess.run(
        onsil(home, *command),
        capture_output=True,
        text=True,
        env=os.environ | {"ONSIL_LANG": language},
    )


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "training_args.bin"}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as f:
            found |= {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    return found


def test_load_inspect_export_end_to_end(made, tmp_path):
    """The commands as they are typed, on the sharded one."""
    home, out = tmp_path / "ws", tmp_path / "out"
    loaded = run(home, "load", str(made["shards"]), "--name", "tiny")
    assert loaded.returncode == 0, loaded.stderr
    assert "100 % · " in loaded.stdout and "licence: apache-2.0 (README.md)" in loaded.stdout
    said = json.loads(run(home, "lineage", "tiny", "--json").stdout)
    (record,) = said["records"]
    assert not said["drift"]
    assert record["notes"]["family"] == "llama" and record["notes"]["parameters"] == 174_912
    assert record["notes"]["licence"]["name"] == "apache-2.0"
    taken = {ref["FileRef"]["path"] for ref in record["arguments"]["files"]}
    assert taken == set(bytes_of(made["shards"]))
    assert run(home, "verify", "tiny").returncode == 0
    shown = run(home, "inspect", "tiny", language="ko").stdout
    assert "tiny@v1: llama, 디코더, F32" in shown and "매개변수: 174,912" in shown
    exported = run(home, "export", "tiny", str(out))
    assert exported.returncode == 0, exported.stderr
    assert bytes_of(out) == bytes_of(made["shards"])
    again = run(home, "export", "tiny", str(out))
    assert again.returncode == 1 and "is not empty" in again.stderr
    assert bytes_of(out) == bytes_of(made["shards"])


@pytest.fixture(scope="module")
def ws(tmp_path_factory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("checkpoints") / "ws")


@pytest.mark.parametrize("name", ["shards", "experts", "old words"])
def test_what_goes_in_comes_out(name, made, ws, tmp_path):
    """Every file the same, every tensor the same bits, and transformers opens it."""
    import transformers

    ws.register("kept", load_checkpoint(ws, made[name]))
    export_model(ws, f"kept@{list(ws.versions('kept'))[-1]}", tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(made[name])
    before, after = tensors_of(made[name]), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype
        assert torch.equal(tensor.view(torch.uint8), after[key].view(torch.uint8)), key
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_a_name_has_versions_and_the_same_bytes_keep_theirs(made, ws):
    first, other = (load_checkpoint(ws, made[name]) for name in ("shards", "experts"))
    assert [ws.register("both", made) for made in (first, other, first)] == ["v1", "v2", "v1"]
    assert load_checkpoint(ws, made["shards"]) == first
    (title,) = inspect_model("both@v2", lambda: ws)
    assert title == "both@v2"


def test_names_come_from_folders(tmp_path):
    for folder, name in {
        "KoGPT 2 (tiny)": "KoGPT-2-tiny",
        "models--org--Some-Model-1.5B/snapshots/0a1b": "Some-Model-1.5B",
        "한국어 모델": "한국어-모델",
        "x" * 100: "x" * 64,
    }.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        assert name_of(tmp_path / folder) == name
    assert name_of(Path("/")) == "checkpoint"


# ── inspect ─────────────────────────────────────────────────────────────────────────────────────


def test_figures_of_a_mixture_are_those_of_the_published_class(made):
    """Parameters, and those that one token passes, counted in the oracle."""
    oracle = make(DECODERS["mixtral"])
    sizes = {name: p.numel() for name, p in oracle.named_parameters()}
    total, experts = sum(sizes.values()), sum(n for s, n in sizes.items() if ".experts." in s)
    found = inspect_folder(made["experts"])
    assert found["parameters"] == total
    assert found["active_parameters"] == total - experts // 2  # 2 of 4 used
    assert found["memory"] == {
        "fp32": 4 * total,
        "bf16": 2 * total,
        "int8": total,
        "int4": total // 2,
    }
    # keys and values × layers × heads for them × width × tokens
    assert found["cache_per_1000_tokens"]["bf16"] == 2 * 4 * 2 * 16 * 1000 * 2
    assert (found["context"], found["vocabulary"], found["types"]) == (64, 97, ["BF16"])


def test_the_cache_is_as_large_as_told(made):
    from onsil.models.checkpoint import load

    model = load(made["shards"])[0].eval()
    cache = model.new_cache()
    with torch.no_grad():
        model(torch.arange(50)[None], cache=cache)
    held = sum(t.numel() * 4 for layer in vars(cache)["layers"] for t in tensors_in(layer))
    assert 20 * held == inspect_folder(made["shards"])["cache_per_1000_tokens"]["fp32"]


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inside = value if isinstance(value, list | tuple) else getattr(value, "__dict__", {}).values()
    return [tensor for part in inside for tensor in tensors_in(part)]


ABLE = {
    "shards": {"write", "read", "train", "documents"},
    "experts": {"write", "read", "train"},
    "bert": {"read", "fill", "train"},
    "t5": {"read", "translate", "train"},
    "whisper": {"hear", "train"},
}


@pytest.mark.parametrize("name", ABLE)
def test_abilities_follow_from_the_shape(name, made, tmp_path):
    folder = made.get(name)
    if folder is None:
        folder = tmp_path
        small = {"d_model": 64, "vocab_size": 97}
        case = {
            "bert": ENCODERS["bert"],
            "t5": Case("T5Config", small | {"num_layers": 2}, "T5ForConditionalGeneration"),
            "whisper": Case("WhisperConfig", WHISPER, "WhisperForConditionalGeneration"),
        }[name]
        make(case).save_pretrained(folder)
    can = inspect_folder(folder)["can"]
    assert {what for what, able in can.items() if able} == ABLE[name]


def test_every_family_can_be_inspected(tmp_path):
    """One case of each config class in family_cases.py, in both languages."""
    tables = [table for table in vars(family_cases).values() if isinstance(table, dict)]
    cases = [case for table in tables for case in table.values() if isinstance(case, Case)]
    for case in {case.config: case for case in cases}.values():
        make(case).save_pretrained(tmp_path / case.config)
        found = inspect_folder(tmp_path / case.config)
        assert found["parameters"] > 0 and found["can"]["train"], case.config
        assert found["family"] in described("x", found)
        assert len({"write", "read", "hear", "see"} & {w for w, can in found["can"].items() if can})


WHISPER = {
    "vocab_size": 97, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96, "num_mel_bins": 16, "max_source_positions": 32,
    "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip


def test_inspect_reads_no_weights_and_needs_no_workspace(made, tmp_path, monkeypatch):
    """A file whose weights are a hole of 4 GB answers as fast as one of a kilobyte."""
    folder = shutil.copytree(made["old words"], tmp_path / "hollow")
    vocabulary, width = 2**24, 64
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": vocabulary}))
    size = vocabulary * width * 4
    name = "model.embed_tokens.weight"
    entry = {"dtype": "F32", "shape": [vocabulary, width], "data_offsets": [0, size]}
    text = json.dumps({name: entry}).encode()
    with (folder / "model.safetensors").open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + size)
    monkeypatch.chdir(tmp_path)
    inspect_folder(folder)  # what is imported once
    start = time.process_time()
    found = inspect_model(str(folder), lambda: pytest.fail("looked for a workspace"))
    assert found[str(folder)]["memory"]["fp32"] == size
    assert time.process_time() - start < 0.2
    assert not (tmp_path / ".onsil").exists()


def test_inspect_prints_json(made, tmp_path):
    said = run(tmp_path / "ws", "inspect", str(made["shards"]), "--json")
    (found,) = json.loads(said.stdout).values()
    assert found == json.loads(json.dumps(inspect_folder(made["shards"])))


# ── licences ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (CARD, "apache-2.0"),
        ("---\nlicense: other\nlicense_name: exaone\nlicense_link: LICENSE\n---\n", "exaone"),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", "mit"),
        ('---\nlicense: "CC-BY-NC-4.0"  # no\n---\n', "cc-by-nc-4.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense:\nlanguage: ko\n---\n", ""),
        ("# A model\nlicense: mit\n", ""),
        ("", ""),
    ],
)
def test_the_card_names_the_licence(text, name):
    assert named_in_card(text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("\n      Apache License\n  Version 2.0, January 2004\n", "apache-2.0"),
        ("MIT License\n\nCopyright", "mit"),
        ("# EXAONE AI Model License Agreement 1.2 - NC\n", "exaone"),
        ("LLAMA 2 COMMUNITY LICENSE AGREEMENT\n", "llama2"),
        ("Llama 3.1 Community License Agreement\n", "llama3.1"),
        ("Creative Commons Attribution-NonCommercial-NoDerivatives 4.0", "cc-by-nc-nd-4.0"),
        ("Our own words", "unknown"),
    ],
)
def test_a_licence_file_is_known_by_its_first_lines(text, name, tmp_path):
    (tmp_path / "LICENSE.txt").write_text(text)
    assert licence_of(tmp_path, {}).name == name


def test_the_card_counts_before_the_file_and_the_file_before_the_config(tmp_path):
    config = {"license": "MIT"}
    assert licence_of(tmp_path, config).source == "config.json"
    (tmp_path / "LICENSE").write_text("MIT License")
    assert licence_of(tmp_path, config).source == "LICENSE"
    (tmp_path / "README.md").write_text(CARD)
    assert licence_of(tmp_path, config).source == "README.md"


@pytest.mark.parametrize(
    ("name", "forbids"),
    [
        ("apache-2.0", ()),
        ("mit", ()),
        ("cc-by-nc-4.0", ("selling",)),
        ("cc-by-nc-sa-4.0", ("selling",)),
        ("cc-by-nc-nd-4.0", ("selling", "sharing changes")),
        ("exaone", ("selling", "teaching")),
        ("llama2", ("teaching",)),
        ("llama3.1", ()),
        ("gemma", ("free teaching",)),
    ],
)
def test_what_a_licence_forbids_is_told_and_not_blocked(name, forbids, made, tmp_path, monkeypatch):
    folder = shutil.copytree(made["old words"], tmp_path / "model")
    (folder / "README.md").write_text(f"---\nlicense: {name}\n---\n")
    found = licence_of(folder, {})
    assert found.forbids == forbids and len(told(found)) == len(forbids)
    ws = Workspace(tmp_path / "ws")
    record = ws.record(load_checkpoint(ws, folder).key)
    assert record is not None
    assert record["notes"]["licence"]["forbids"] == list(forbids)
    monkeypatch.setenv("ONSIL_LANG", "ko")
    assert all(name in sentence and "라이선스" in sentence for sentence in told(found))


# ── refused ─────────────────────────────────────────────────────────────────────────────────────


def with_config(**changed: Any):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changed))

    return change


def only_pickle(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80pickle")


REFUSED = {
    "code of its own": (with_config(auto_map={"AutoModel": "x.Y"}), ("auto_map", "never runs")),
    "pickle": (only_pickle, ("pytorch_model.bin", "safetensors")),
    "an unknown family": (with_config(model_type="lama"), ("'lama'", "nearest known is llama")),
    "SentencePiece alone": (
        lambda folder: (folder / "tokenizer.model").write_bytes(b"\n"),
        ("tokenizer.model", "tokenizer.json", "save_pretrained"),
    ),
    "GPTQ": (with_config(quantization_config={"quant_method": "gptq"}), ("gptq", "bf16")),
    "a broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        ("tokenizer.json",),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_the_way_out_and_nothing_kept(what, made, tmp_path):
    change, words = REFUSED[what]
    folder = shutil.copytree(made["old words"], tmp_path / "model")
    change(folder)
    ws = Workspace(tmp_path / "ws")
    with pytest.raises(OnsilError) as error:
        load_checkpoint(ws, folder)
    for word in words:
        assert word in " ".join(error.value.en), word
    assert not list(ws.records()) and not list((ws.root / "objects").glob("*"))


def test_a_sentencepiece_model_beside_a_tokenizer_json_is_taken_along(made, ws, tmp_path):
    folder = shutil.copytree(made["shards"], tmp_path / "model")
    (folder / "tokenizer.model").write_bytes(b"\n")
    assert (load_checkpoint(ws, folder) / "tokenizer.model").is_file()


def test_a_file_that_changes_while_it_is_copied_is_noticed(made, tmp_path):
    """It is hashed first; what is copied must be what was hashed."""
    from onsil.release.checkpoints import copy_whole

    with pytest.raises(OnsilError, match="changed while it was copied"):
        copy_whole(made["shards"] / "config.json", tmp_path / "config.json", "0" * 64)


# ── the page ────────────────────────────────────────────────────────────────────────────────────


def test_the_page_prints_what_the_commands_print(tmp_path, monkeypatch):
    """Every `$ onsil …` of docs/checkpoints.md, in its order, in one workspace."""
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    shown = re.findall(r"^    \$ (.*)\n((?:    .*\n)+)", page, re.MULTILINE)
    assert len(shown) == 5
    (tmp_path / "base").symlink_to(ROOT / "base")
    monkeypatch.chdir(tmp_path)
    for line, printed in shown:
        language, _, command = line.partition("onsil ")
        env = {"ONSIL_HOME": str(tmp_path / "ws"), "ONSIL_LANG": language[11:].strip() or "en"}
        told = CliRunner().invoke(app, shlex.split(command), env=env)
        assert told.exit_code == 0, (line, told.exception)
        assert told.stdout == textwrap.dedent(printed), line


# ── a grown model ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Workspace:
    from onsil.grow import grow

    ws = Workspace(tmp_path_factory.mktemp("grown") / "ws")
    short = PLAN | {"decoder_epochs": 1, "encoder_epochs": 1, "reader_epochs": 1}
    grow(ws, OFFICE, "desk", plan_text=json.dumps(short), tell=lambda text: None)
    return ws


def test_the_parts_of_a_grown_model_open_in_transformers(grown, tmp_path):
    import transformers

    from onsil.models.checkpoint import load

    export_model(grown, "desk", tmp_path / "out")
    for part, auto in (
        ("decoder", transformers.AutoModelForCausalLM),
        ("generator", transformers.AutoModelForCausalLM),
        ("reader", transformers.AutoModel),
    ):
        folder = tmp_path / "out" / part
        words = transformers.AutoTokenizer.from_pretrained(folder)
        assert isinstance(words, transformers.PreTrainedTokenizerFast)
        text = "연차 휴가는 며칠인가요?"
        ids = words.encode(text, add_special_tokens=False)
        own = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer" / "tokenizer.json"))
        assert ids == own.encode(text).ids and words.decode(ids) == text
        assert words.mask_token_id == 4 and words.eos_token == "<|end|>"
        ours = load(folder)[0].eval()
        theirs = auto.from_pretrained(folder).eval()
        with torch.no_grad():
            if ours.segment is not None:  # ours alone: another tool reads the encoder without
                assert ours.segment.weight.abs().max() > 0
                ours.segment.weight.zero_()
            wanted = theirs(torch.tensor([ids]), output_hidden_states=True)
            got = ours.encode(torch.tensor([ids]))
        assert torch.allclose(got, wanted.hidden_states[-1], atol=1e-4), part


def test_inspecting_a_grown_model_tells_each_part(grown):
    found = inspect_model("desk", lambda: grown)
    assert list(found) == [f"desk@v1/{part}" for part in ("decoder", "generator", "reader")]
    assert [part["kind"] for part in found.values()] == ["decoder", "decoder", "encoder"]
    assert all(part["can"]["documents"] for part in found.values())


def test_a_loaded_checkpoint_is_a_base_to_grow_from_as_told(made, ws):
    """`documents` says that `onsil grow --base` takes it; then it does."""
    from onsil.training.base import adopt

    assert SMALL["vocab_size"] == inspect_folder(made["shards"])["vocabulary"]
    loaded = load_checkpoint(ws, made["shards"])
    assert (adopt(ws, loaded.path) / "decoder" / "config.json").is_file()
    with pytest.raises(OnsilError):
        adopt(ws, load_checkpoint(ws, made["experts"]).path)


@pytest.mark.parametrize("name", ["bert", "roberta"])
@torch.no_grad()
def test_the_bias_of_a_tied_head_that_is_written_twice_is_one(name, tmp_path):
    oracle = make(ENCODERS[name]).eval()
    oracle.save_pretrained(tmp_path / "there")
    weights = tmp_path / "there" / "model.safetensors"
    whole = {n: t.clone() for n, t in oracle.state_dict().items() if "position_ids" not in n}
    twice = next(n for n in whole if n.endswith("decoder.bias"))
    save_file(whole, weights, {"format": "pt"})
    model, extra = load(tmp_path / "there")
    assert twice not in extra
    dict(model.named_parameters())["head.bias"].add_(torch.linspace(-1, 1, 97))
    for changed in (model, widened(model, 103, 0)):
        folder = tmp_path / str(changed.shape.vocabulary)
        folder.mkdir()
        save(changed, folder, {}, extra)
        stored = load_file(folder / "model.safetensors")
        assert torch.equal(stored[twice], dict(changed.named_parameters())["head.bias"])


@torch.no_grad()
def test_a_head_of_its_own_keeps_the_scale_of_its_config(tmp_path):
    make(DECODERS["hyperclovax"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"tie_word_embeddings": True, "logits_scaling": 0.125}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = torch.randn(97, 64, generator=torch.Generator().manual_seed(3))
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model = load(tmp_path)[0].eval()
    assert (model.shape.tied, model.shape.logit_scale) == (False, 0.125)
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(5, 17)[None]
    assert (model(ids) - oracle(ids).logits).abs().max() < 1e-4
