"""Damaged and hostile checkpoints: a clear error each, in two seconds of processor time and a
gigabyte beyond what an idle torch holds.

Run as a program this file is the child: it wakes torch once, then forks for every folder it is
sent, so that each starts with a clock and a limit of its own.
"""

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS, ROOM = 2, 1 << 30


def attempt(folder: Path) -> dict[str, list[str]]:
    """What inspecting and loading end in: `["ok"]`, or the error's class and both its texts."""
    from onsil.errors import OnsilError
    from onsil.models.checkpoint import load
    from onsil.release.checkpoints import files_of
    from onsil.release.inspection import inspect_folder

    ends = {}
    for name, verb in (("inspect", inspect_folder), ("files", files_of), ("load", load)):
        try:
            verb(folder)
            ends[name] = ["ok"]
        except OnsilError as error:
            ends[name] = ["OnsilError", *error.en, *error.ko]
        except BaseException as error:
            ends[name] = [type(error).__name__, str(error)[:300]]
    return ends


def serve() -> None:
    """A line in (a folder), a line out (how it ended), until the input ends."""
    import torch

    import onsil.models.checkpoint
    import onsil.release.inspection  # noqa: F401
    from onsil.models.shape import decoder_shape
    from onsil.models.transformer import Transformer

    with torch.device("meta"):  # what torch does once, before any clock runs
        Transformer(decoder_shape(8, 8, 1))
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for line in sys.stdin:
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, held + ROOM))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            os.write(writing, json.dumps(attempt(Path(line.rstrip("\n")))).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        print(said.decode() if status == 0 else json.dumps({"status": status}), flush=True)


if __name__ == "__main__":
    serve()
    sys.exit()

import pytest  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

pytest.importorskip("torch")
Change = Callable[[Path], Any]
MODEL = "model.safetensors"
LAYER = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def ends_in():
    """How inspecting, listing and loading a folder end, in a child with limits."""
    child = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    to, back = child.stdin, child.stdout
    assert to is not None and back is not None

    def of(folder: Path) -> dict[str, list[str]]:
        to.write(f"{folder}\n")
        to.flush()
        return json.loads(back.readline())

    yield of
    to.close()
    child.wait()
    back.close()


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Callable[[str], Path]:
    """A sound checkpoint of a case of family_cases.py, saved once; "shards": llama in several."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            from family_cases import DECODERS, ENCODERS, make

            made[name] = tmp_path_factory.mktemp("sound")
            most = "100KB" if name == "shards" else "1GB"
            model = make((DECODERS | ENCODERS)["llama" if name == "shards" else name])
            model.save_pretrained(made[name], max_shard_size=most)
        return made[name]

    return of


def refused(ends: dict[str, list[str]], *words: str) -> None:
    """Loading ended in an OnsilError of three full sentences in two languages with these words."""
    assert set(ends) == {"inspect", "files", "load"}, ends
    assert ends["inspect"][0] in ("ok", "OnsilError"), ends
    assert ends["files"][0] in ("ok", "OnsilError"), ends
    kind, *sentences = ends["load"]
    assert kind == "OnsilError" and len(sentences) == 6 and all(sentences), ends
    assert all(any("가" <= c <= "힣" for c in sentence) for sentence in sentences[3:])
    assert not any("가" <= c <= "힣" for sentence in sentences[:3] for c in sentence)
    for word in words:
        assert word in sentences[0], (word, sentences[0])


# ── the safetensors file ────────────────────────────────────────────────────────────────────────


def taken_apart(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_together(file: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def cut(where: Callable[[int, int], int]) -> Change:
    """The file ends early: `where(header length, size)` bytes are left."""

    def change(folder: Path) -> None:
        data = (folder / MODEL).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        (folder / MODEL).write_bytes(data[: where(length, len(data))])

    return change


def start(length: int) -> Change:
    def change(folder: Path) -> None:
        data = (folder / MODEL).read_bytes()
        (folder / MODEL).write_bytes(struct.pack("<Q", length) + data[8:])

    return change


def header(text: bytes) -> Change:
    return lambda folder: put_together(folder / MODEL, text, b"")


def tensor(**changed: Any) -> Change:
    """One tensor of the table is described otherwise."""

    def change(folder: Path) -> None:
        table, data = taken_apart(folder / MODEL)
        table[LAYER] |= changed
        put_together(folder / MODEL, table, data)

    return change


def moved(begin: int, end: int) -> Change:
    def change(folder: Path) -> None:
        table, data = taken_apart(folder / MODEL)
        first, last = table[LAYER]["data_offsets"]
        table[LAYER]["data_offsets"] = [first + begin, last + end]
        put_together(folder / MODEL, table, data)

    return change


def twice(folder: Path) -> None:
    table, data = taken_apart(folder / MODEL)
    text = json.dumps(table).encode()
    once = json.dumps({LAYER: table[LAYER]}).encode()[1:-1]
    put_together(folder / MODEL, text[:-1] + b", " + once + b"}", data)


def weights(change: Callable[[dict[str, Any]], Any]) -> Change:
    """The weights themselves are others, in a file that is one."""

    def of(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / MODEL)
        change(tensors)
        save_file(tensors, folder / MODEL, {"format": "pt"})

    return of


def holding(value: float) -> Change:
    return weights(lambda tensors: tensors[LAYER].view(-1)[7:9].fill_(value))


FILES: dict[str, tuple[Change, str]] = {
    "nothing": (cut(lambda length, size: 0), "header"),
    "half a length": (cut(lambda length, size: 5), "header"),
    "a length alone": (cut(lambda length, size: 8), "header"),
    "half a header": (cut(lambda length, size: 8 + length // 2), "header"),
    "a header alone": (cut(lambda length, size: 8 + length), "bytes long"),
    "half the data": (cut(lambda length, size: (8 + length + size) // 2), "bytes long"),
    "a byte less": (cut(lambda length, size: size - 1), "bytes long"),
    "2^60 bytes of header": (start(2**60), "1,152,921,504,606,846,976"),
    "2^64 - 1 bytes of header": (start(2**64 - 1), "header"),
    "no header": (start(0), "header"),
    "no JSON": (header(b"{" * 40), "not JSON"),
    "no UTF-8": (header(b'{"\xff\xfe": 1}'), "not JSON"),
    "deep lists": (header(b"[" * 2_000_000), "not JSON"),
    "deep objects": (header(b'{"a":' * 400_000), "not JSON"),
    "a number without end": (header(b'{"a": ' + b"9" * 2_000_000 + b"}"), "not JSON"),
    "a list": (header(b"[1, 2]"), "not a JSON object"),
    "no tensors": (header(b"{}"), "0 tensors"),
    "a tensor that is text": (header(b'{"a": "b"}'), "described wrongly"),
    "a tensor that is null": (header(b'{"a": null}'), "described wrongly"),
    "metadata of numbers": (header(b'{"__metadata__": {"a": 1}}'), "metadata"),
    "a million axes": (tensor(shape=[1] * 1_000_000), "described wrongly"),
    "endless axes": (tensor(shape=[10**300] * 4), "described wrongly"),
    "a negative size": (tensor(shape=[-96, -64]), "described wrongly"),
    "a size of text": (tensor(shape=["96", "64"]), "described wrongly"),
    "a size of truth": (tensor(shape=[True, 6144]), "described wrongly"),
    "half a size": (tensor(shape=[96.0, 64.0]), "described wrongly"),
    "other sizes": (tensor(shape=[96, 65]), "asks for"),
    "turned": (tensor(shape=[64, 96]), "(64, 96)"),
    "an unknown type": (tensor(dtype="F4"), "F4"),
    "8 bits": (tensor(dtype="F8_E4M3"), "F8_E4M3"),
    "a type of list": (tensor(dtype=["F32"]), "F32"),
    "half the type": (tensor(dtype="F16"), "asks for"),
    "whole numbers": (tensor(dtype="I32"), "int32"),
    "no offsets": (tensor(data_offsets=[]), "described wrongly"),
    "a negative offset": (tensor(data_offsets=[-4, 4]), "described wrongly"),
    "an offset of text": (tensor(data_offsets=["0", "4"]), "described wrongly"),
    "a far offset": (tensor(data_offsets=[2**62, 2**62 + 24576]), "overlap or leave gaps"),
    "an overlap": (moved(-4, -4), "overlap or leave gaps"),
    "a gap": (moved(4, 4), "overlap or leave gaps"),
    "an end before the beginning": (tensor(data_offsets=[100, 0]), "asks for"),
    "the same name twice": (twice, f"'{LAYER}' stands in it twice"),
    "NaN": (holding(float("nan")), f"{LAYER} holds 2 values"),
    "infinity": (holding(float("-inf")), f"{LAYER} holds 2 values"),
    "a tensor missing": (weights(lambda t: t.pop(LAYER)), LAYER),
    "a tensor too many": (
        weights(lambda t: t.update({LAYER + "_2": t[LAYER].clone()})),
        LAYER + "_2",
    ),
    "a layer too many": (
        weights(lambda t: t.update({LAYER.replace(".1.", ".4."): t[LAYER].clone()})),
        "not part of the model",
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_a_damaged_weights_file_is_refused(what, sound, ends_in, tmp_path):
    change, word = FILES[what]
    folder = shutil.copytree(sound("llama"), tmp_path / "model")
    change(folder)
    refused(ends_in(folder), word)


def test_the_sound_ones_load(sound, ends_in):
    """The control: without the change, nothing is refused."""
    for name in ("llama", "shards", "mixtral", "phi3 longrope long", "gemma3_text", "smollm3"):
        assert all(end == ["ok"] for end in ends_in(sound(name)).values()), name


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
    derandomize=True,
)
@given(st.lists(st.tuples(st.integers(0), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_of_the_header_end_in_success_or_a_clear_error(sound, ends_in, flips):
    whole = sound("llama")
    folder = whole.with_name("flipped")
    folder.mkdir(exist_ok=True)
    shutil.copyfile(whole / "config.json", folder / "config.json")
    data = bytearray((whole / MODEL).read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    for at, bits in flips:
        data[at % (8 + length)] ^= bits
    (folder / MODEL).write_bytes(data)
    ends = ends_in(folder)
    assert {end[0] for end in ends.values()} <= {"ok", "OnsilError"}, ends


# ── config.json ─────────────────────────────────────────────────────────────────────────────────

LONGROPE = "phi3 longrope long"
HALF = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16}
CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    **{
        f"{key} = {value!r}": ("llama", {key: value}, key)
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        for value in ("64", True, 4.0, [4], {}, 0, -4, 10**12, 10**30)
    },
    **{
        f"{key} = None": ("llama", {key: None}, key)
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    },
    "vocab_size = 10^8": ("llama", {"vocab_size": 10**8}, "100000000"),
    "vocab_size = 10^9": ("llama", {"vocab_size": 10**9}, "1000000000"),
    "num_hidden_layers = 10^9": ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "num_hidden_layers = 4000": ("llama", {"num_hidden_layers": 4000}, "4000 layers"),
    "too many windowed layers": (
        "gemma3_text",
        {"num_hidden_layers": 10**9, "layer_types": None},
        "_hidden_layers",
    ),
    "one layer more": ("llama", {"num_hidden_layers": 5}, "model.layers.4"),
    "one layer less": ("llama", {"num_hidden_layers": 3}, "not part of the model"),
    "num_local_experts = 10^9": ("mixtral", {"num_local_experts": 10**9}, "num_local_experts"),
    "num_local_experts = 4000": ("mixtral", {"num_local_experts": 4000}, "tensors"),
    "more experts used than are": ("mixtral", {"num_experts_per_tok": 5}, "experts_used=5"),
    "heads that do not divide": ("gpt2", {"n_head": 5}, "5 heads"),
    "keys that do not divide": ("llama", {"num_key_value_heads": 3}, "kv_heads=3"),
    "more keys than heads": ("llama", {"num_key_value_heads": 8}, "kv_heads=8"),
    "an odd head": ("llama", {"head_dim": 23}, "turns 23 of 23"),
    "another MLP": ("llama", {"intermediate_size": 113}, "113"),
    "an endless context": ("llama", {"max_position_embeddings": 10**12}, "max_position"),
    "tied with text": ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings"),
    "an unknown activation": ("llama", {"hidden_act": "relu6"}, "relu6"),
    "an activation of list": ("llama", {"hidden_act": ["silu"]}, "silu"),
    "epsilon 0": ("llama", {"rms_norm_eps": 0}, "rms_norm_eps"),
    "epsilon NaN": ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    "rope of text": ("llama", {"rope_parameters": "linear"}, "rope_parameters"),
    "old rope of list": ("llama", {"rope_scaling": [1]}, "rope_scaling"),
    **{
        f"rope {key} = {value!r}": (
            "llama",
            {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, key: value}},
            key,
        )
        for kind, key, values in (
            ("linear", "factor", (0, -1, float("nan"), float("inf"), "4", True, 10**400)),
            ("linear", "rope_theta", (0, -5, "x", float("nan"))),
            ("default", "partial_rotary_factor", (0, -0.5, 1.5, "half")),
            ("yarn", "beta_fast", (0, "fast")),
            ("yarn", "original_max_position_embeddings", (0, 1, "x", 10**12)),
            ("llama3", "low_freq_factor", (0, 4.0, 9.0)),
            ("abc", "rope_type", ("abc",)),
        )
        for value in values
    },
    "longrope without lists": (LONGROPE, {"rope_parameters": HALF}, "short_factor"),
    **{
        f"longrope with {what}": (
            LONGROPE,
            {"rope_parameters": HALF | {"short_factor": [1.0] * 8, "long_factor": value}},
            "long_factor",
        )
        for what, value in (
            ("7 factors", [1.0] * 7),
            ("a million factors", [1.0] * 1_000_000),
            ("a factor 0", [0.0] * 8),
            ("a factor of text", ["1"] * 8),
            ("one number", 2.0),
        )
    },
    "too few layer types": ("gemma3_text", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    "unknown layer types": ("gemma3_text", {"layer_types": ["linear"] * 4}, "layer_types"),
    "layer types of numbers": ("gemma3_text", {"layer_types": [1, 2, 3, 4]}, "layer_types"),
    "layer types of text": ("gemma3_text", {"layer_types": "full"}, "layer_types"),
    "a negative window": ("mistral", {"sliding_window": -8}, "sliding_window"),
    "a window of text": ("mistral", {"sliding_window": "8"}, "sliding_window"),
    "a window of truth": ("mistral", {"sliding_window": True}, "sliding_window"),
    "no period": (
        "gemma3_text",
        {"sliding_window_pattern": 0, "layer_types": None},
        "sliding_window_pattern",
    ),
    "too few layers without positions": ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"),
    "endless alternation": (
        "gpt_neo",
        {"attention_types": [[["global"], 10**9]], "attention_layers": None},
        "attention_types",
    ),
    "a padding far below": ("roberta", {"pad_token_id": -9}, "pad_token_id"),
    "a family of list": ("llama", {"model_type": ["llama"]}, "llama"),
    "no family": ("llama", {"model_type": None}, "None"),
    "quantisation of text": ("llama", {"quantization_config": "gptq"}, "gptq"),
    "quantisation without a name": ("llama", {"quantization_config": {"bits": 4}}, "quantised"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_that_cannot_be_is_refused(what, sound, ends_in, tmp_path):
    name, changed, word = CONFIGS[what]
    folder = shutil.copytree(sound(name), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    refused(ends_in(folder), word)


def text_of(text: str) -> Change:
    return lambda folder: (folder / "config.json").write_text(text)


CONFIG_FILES: dict[str, tuple[Change, str]] = {
    "missing": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "empty": (text_of(""), "config.json"),
    "a list": (text_of("[]"), "not a JSON object"),
    "nothing said": (text_of("{}"), "''"),
    "twice": (text_of('{"model_type": "llama", "model_type": "qwen3"}'), "'model_type' stands"),
    "twice inside": (
        text_of('{"model_type": "llama", "rope_scaling": {"factor": 1, "factor": 2}}'),
        "'factor' stands",
    ),
    "deep": (text_of('{"a":' * 100_000), "not JSON"),
    "endless": (text_of('{"a": "' + "x" * 26_000_000 + '"}'), "too long"),
}


@pytest.mark.parametrize("what", CONFIG_FILES)
def test_a_damaged_config_file_is_refused(what, sound, ends_in, tmp_path):
    change, word = CONFIG_FILES[what]
    folder = shutil.copytree(sound("llama"), tmp_path / "model")
    change(folder)
    refused(ends_in(folder), word)


# ── the index ───────────────────────────────────────────────────────────────────────────────────

FIRST = "model-00001-of-0000"
INDEX = "model.safetensors.index.json"


def pointing(to: Any) -> Change:
    """The index says that one tensor lies in `to`."""

    def change(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"][LAYER] = to
        (folder / INDEX).write_text(json.dumps(index))

    return change


def linked(folder: Path) -> None:
    """A shard is a link to the same bytes outside."""
    shard = next(folder.glob(FIRST + "*"))
    outside = folder.with_name("elsewhere.safetensors")
    shard.rename(outside)
    shard.symlink_to(outside)


def swapped(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    table = index["weight_map"]
    table[LAYER] = next(shard for shard in table.values() if shard != table[LAYER])
    (folder / INDEX).write_text(json.dumps(index))


INDICES: dict[str, tuple[Change, str]] = {
    "a folder above": (pointing("../x.safetensors"), "outside its folder (../x.safetensors)"),
    "from the root": (pointing("/etc/x.safetensors"), "outside its folder (/etc/x"),
    "a missing shard": (pointing("other.safetensors"), "shard other.safetensors is missing"),
    "no safetensors": (pointing("config.json"), "config.json"),
    "an endless name": (pointing("x" * 100_000 + ".safetensors"), "xxx"),
    "a name with nothing in it": (pointing("a\0b.safetensors"), "missing"),
    "a number": (pointing(5), "(5)"),
    "a link out": (linked, "link out of its folder"),
    "another shard": (swapped, f"{LAYER} is not in"),
    "no map": (lambda folder: (folder / INDEX).write_text('{"a": 1}'), "no weight_map"),
    "a map of list": (
        lambda folder: (folder / INDEX).write_text('{"weight_map": [1]}'),
        "no weight_map",
    ),
}


@pytest.mark.parametrize("what", INDICES)
def test_an_index_that_misleads_is_refused(what, sound, ends_in, tmp_path):
    change, word = INDICES[what]
    folder = shutil.copytree(sound("shards"), tmp_path / "model")
    change(folder)
    refused(ends_in(folder), word)


def test_links_into_the_blobs_of_a_cache_are_followed(sound, ends_in, tmp_path):
    """The layout of the Hugging Face cache: snapshots/REVISION/FILE → ../../blobs/DIGEST."""
    cache = tmp_path / "models--onsil--tiny"
    snapshot = cache / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    shutil.copytree(sound("shards"), cache / "blobs")
    for file in (cache / "blobs").iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert ends_in(snapshot)["load"] == ["ok"]
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(sound("shards") / "config.json")
    refused(ends_in(snapshot), "link out of its folder")
