"""`onsil serve --check`: would it be safe to serve this, here, now? Each answer with its reason.

What can be seen before anybody connects is looked at: who could come in, what they could read, what
the model's folder could do to this machine, whether the machine is fit to serve. A finding is `ok`,
`warn` (somebody should know) or `refuse` (not like this). Nothing is changed. Part of it, the
databases of the workspace and the model's digest, is looked at whenever a server starts.

Left out: what stands around the machine (firewalls, proxies, who has an account).
"""

import json
import os
import shutil
import sqlite3
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from onsil.corpus.pii import find
from onsil.errors import OnsilError, say
from onsil.lineage import Workspace
from onsil.serving.access import SHORTEST_KEY, fit_key, given_key, place_of_key
from onsil.serving.feedback import FILE, FOLDER
from onsil.serving.keys import list_keys
from onsil.serving.monitoring import PREDICTIONS
from onsil.serving.request_log import read_lines
from onsil.serving.settings import Settings

OK, WARN, REFUSE = "ok", "warn", "refuse"
FEWEST_CHARACTERS = 8  # different ones, in a key somebody chose
LEAST_FREE, LITTLE_FREE = 200_000_000, 2_000_000_000  # bytes
SOON = 14 * 86_400.0  # seconds; a certificate that ends sooner is worth a word
SKEW = 60.0  # seconds a clock may be behind
PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".npy", ".dill"}
PROGRAMS = {".py", ".pyc", ".so", ".sh", ".dll"}
PICKLE = "a pickle, which can run anything when it is opened", "열면 무엇이든 실행할 수 있는 피클"
PRIVATE = (
    "key", "keys.json", "budgets", "logs/requests.jsonl", PREDICTIONS, f"{FOLDER}/{FILE}",
    "jobs/jobs.db",
)  # fmt: skip
REMOTE = ("auto_map", "trust_remote_code", "custom_pipelines")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `ok`, `warn` or `refuse`, and why, in both languages."""

    state: str
    en: str
    ko: str

    def __str__(self) -> str:
        words = {OK: ("ok", "정상"), WARN: ("warn", "주의"), REFUSE: ("refuse", "거부")}
        return f"{say(*words[self.state]).ljust(7)} {say(self.en, self.ko)}"


def check(ws: Workspace, name: str, settings: Settings) -> list[Finding]:
    """Every finding about serving `name` this way. Raises OnsilError when there is no such."""
    folder = ws.resolve(name)[2].path
    return [
        *_door(settings),
        *_key(ws),
        *_files(ws),
        *_predictions(ws, settings),
        *_kept(settings),
        *_model(ws, name),
        *_folder(folder),
        *_template(folder),
        *_machine(ws),
        *_databases(ws),
        *_notice(settings),
    ]


def told(findings: list[Finding], tell: Callable[[str], object]) -> int:
    """Print every finding and the verdict: the exit code, 1 when anything is refused."""
    for finding in findings:
        tell(str(finding))
    refused = sum(f.state == REFUSE for f in findings)
    warned = sum(f.state == WARN for f in findings)
    tell(
        say(
            f"{refused} refused, {warned} to know about, of {len(findings)} checks.",
            f"점검 {len(findings)}건 가운데 거부 {refused}건, 주의 {warned}건입니다.",
        )
    )
    return 1 if refused else 0


def self_check(ws: Workspace) -> None:
    """What a server makes sure of before it says that it is ready, beside the model's own digest.
    Raises OnsilError when a database of the workspace is damaged."""
    for finding in _databases(ws):
        if finding.state == REFUSE:
            raise OnsilError(
                en=(
                    finding.en,
                    "Accepted work could be lost or done twice on top of it.",
                    "Put back a copy of the file, or move it away to begin an empty one.",
                ),
                ko=(
                    finding.ko,
                    "이대로 쓰면 받은 일을 잃거나 두 번 할 수 있습니다.",
                    "사본으로 되돌리거나, 파일을 옮겨 두고 새로 시작해 주세요.",
                ),
            )


# -- who can come in ------------------------------------------------------------------------------


def _door(settings: Settings) -> Iterator[Finding]:
    host = settings.host
    if not settings.public:
        yield Finding(
            OK, f"{host}: reached from this machine only.", f"{host}: 이 컴퓨터에서만 접속합니다."
        )
    elif not given_key():
        yield Finding(
            REFUSE,
            f"{host}: other machines could come in with a key nobody chose. Set $ONSIL_KEY.",
            f"{host}: 직접 정한 키 없이 다른 컴퓨터에 열려 있습니다. $ONSIL_KEY를 지정해 주세요.",
        )
    else:
        yield Finding(
            OK, f"{host}: open on purpose, with a key.", f"{host}: 직접 정한 키로 열려 있습니다."
        )
    yield from _tls(settings)


def _tls(settings: Settings) -> Iterator[Finding]:
    if settings.tls is None:
        if settings.public:
            yield Finding(
                REFUSE,
                "No TLS: keys and questions would cross the network in the clear. Give --tls-cert "
                "and --tls-key, or stay on 127.0.0.1 behind a proxy that has them.",
                "TLS가 없어 키와 질문이 암호화되지 않은 채 오갑니다. --tls-cert와 --tls-key를 "
                "지정하거나, TLS를 맡은 프록시 뒤에서 127.0.0.1로만 여세요.",
            )
        return
    try:
        left = settings.tls.checked()
    except OnsilError as e:
        yield _of(e)
        return
    days = int(left // 86_400)
    yield Finding(
        WARN if left < SOON else OK,
        f"TLS: the certificate is good for {days} days.",
        f"TLS: 인증서가 {days}일 남았습니다.",
    )


def _of(error: OnsilError) -> Finding:
    """A refusal in an error's own words."""
    return Finding(REFUSE, " ".join(filter(None, error.en)), " ".join(filter(None, error.ko)))


