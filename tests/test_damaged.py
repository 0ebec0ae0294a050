"""Damaged and hostile weights and indices: a clear error each, under the limits of
damaged_child.py; test_damaged_configs.py has the configs."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damaged_child import Opener, Sound, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Change = Callable[[Path], Any]
MODEL = "model.safetensors"
LAYER = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def ends_in():
    opener = Opener()
    yield opener
    opener.close()


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Sound:
    return Sound(tmp_path_factory.mktemp("sound"))


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
