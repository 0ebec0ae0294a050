"""The commands about serving: parse, call one verb, print."""

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onsil.errors import OnsilError, say
from onsil.lineage import Workspace

if TYPE_CHECKING:
    from onsil.serving.settings import Settings

Name = Annotated[str, typer.Argument(help="model: desk, desk@v3 · 모델 이름")]
VERDICTS = {"good": "좋아요", "bad": "아니에요"}
PLACEMENTS = ("inline", "pool", "process", "ray")
keys = typer.Typer(help="Keys for others, with budgets. · 다른 사람의 키와 한도.")


def serve(
    name: Annotated[str, typer.Argument(help="model, or a file serve.py · 모델 또는 파일")],
    host: Annotated[str, typer.Option(help="address to listen on · 주소")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one · 0이면 빈 포트")] = 8000,
    check: Annotated[
        bool, typer.Option("--check", help="only look whether it is safe · 점검만")
    ] = False,
    hostname: Annotated[
        list[str] | None, typer.Option(help="a name others use for this machine · 서버 이름")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM · 인증서")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM · 인증서의 키")] = None,
    drain_seconds: Annotated[
        float, typer.Option(help="for what runs, when told to stop · 종료 대기(초)")
    ] = 20.0,
    jobs: Annotated[str, typer.Option(help="postgresql://… to share jobs · 작업 저장소 주소")] = "",
    webhook_host: Annotated[
        list[str] | None, typer.Option(help="host:port that may be told · 알림을 받을 곳")
    ] = None,
    keep_days: Annotated[
        float, typer.Option(help="that jobs and files stay; 0: for ever · 작업 보관(일)")
    ] = 30.0,
    log_predictions: Annotated[
        bool, typer.Option("--log-predictions", help="keep questions, masked · 질문 기록")
    ] = False,
    ai_notice: Annotated[
        bool, typer.Option("--ai-notice/--no-ai-notice", help="say that AI wrote it · AI 표시")
    ] = True,
    placement: Annotated[
        str, typer.Option(help="of serve.py: inline, pool, process, ray · 배치 방식")
    ] = "inline",
) -> None:
    """A page and an OpenAI-style API for a model, on this machine. · 웹 화면과 API."""
    from onsil.serving.ai_mark import AIMark
    from onsil.serving.settings import Settings
    from onsil.serving.tls import tls_files

    settings = Settings(
        host=host,
        port=port,
        hostnames=tuple(hostname or ()),
        tls=tls_files(tls_cert, tls_key),
        drain_seconds=drain_seconds,
        mark=AIMark(ai_notice),
        log_predictions=log_predictions,
        jobs=jobs,
        webhook_hosts=tuple(called.lower() for called in webhook_host or ()),
        keep_days=keep_days,
    )
    if name.endswith(".py"):
        return _serve_file(Path(name), settings, placement, check)
    if placement != "inline":
        raise _no_placement(placement, name)
    ws = Workspace.find()
    if check:
        return _check(ws, name, settings)
    from onsil.serving.run import serve as run_server

    run_server(ws, name, settings, typer.echo)


def _serve_file(file: Path, settings: "Settings", placement: str, check: bool) -> None:
    from onsil.serving.deployed import read_deployment

    made = read_deployment(file)
    if check:
        return _check(made.ws, made.first_model(), settings)
    made.run(placed(placement), settings, typer.echo)


def _check(ws: Workspace, name: str, settings: "Settings") -> None:
    from onsil.serving import checking

    raise typer.Exit(checking.told(checking.check(ws, name, settings), typer.echo))


def _no_placement(placement: str, name: str) -> OnsilError:
    return OnsilError(
        en=(
            f"--placement {placement} does not go with {name}.",
            "It says where the steps of a file serve.py run; a model has no steps.",
            "Leave --placement out, or name such a file.",
        ),
        ko=(
            f"{name}에는 --placement {placement}을(를) 쓸 수 없습니다.",
            "serve.py 파일의 단계를 어디에서 실행할지 정하는 값이고, 모델에는 단계가 없습니다.",
            "--placement를 빼거나 그런 파일을 지정해 주세요.",
        ),
    )


def placed(name: str) -> Any:
    """A placement by its name. Raises OnsilError for any other word."""
    if name in PLACEMENTS:
        return name
    known = ", ".join(PLACEMENTS)
    raise OnsilError(
        en=(
            f"--placement {name} is none.",
            "It says where the steps of a deployment run.",
            f"Take one of {known}.",
        ),
        ko=(
            f"--placement {name}은(는) 없는 방식입니다.",
            "배포 파일의 단계를 어디에서 실행할지 정하는 값입니다.",
            f"다음 가운데 하나를 지정해 주세요: {known}.",
        ),
    )