def _key(ws: Workspace) -> Iterator[Finding]:
    chosen, path = given_key(), ws.root / "key"
    key = chosen or (path.read_text().strip() if path.exists() else "")
    if not all("!" <= c <= "~" for c in chosen):
        try:
            fit_key(chosen)
        except OnsilError as e:
            yield _of(e)
    elif not key:
        yield Finding(
            OK,
            "The key will be made when the server starts.",
            "키는 서버가 시작할 때 만들어집니다.",
        )
    elif len(key) < SHORTEST_KEY or _guessable(key):
        where = place_of_key(ws.root)
        yield Finding(
            REFUSE,
            f"The key in {where} can be guessed ({len(key)} characters, {len(set(key))} "
            "different). Take one from: openssl rand -base64 32",
            f"{where}의 키는 알아맞힐 수 있습니다({len(key)}자, 서로 다른 글자 {len(set(key))}개). "
            "openssl rand -base64 32 로 만든 키를 쓰세요.",
        )
    else:
        yield Finding(
            OK, f"The key has {len(key)} characters.", f"키가 {len(key)}자로 충분히 깁니다."
        )
    try:
        others = list_keys(ws.root)
    except OnsilError as e:
        yield _of(e)
        return
    free = [k.name for k in others if k.requests_per_minute is None and k.tokens_per_day is None]
    if free:
        names = ", ".join(free)
        yield Finding(
            WARN, f"Keys without any limit: {names}.", f"한도가 없는 키가 있습니다: {names}."
        )


def _guessable(key: str) -> bool:
    """Few different characters, one part again and again, or a run of neighbours (abcdefgh…)."""
    steps = Counter(ord(b) - ord(a) for a, b in pairwise(key))
    return (
        len(set(key)) < FEWEST_CHARACTERS
        or key in (key + key)[1:-1]
        or steps.most_common(1)[0][1] > len(key) // 2
    )


# -- what others on this machine could read -------------------------------------------------------


