"""Commands: parse, call one verb, print. Nothing here wakes torch unless a model has to think."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from onsil.errors import OnsilError, of_the_system, say
from onsil.lineage import (
    Workspace,
    affected,
    collect_garbage,
    diff,
    drift,
    file_lineage,
    history,
    no_record,
    unrecorded,
    verify,
)
from onsil.lineage.workspace import proper_name
from onsil.serving import commands

app = typer.Typer(
    name="onsil",
    help="Grow a small language model of your own from your own documents, offline.\n\n"
    "내 문서로 나만의 작은 언어 모델을 기릅니다. 네트워크가 필요 없습니다.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Name = Annotated[str, typer.Argument(help="model: desk, desk@v3, desk@champion · 모델 이름")]
Json = Annotated[bool, typer.Option("--json", help="print JSON · JSON으로 출력")]


def _print(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=1))


@app.command("grow")
def grow_command(
    folder: Annotated[Path, typer.Argument(help="documents · 문서 폴더")],
    name: Annotated[str, typer.Option(help="name of the model · 모델 이름")],
    minutes: Annotated[
        float | None, typer.Option(help="budget for training, 6 unless told · 학습 시간(분)")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="weights of the decoder, 2M; starts from noise · 모델 크기")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="tokens the decoder trains on, 5M · 학습할 토큰 수")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="repeat this plan.json exactly")] = None,
    base: Annotated[
        str | None, typer.Option(help="folder, loaded name, or none · 출발 모델, none은 없이")
    ] = None,
) -> None:
    """A folder of documents becomes a model you can ask. · 문서 폴더를 모델로 기릅니다."""
    from onsil.documents.read import check_folder
    from onsil.evaluation.report import example_of, summary
    from onsil.grow import NO_BASE, grow
    from onsil.training.request import amount, read_plan, request

    weights = amount(size, "--size") if size is not None else None
    length = amount(tokens, "--tokens") if tokens is not None else None
    asked = request(minutes, weights, length, bool(plan), base not in (None, str(NO_BASE)))
    text = read_plan(plan) if plan else None
    proper_name(name)
    check_folder(folder)  # before a workspace is made for it
    start = Path(base) if base else None
    if start and start != NO_BASE and not start.exists():
        start = Workspace.find().resolve(str(base))[2].path
    ws = Workspace.found_or_new()
    try:
        grown = grow(ws, folder, name, asked, text, start, typer.echo)
    except KeyboardInterrupt:
        typer.echo(
            say(
                "Stopped. What is done is kept: run the same command to go on.",
                "멈추었습니다. 끝난 단계는 남아 있으니 같은 명령을 다시 실행하면 이어집니다.",
            ),
            err=True,
        )
        raise typer.Exit(130) from None
    card = json.loads((grown.card / "card.json").read_text(encoding="utf-8"))
    typer.echo(summary(card | {"name": f"{grown.name}@{grown.version}"}))
    typer.echo(
        say(f"Report: {grown.report / 'report.html'}", f"성적표: {grown.report / 'report.html'}")
    )
    typer.echo(f"\n  onsil ask {grown.name} {example_of(card['samples'])}\n")


def _cited(passage) -> dict[str, str]:
    return {"document": passage.document, "heading": passage.heading, "passage": passage.text}


@app.command()
def ask(
    name: Name,
    question: Annotated[str, typer.Argument(help="question · 질문")],
    as_json: Json = False,
) -> None:
    """One question: an answer with its citation, or "not in the documents". · 한 번 묻기."""
    from onsil.retrieval import Answerer

    ws = Workspace.find()
    called, version, model = ws.resolve(name)
    answerer = Answerer(ws.whole(model))
    answer = answerer.ask(question)
    if as_json:
        found = [_cited(p) for p in answer.citations]
        _print(
            {
                "question": question,
                "answer": answer.text,
                "citations": found if answer.text is not None else [],
                "nearest": [] if answer.text is not None else found,
                "confidence": round(answer.confidence, 4),
                "reader": answerer.settings["reader"],
                "model": {"name": called, "version": version, "digest": model.digest},
            }
        )
        return
    for piece in answerer.stream(answer):
        typer.echo(piece, nl=False)
    typer.echo("\n" + _notice(called, version))


def _notice(name: str, version: str) -> str:
    return say(
        f"({name}@{version} · answered by a machine: check the source for anything important)",
        f"({name}@{version} · 이 답변은 인공지능이 생성했습니다. 중요한 내용은 원문을 확인하세요.)",
    )


@app.command()
def chat(name: Name) -> None:
    """The same as a conversation in the terminal. · 터미널에서 대화하기."""
    import time

    from onsil.retrieval import Answerer

    ws = Workspace.find()
    called, version, model = ws.resolve(name)
    answerer = Answerer(ws.whole(model))
    typer.echo(answerer.greet() + "\n" + _notice(called, version))
    typer.echo(say("(an empty line or Ctrl-D ends)", "(빈 줄이나 Ctrl-D로 끝냅니다)"))
    while True:
        try:
            question = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if not question:
            break
        for piece in answerer.stream(answerer.ask(question)):
            sys.stdout.write(piece)
            sys.stdout.flush()
            if sys.stdout.isatty():
                time.sleep(0.02)
        sys.stdout.write("\n")


commands.register(app)


@app.command()
def report(name: Name) -> None:
    """Where the report of a model is, and its summary. · 성적표 보기."""
    from onsil.evaluation.report import page_of, summary
    from onsil.retrieval.answering import not_grown

    ws = Workspace.find()
    called, version, model = ws.resolve(name)
    card = next((r for _, r in history(ws, model.key) if r["stage"] == "evaluate"), None)
    if card is None:
        if lost := unrecorded(ws, model.key):
            raise no_record(ws, lost[0], called, version)
        raise not_grown(called)
    text = (ws.whole(ws.artifact(card["object"])) / "card.json").read_text(encoding="utf-8")
    typer.echo(summary(json.loads(text) | {"name": f"{called}@{version}"}))
    if page := page_of(ws, model, called):
        typer.echo(str(page))


@app.command()
def models(as_json: Json = False) -> None:
    """Every model with its versions. · 모델 목록."""
    ws = Workspace.find()
    rows = []
    for name in ws.names():
        aliases = {v: k for k, v in ws.aliases(name).items()}
        for version, entry in ws.versions(name).items():
            record = ws.record(entry["key"]) or {}
            if record.get("stage") == "adopt_feedback":
                continue  # a name, and no model
            rows.append(
                {
                    "name": name,
                    "version": version,
                    "alias": aliases.get(version),
                    "digest": entry["object"],
                    "reader": record.get("notes", {}).get("reader"),
                }
            )
    if as_json:
        return _print(rows)
    for row in rows:
        star = f" ({row['alias']})" if row["alias"] else ""
        what = row["reader"] or say("checkpoint", "체크포인트")
        typer.echo(f"{row['name']}@{row['version']}{star}  {row['digest'][:12]}  {what}")
    if not rows:
        typer.echo(
            say(
                "No models yet: onsil grow FOLDER --name NAME",
                "아직 모델이 없습니다: onsil grow 폴더 --name 이름",
            )
        )


@app.command()
def lineage(
    target: Annotated[str, typer.Argument(help="model name or .safetensors · 이름 또는 파일")],
    as_json: Json = False,
) -> None:
    """What made this: stages, digests, times. · 무엇으로 만들었는지."""
    if target.endswith(".safetensors") or Path(target).is_file():
        said = file_lineage(Path(target))
        if as_json:
            return _print(said)
        typer.echo(f"sha256 {said['sha256']}")
        for key, node in said["nodes"].items():
            typer.echo(f"{key[:12]}  {node['stage']}")
        return
    ws = Workspace.find()
    called, version, model = ws.resolve(target)
    rows = list(history(ws, model.key))
    changed, lost = drift(ws, model.key), unrecorded(ws, model.key)
    if as_json:
        return _print({"records": [r for _, r in rows], "drift": changed, "unrecorded": lost})
    for depth, record in rows:
        typer.echo(
            f"{'  ' * depth}{record['stage']}@{record['version']}  {record['object'][:12]}  "
            f"{record['seconds']:.1f} s"
        )
    for what, file in _listed(ws, rows):
        typer.echo(f"{what}: {file.relative_to(ws.root)}")
    for name in changed:
        typer.echo(say(f"source changed since: {name}", f"만든 뒤 소스가 바뀜: {name}"))
    for key in lost:
        typer.echo(str(no_record(ws, key, called, version)), err=True)


def _listed(ws: Workspace, rows: list[tuple[int, dict]]) -> Iterator[tuple[str, Path]]:
    """What was read and the plan: what it is, and the file in the workspace that says it all."""
    for _, record in rows:
        made, notes = ws.artifact(record["object"]), record["notes"]
        if record["stage"] == "read_files":
            count = notes["documents"]
            yield say(f"{count} documents", f"문서 {count}건"), made / "documents.jsonl"
        if record["stage"] == "adopt_plan":
            yield say("plan", "계획"), made / "plan.json"


@app.command("diff")
def diff_command(a: Name, b: Name) -> None:
    """What differs between two models. · 두 모델의 차이."""
    ws = Workspace.find()
    rows = diff(ws, ws.resolve(a)[2].key, ws.resolve(b)[2].key)
    for row in rows:
        typer.echo(json.dumps(row, ensure_ascii=False))
    if not rows:
        typer.echo(say("The same bytes.", "바이트까지 같습니다."))


@app.command("verify")
def verify_command(name: Name, as_json: Json = False) -> None:
    """Re-hash a model and everything it was made from. · 다시 해시해 확인합니다."""
    ws = Workspace.find()
    model = ws.resolve(name)[2]
    rows = verify(ws, model.key, model.digest)
    if as_json:
        _print(rows)
    else:
        for row in rows:
            mark = "ok" if row["ok"] else row["reason"]
            made = f"{row['stage']}  {row['object'][:12]}"
            typer.echo(f"{mark:9}  {made if row['stage'] else 'records/' + row['key'] + '.json'}")
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


@app.command("affected")
def affected_command(
    document: Annotated[str, typer.Argument(help="path, file name or SHA-256 · 문서")],
    as_json: Json = False,
) -> None:
    """Every corpus, model and report that saw a document. · 이 문서를 본 것 모두."""
    ws = Workspace.find()
    for path in ws.unreadable():
        typer.echo(
            say(
                f"{path} cannot be read, so this list may lack something.\n"
                "Run `onsil grow` as before, then `onsil gc --delete`.",
                f"{path}을(를) 읽을 수 없어 빠진 것이 있을 수 있습니다.\n"
                "`onsil grow`를 전과 같이 실행한 다음 `onsil gc --delete`를 실행해 주세요.",
            ),
            err=True,
        )
    rows = affected(ws, document)
    if as_json:
        return _print(rows)
    for row in rows:
        typer.echo(f"{row['stage']}  {row['object'][:12]}  {' '.join(row['names'])}")


@app.command()
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="remove, not only list")] = False,
) -> None:
    """What no name reaches any more. · 어떤 이름도 가리키지 않는 것."""
    ws = Workspace.find()
    for kind, found in collect_garbage(ws, delete).items():
        typer.echo(f"{kind}: {len(found)}")
    with ws.alone() as nobody:
        if not nobody:
            typer.echo(
                say(
                    "A run is under way: what it has finished has no name yet and is counted.",
                    "실행 중인 작업이 있습니다. 그 작업이 끝낸 결과도 이름이 없어 함께 셌습니다.",
                )
            )


@app.command("load")
def load_command(
    path: Annotated[Path, typer.Argument(help="folder of a checkpoint · 체크포인트 폴더")],
    name: Annotated[str | None, typer.Option(help="default: the folder's · 이름")] = None,
) -> None:
    """A published checkpoint becomes a model here. · 공개된 체크포인트를 들여옵니다."""
    from onsil.release import check_checkpoint, inspect_model, load_checkpoint, name_of

    called = proper_name(name or name_of(path))
    check_checkpoint(path)  # before a workspace is made for it
    ws = Workspace.found_or_new(typer.echo)
    made = load_checkpoint(ws, path)
    version = ws.register(called, made)
    _describe(inspect_model(f"{called}@{version}", lambda: ws))


@app.command("write")
def write_command(
    name: Name,
    beginning: Annotated[str, typer.Argument(help="text to go on from · 시작 글")],
    tokens: Annotated[int, typer.Option(help="at most so many · 최대 토큰 수")] = 100,
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest · 0이면 늘 같음")
    ] = 0.0,
    top_p: Annotated[float, typer.Option(help="share of likeliest tokens · 후보 범위")] = 1.0,
    seed: Annotated[int, typer.Option(help="of the draw · 추첨 씨앗")] = 0,
) -> None:
    """The language model of a name goes on writing. · 언어 모델이 글을 이어 씁니다."""
    from onsil.inference import Sampling, load_writer
    from onsil.models.checkpoint import load

    _check_drawing(temperature=temperature, top_p=top_p, seed=seed, max_tokens=tokens)
    ws = Workspace.find()
    called, version, model = ws.resolve(name)
    folder = ws.whole(model)
    own = (folder / "config.json").is_file()
    parts = (folder, folder) if own else (folder / "decoder", folder / "tokenizer")
    writer = load_writer(*parts, load)
    typer.echo(beginning, nl=False)
    for piece in writer.write(beginning, tokens, Sampling(temperature, top_p, seed)):
        typer.echo(piece, nl=False)
    typer.echo("\n" + _notice(called, version))


# What the server's check says of a number, by its name there; in English and Korean.
BOUNDS = {
    "greater_than_equal": ("It is to be at least {ge}.", "{ge} 이상이어야 합니다."),
    "greater_than": ("It is to be more than {gt}.", "{gt}보다 커야 합니다."),
    "less_than_equal": ("It is to be at most {le}.", "{le} 이하여야 합니다."),
    "finite_number": ("It is to be a finite number.", "유한한 수여야 합니다."),
}


def _check_drawing(**given: Any) -> None:
    """Raises OnsilError for what the server refuses as well."""
    from pydantic import ValidationError

    from onsil.serving.schemas import Drawing

    try:
        Drawing(model="-", **given)
    except ValidationError as e:
        found = e.errors()[0]
        field, value = str(found["loc"][0]), found["input"]
        what = f"--{field.removeprefix('max_').replace('_', '-')} {value}"
        en, ko = (words.format(**found.get("ctx", {})) for words in BOUNDS[found["type"]])
        raise OnsilError(
            en=(f"{what} cannot be used.", en, "Give another one, or leave it out."),
            ko=(f"{what} 값은 쓸 수 없습니다.", ko, "값을 고치거나 빼고 다시 실행해 주세요."),
        ) from None


@app.command("inspect")
def inspect_command(
    target: Annotated[str, typer.Argument(help="folder or model · 폴더 또는 모델 이름")],
    as_json: Json = False,
) -> None:
    """Sizes, memory, licence, abilities; no weights are read. · 크기, 라이선스, 할 수 있는 일."""
    from onsil.release import inspect_model

    found = inspect_model(target, Workspace.find)
    _print(found) if as_json else _describe(found)


def _describe(found: dict[str, dict[str, Any]]) -> None:
    from onsil.release import described

    for title, what in found.items():
        typer.echo(described(title, what))


@app.command("export")
def export_command(
    name: Name,
    path: Annotated[Path, typer.Argument(help="folder to make · 새 폴더")],
) -> None:
    """Write a model as Hugging Face folders. · 다른 도구가 여는 폴더로 내보냅니다."""
    from onsil.release import export_model

    for file in export_model(Workspace.find(), name, path):
        typer.echo(str(path / file))


@app.command("merge")
def merge_command(
    names: Annotated[list[str], typer.Argument(help="two models or more · 모델 이름 둘 이상")],
    name: Annotated[str, typer.Option(help="of what comes out · 새 모델 이름")],
    method: Annotated[str, typer.Option(help="average, task, slerp · 방법")] = "average",
    amounts: Annotated[str, typer.Option(help="numbers with commas · 쉼표로 나눈 비율")] = "",
    base: Annotated[str, typer.Option(help="what they began as · 출발한 모델")] = "",
    origin: Annotated[str, typer.Option(help="who says that they began as one · 근거")] = "",
    permission: Annotated[str, typer.Option(help="who allowed it, when · 허락한 이와 때")] = "",
) -> None:
    """Models that began as one become one again. · 같은 모델에서 나온 모델들을 합칩니다."""
    from onsil.release import inspect_model, merge_models, method_of

    proper_name(name)
    ws = Workspace.find()
    how = method_of(method, amounts, len(names))
    made = merge_models(ws, names, how, base, origin, permission)
    version = ws.register(name, made)
    _describe(inspect_model(f"{name}@{version}", lambda: ws))


def main() -> None:
    """The `onsil` command: an expected error is three lines and exit code 1, never a trace."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without Hangul shows «?», not a trace
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app(standalone_mode=True)
    except OnsilError as e:
        typer.echo(str(e), err=True)
        sys.exit(1)
    except OSError as e:
        typer.echo(of_the_system(e), err=True)
        sys.exit(1)