@keys.callback(invoke_without_command=True)
def list_keys(context: typer.Context) -> None:
    """Who has a key, and its limits. · 키 목록."""
    if context.invoked_subcommand is not None:
        return
    from onsil.serving.keys import list_keys as found

    known = found(Workspace.find().root)
    for key in known:
        made = time.strftime("%Y-%m-%d", time.localtime(key.made))
        rate, most = key.requests_per_minute or "–", key.tokens_per_day or "–"
        limits = say(f"{rate}/min  {most} tokens/day", f"분당 {rate}회  하루 {most}토큰")
        typer.echo(f"{key.name:20} {made}  {limits}")
    if not known:
        typer.echo(
            say(
                "Nobody has a key but you: onsil keys add NAME",
                "다른 사람의 키가 없습니다: onsil keys add 이름",
            )
        )


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="whose it is · 이름")],
    requests_per_minute: Annotated[
        int | None, typer.Option(help="none: no limit · 분당 요청")
    ] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help="none: no limit · 하루 토큰")] = None,
) -> None:
    """Make a key; it is shown this once. · 키를 만듭니다(한 번만 보입니다)."""
    from onsil.serving.keys import add_key as add

    typer.echo(add(Workspace.found_or_new().root, name, requests_per_minute, tokens_per_day))
    typer.echo(
        say("Hand it over now: it is not shown again.", "다시 볼 수 없으니 지금 전해 주세요."),
        err=True,
    )


@keys.command("remove")
def remove_key(name: Annotated[str, typer.Argument(help="whose it is · 이름")]) -> None:
    """Take a key away, from the next request on. · 키를 없앱니다."""
    from onsil.serving.keys import remove_key as remove

    remove(Workspace.find().root, name)
    typer.echo(say(f"{name} is shut out.", f"{name}의 키로는 이제 들어올 수 없습니다."))


def replay(
    request: Annotated[str, typer.Argument(help="its x-request-id · 요청 번호")],
) -> None:
    """Ask a logged request again of the same model. · 기록된 질문을 그 모델에 다시 묻습니다."""
    from onsil.serving.access import Access
    from onsil.serving.app import build
    from onsil.serving.monitoring import logged
    from onsil.serving.monitoring import replay as again

    ws = Workspace.find()
    row = logged(ws, request)
    doors = build(ws, row["model"].partition("@")[0], Access("-" * 32), frozenset()).app
    found = asyncio.run(again(ws, row, doors))
    made = f"{found.model} ({found.digest[:12]})"
    if found.same:
        typer.echo(say(f"The same bytes from {made}.", f"{made}의 답이 그대로입니다."))
        return
    typer.echo(say(f"Another answer from {made}:", f"{made}의 답이 달라졌습니다:"))
    for mark, text in (("-", found.before), ("+", found.now)):
        typer.echo(f"{mark} {on_one_line(text)}")
    raise typer.Exit(1)


def on_one_line(text: str) -> str:
    """What somebody sent, for a terminal: nothing in it moves the cursor or begins a line."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "·" for c in text)


def feedback(
    name: Name,
    adopt: Annotated[
        list[str] | None, typer.Option(help="teach these, or all · 학습에 쓸 의견, all은 전부")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="teach these no longer · 학습에서 뺄 의견")
    ] = None,
) -> None:
    """What people said of answers; what you adopt, the next grow teaches. · 답에 대한 의견."""
    from onsil.evaluation.report_words import feedback_words
    from onsil.serving import feedback as said

    ws = Workspace.find()
    called = ws.resolve(name)[0]
    changed = None
    if adopt:
        changed = said.adopt(ws, called, None if adopt == ["all"] else adopt)
    if drop:
        changed = said.drop(ws, called, drop)
    if changed:
        ko, en = feedback_words(changed[1])
        typer.echo(f"{changed[0]}: {say(en, ko)}")
        typer.echo(say("It counts from the next grow on.", "다음에 모델을 기를 때부터 반영됩니다."))
        return
    rows = said.read_feedback(ws.root, called)
    adopted = {row["id"]: row for row in said.adopted_rows(ws, called)}
    for row in list({**adopted, **{row["id"]: row for row in rows}}.values()):
        right = f" → {on_one_line(row['correct'])}" if row.get("correct") else ""
        mark = say("adopted", "채택") if row["id"] in adopted else ""
        verdict = say(row["verdict"], VERDICTS[row["verdict"]])
        typer.echo(f"{row['id']}  {verdict:4}  {mark:7}  {on_one_line(row['question'])}{right}")
    if not rows and not adopted:
        typer.echo(
            say(f"Nobody has said anything of {called} yet.", f"{called}에 대한 의견이 없습니다.")
        )


def register(app: typer.Typer) -> None:
    """Give the program these commands."""
    app.command("serve")(serve)
    app.command("replay")(replay)
    app.command("feedback")(feedback)
    app.add_typer(keys, name="keys")