def _reachable(path: Path, bits: int) -> bool:
    """Whether others have one of these permissions on `path` and a way to it."""
    if not path.stat().st_mode & bits:
        return False
    return all(p.stat().st_mode & 0o011 for p in path.resolve().parents)


def _files(ws: Workspace) -> Iterator[Finding]:
    if os.name != "posix":
        return
    for path in (ws.root / name for name in PRIVATE):
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding(
                REFUSE,
                f"{path} can be read by others on this machine. chmod 600 {path}",
                f"{path}: 이 컴퓨터의 다른 사용자도 읽을 수 있습니다. chmod 600 {path}",
            )
    if _reachable(ws.root, 0o077):
        yield Finding(
            REFUSE,
            f"{ws.root} (documents, models, names) is open to others on this machine. "
            f"chmod 700 {ws.root}",
            f"{ws.root}(문서, 모델, 이름)이(가) 이 컴퓨터의 다른 사용자에게 열려 있습니다. "
            f"chmod 700 {ws.root}",
        )
    else:
        yield Finding(OK, f"{ws.root} is yours alone.", f"{ws.root}은(는) 본인만 열 수 있습니다.")


def _predictions(ws: Workspace, settings: Settings) -> Iterator[Finding]:
    path = ws.root / PREDICTIONS
    rows = list(read_lines(path)) if path.exists() else []
    bare = sum(bool(find(json.dumps(row, ensure_ascii=False))) for row in rows[-2_000:])
    if bare:
        yield Finding(
            REFUSE,
            f"{path}: {bare} rows hold identifiers that are not masked. Delete the file.",
            f"{path}: 개인정보가 가려지지 않은 기록이 {bare}건 있습니다. 파일을 지워 주세요.",
        )
    elif settings.log_predictions:
        yield Finding(
            WARN,
            "Questions and answers are kept. Identifiers are masked; names and addresses are not.",
            "질문과 답을 저장합니다. 개인정보는 가리지만 이름과 주소는 가리지 못합니다.",
        )
    else:
        yield Finding(OK, "Nothing asked or answered is kept.", "질문과 답을 저장하지 않습니다.")


def _kept(settings: Settings) -> Iterator[Finding]:
    days = settings.keep_days
    if days:
        yield Finding(
            OK,
            f"Finished jobs and their files are forgotten after {days:g} days.",
            f"끝난 작업과 그 파일은 {days:g}일 뒤에 지웁니다.",
        )
    else:
        yield Finding(
            WARN,
            "Finished jobs and files are kept for ever, questions and answers included. "
            "--keep-days 30 forgets them.",
            "끝난 작업과 파일을 질문과 답까지 지우지 않고 보관합니다. "
            "--keep-days 30처럼 기한을 정할 수 있습니다.",
        )


# -- what the model's folder could do -------------------------------------------------------------


def _model(ws: Workspace, name: str) -> Iterator[Finding]:
    called, version, made = ws.resolve(name)
    try:
        ws.whole(made)
    except OnsilError as e:
        yield _of(e)
        return
    short = f"{called}@{version} {made.digest[:12]}"
    yield Finding(OK, f"{short}: every byte is there.", f"{short}: 모든 바이트가 그대로입니다.")


def _folder(folder: Path) -> Iterator[Finding]:
    """Files that could run something, or name a place to fetch what could."""
    found = False
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        where, why = path.relative_to(folder), ()
        if path.suffix in PROGRAMS:
            why = "a program", "프로그램"
        elif path.suffix in PICKLES or _pickled(path):
            why = PICKLE
        elif path.suffix == ".json" and (names := _remote(path)):
            why = f"a reference to code elsewhere ({names})", f"외부 코드를 가리키는 설정({names})"
        if why:
            found = True
            yield Finding(
                REFUSE,
                f"{where} is {why[0]}. Weights belong in .safetensors, settings in plain JSON.",
                f"{where}: {why[1]}입니다. 가중치는 .safetensors, 설정은 JSON만 둘 수 있습니다.",
            )
    if not found:
        yield Finding(OK, "The model's folder holds data only.", "모델 폴더에는 데이터만 있습니다.")


