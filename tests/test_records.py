"""Questions to the records: is the history whole, what changed, who saw a document."""

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import run

from onsil.errors import OnsilError
from onsil.grow import outcome
from onsil.lineage import Artifact, Workspace, affected, diff, stage, verify


@dataclass(frozen=True)
class FileRef:
    path: str
    sha256: str


@stage(version=1)
def read_files(*, files: list[FileRef], inside: list[FileRef] = [], out, run) -> dict:  # noqa: B006
    rows = [{"path": f.path, "sha256": f.sha256, "blocks": []} for f in [*files, *inside]]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (out / "documents.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    (out / "skipped.jsonl").write_text(lines[-1], encoding="utf-8")
    return {"documents": len(rows) - 1}


@stage(version=1)
def pretrain(*, documents: Artifact, kind: str, plan: str = "", out, run) -> None:
    (out / "weights").write_text(kind + documents.digest + plan)


@stage(version=1)
def assemble(*, decoder: Artifact, encoder: Artifact, out, run) -> None:
    (out / "model").write_text(decoder.digest + encoder.digest)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def refs(**texts: str) -> list[FileRef]:
    return [FileRef(f"{name}.md", digest(text)) for name, text in texts.items()]


def grown(ws: Workspace, files: list[FileRef], plan: str = "", **more) -> Artifact:
    documents = read_files(ws, files=files, **more)
    decoder = pretrain(ws, documents=documents, kind="decoder", plan=plan)
    encoder = pretrain(ws, documents=documents, kind="encoder")
    return assemble(ws, decoder=decoder, encoder=encoder)


@pytest.fixture
def ws(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.setenv("ONSIL_HOME", str(tmp_path / "ws"))
    return Workspace(tmp_path / "ws")


def record_of(ws: Workspace, stage: str) -> tuple[Path, dict]:
    found = next(record for record in ws.records() if record["stage"] == stage)
    return ws.root / "records" / f"{found['key']}.json", found


# ── verify ──────────────────────────────────────────────────────────────────────────────────────


def told_by_verify(ws: Workspace, monkeypatch, capsys) -> tuple[int, list[tuple[str, str]]]:
    code = run(monkeypatch, "verify", "desk", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert all(row["ok"] == (not row["reason"]) for row in rows)
    return code, [(row["stage"], row["reason"]) for row in rows if not row["ok"]]


def test_a_history_that_is_whole(ws, monkeypatch, capsys):
    ws.register("desk", grown(ws, refs(a="x", b="y")))
    assert told_by_verify(ws, monkeypatch, capsys) == (0, [])
    assert len(verify(ws, ws.resolve("desk")[2].key)) == 4


def test_a_record_that_is_gone_is_told(ws, monkeypatch, capsys):
    ws.register("desk", grown(ws, refs(a="x", b="y")))
    path, record = record_of(ws, "read_files")
    path.unlink()
    assert told_by_verify(ws, monkeypatch, capsys) == (1, [("", "no record")])
    assert run(monkeypatch, "verify", "desk") == 1
    assert f"no record  records/{record['key']}.json" in capsys.readouterr().out
    record_of(ws, "assemble")[0].unlink()
    assert told_by_verify(ws, monkeypatch, capsys) == (1, [("", "no record")])


def test_a_record_that_lacks_a_field_is_none_or_does_without(ws, monkeypatch, capsys):
    made = grown(ws, refs(a="x", b="y"))
    ws.register("desk", made)
    path, record = record_of(ws, "assemble")
    for field in record:
        path.write_text(json.dumps({k: v for k, v in record.items() if k != field}))
        whole = ws.record(made.key) is not None
        for words in (("lineage", "desk"), ("affected", "a.md"), ("diff", "desk", "desk")):
            assert run(monkeypatch, *words) == 0, (field, words)
        assert run(monkeypatch, "verify", "desk") == (0 if whole else 1)
        outcome(ws, made)
        capsys.readouterr()
    path.write_text(json.dumps(record))
    assert ws.record(made.key) == record


@pytest.mark.parametrize("part", ["arguments", "version", "stage"])
def test_an_edited_record_is_told(ws, monkeypatch, capsys, part):
    ws.register("desk", grown(ws, refs(a="x", b="y")))
    path, record = record_of(ws, "read_files")
    if part == "arguments":
        del record["arguments"]["files"][0]
    else:
        record[part] = {"version": 2, "stage": "read_file"}[part]
    path.write_text(json.dumps(record))
    assert told_by_verify(ws, monkeypatch, capsys) == (1, [(record["stage"], "edited")])


def test_a_record_that_names_other_bytes_is_told(ws, monkeypatch, capsys):
    ws.register("desk", grown(ws, refs(a="x", b="y")))
    path, record = record_of(ws, "read_files")
    other = read_files(ws, files=refs(c="z"))
    path.write_text(json.dumps(record | {"object": other.digest}))
    assert told_by_verify(ws, monkeypatch, capsys) == (1, [("read_files", "changed")])


# ── diff ────────────────────────────────────────────────────────────────────────────────────────


def test_of_many_files_only_what_changed_is_told(ws, monkeypatch, capsys):
    many = {f"규정{n:04}": "x" for n in range(300)}
    ws.register("desk", grown(ws, refs(**many)))
    ws.register("desk", grown(ws, refs(**(many | {"규정0007": "y", "새규정": "z"}))[1:]))
    assert run(monkeypatch, "diff", "desk@v1", "desk@v2") == 0
    rows = {
        r["stage"]: r["arguments"]
        for r in map(json.loads, capsys.readouterr().out.split("\n")[:-1])
    }
    files = {"added": ["새규정.md"], "removed": ["규정0000.md"], "changed": ["규정0007.md"]}
    assert rows["read_files"] == {"files": files}


def test_what_is_told_is_never_cut(ws, monkeypatch, capsys):
    files = refs(**{f"규정{n:04}": "x" for n in range(300)})
    ws.register("desk", grown(ws, files[:1]))
    ws.register("desk", grown(ws, files))
    assert run(monkeypatch, "diff", "desk@v1", "desk@v2") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (read,) = (row for row in rows if row["stage"] == "read_files")
    assert len(read["arguments"]["files"]["added"]) == 299


def test_two_records_of_one_stage_are_compared_each_with_its_own(ws):
    a = grown(ws, refs(a="x", b="y"), json.dumps({"seed": 0, "width": 64}))
    b = grown(ws, refs(a="x", b="y"), json.dumps({"seed": 1, "width": 64}))
    (row,) = (row for row in diff(ws, a.key, b.key) if row["stage"] == "pretrain")
    assert row["which"]["kind"] == "decoder"
    assert row["arguments"] == {"plan": {"seed": [0, 1]}}
    c = grown(ws, refs(a="z", b="y"), json.dumps({"seed": 0, "width": 64}))
    both = [row["which"]["kind"] for row in diff(ws, a.key, c.key) if row["stage"] == "pretrain"]
    assert sorted(both) == ["decoder", "encoder"]
    alone = pretrain(ws, documents=read_files(ws, files=refs(a="x", b="y")), kind="encoder")
    told = [(r["stage"], r["which"]["kind"], r["only_in"]) for r in diff(ws, alone.key, a.key)[:1]]
    assert told == [("pretrain", "decoder", "b")]


def test_another_version_and_another_source_are_told(ws):
    def made(version: int, text: str) -> Artifact:
        @stage(version=version)
        def weigh(*, out, run) -> None:
            (out / "a").write_text(text)

        return weigh(ws)

    (row,) = diff(ws, made(1, "x").key, made(2, "y").key)
    assert row == {"stage": "weigh", "arguments": {}, "version": [1, 2]}


# ── affected ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def read(ws, tmp_path, monkeypatch) -> Workspace:
    """A folder `집/examples` of two files, one an archive with a file that was read and one that
    was not; the working directory is `집`."""
    folder = tmp_path / "집" / "examples"
    folder.mkdir(parents=True)
    (folder / "휴가규정.md").write_text("휴가", encoding="utf-8")
    monkeypatch.chdir(folder.parent)
    inside = [FileRef("묶음.zip/안쪽 규정.md", "cd" * 32), FileRef("묶음.zip/그림.bin", "ef" * 32)]
    files = [FileRef("휴가규정.md", digest("휴가")), FileRef("묶음.zip", "ab" * 32)]
    ws.register("desk", grown(ws, files, inside=inside))
    return ws


@pytest.mark.parametrize(
    "typed",
    [
        "휴가규정.md",
        "./휴가규정.md",
        "examples/휴가규정.md",
        "./examples/휴가규정.md",
        "examples/../examples/휴가규정.md",
        "/somewhere/examples/휴가규정.md",
        unicodedata.normalize("NFD", "examples/휴가규정.md"),
        "AB" * 32,
        "ab" * 5,
        "묶음.zip/안쪽 규정.md",
        "examples/묶음.zip/안쪽 규정.md",
        "안쪽 규정.md",
        "CD" * 32,
        "묶음.zip/그림.bin",
    ],
)
def test_a_document_is_found_as_it_is_typed(read, typed):
    assert [row["names"] for row in affected(read, typed)][-1] == ["desk@v1"]
    assert len(affected(read, typed)) == 4


def test_a_file_under_another_name_is_found_by_its_bytes(read):
    copy = Path("사본.md")
    copy.write_text("휴가", encoding="utf-8")
    assert len(affected(read, "사본.md")) == 4
    copy.write_text("다른 글", encoding="utf-8")
    with pytest.raises(OnsilError):
        affected(read, "사본.md")


def test_a_document_nobody_saw_is_told_with_near_paths(read):
    with pytest.raises(OnsilError, match="병가") as error:
        affected(read, "병가규정.md")
    assert "'휴가규정.md'" in error.value.en[2] and "'휴가규정.md'" in error.value.ko[2]
    with pytest.raises(OnsilError) as error:
        affected(read, "안쪽 규정.mb")
    assert "'묶음.zip/안쪽 규정.md'" in error.value.en[2]
    for typed in ("규정.md", "b" * 64, "ab", ""):
        with pytest.raises(OnsilError):
            affected(read, typed)