def _pickled(path: Path) -> bool:
    """Whether a file begins as a pickle does (protocol 2 to 5), or as a zip, which may hold one."""
    with path.open("rb") as f:
        head = f.read(4)
    return head == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05")


def _remote(path: Path) -> str:
    if path.stat().st_size > 1_000_000:  # a tokenizer, not a setting
        return ""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return ""
    return ", ".join(k for k in REMOTE if isinstance(settings, dict) and settings.get(k))


def _template(folder: Path) -> Iterator[Finding]:
    """The chat template, used once on a short talk, confined as in the server."""
    if not (folder / "tokenizer.json").is_file():
        return
    from onsil.inference.prompts import load_prompts
    from onsil.tokenizer import load_tokenizer

    try:
        prompts = load_prompts(folder, load_tokenizer(folder), 100_000, frozenset())
        if not prompts.chats:
            return
        try:
            prompts.chat([{"role": "user", "content": "?"}])
        finally:
            prompts.confined.close()
    except OnsilError as e:
        yield _of(e)
        return
    yield Finding(
        OK,
        "The chat template keeps to its sandbox.",
        "대화 템플릿이 격리된 환경에서 정상으로 동작합니다.",
    )


# -- the machine ----------------------------------------------------------------------------------


def _machine(ws: Workspace) -> Iterator[Finding]:
    free = shutil.disk_usage(ws.root).free
    state = REFUSE if free < LEAST_FREE else WARN if free < LITTLE_FREE else OK
    yield Finding(
        state,
        f"{free / 1e9:,.1f} GB of disk are free.",
        f"디스크 여유 공간이 {free / 1e9:,.1f} GB입니다.",
    )
    last = max((record["finished_at"] for record in ws.records()), default=0.0)
    behind = last - time.time()
    if behind > SKEW:
        yield Finding(
            REFUSE,
            f"The clock is {behind:,.0f} s before the last record: days, deadlines and budgets "
            "would be wrong. Set the clock.",
            f"시계가 마지막 기록보다 {behind:,.0f}초 늦습니다. 날짜, 기한, 한도가 어긋납니다. "
            "시계를 맞춰 주세요.",
        )
    else:
        yield Finding(
            OK, "The clock is after the last record.", "시계가 마지막 기록 뒤에 있습니다."
        )


def _databases(ws: Workspace) -> Iterator[Finding]:
    for path in sorted([*ws.root.glob("*.db"), *ws.root.glob("*/*.db")]):
        why = _damage(path)
        if why:
            yield Finding(
                REFUSE, f"{path} is damaged: {why}.", f"{path}이(가) 손상되었습니다: {why}."
            )
        else:
            yield Finding(OK, f"{path.name} is whole.", f"{path.name}은(는) 온전합니다.")


def _damage(path: Path) -> str:
    """What SQLite's own check says of a database; empty when nothing."""
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        try:
            rows = database.execute("PRAGMA quick_check(1)").fetchall()
        finally:
            database.close()
    except sqlite3.DatabaseError as e:
        return str(e)
    return "" if rows == [("ok",)] else str(rows[0][0])


def _notice(settings: Settings) -> Iterator[Finding]:
    if settings.mark.on:
        yield Finding(
            OK, "Answers are marked as made by AI.", "인공지능이 만든 답이라고 표시합니다."
        )
    elif settings.public:
        yield Finding(
            REFUSE,
            "Others would not be told that a machine answers. Leave out --no-ai-notice.",
            "이용자가 인공지능의 답인지 알 수 없습니다. --no-ai-notice를 빼 주세요.",
        )
    else:
        yield Finding(
            WARN,
            "Answers are not marked as made by AI.",
            "인공지능이 만든 답이라는 표시가 없습니다.",
        )
