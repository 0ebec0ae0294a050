"""Quality in use: the prediction log, drift, how often there was no answer, what people said.

Without being asked to, a server keeps no word of what it is asked; abstention is counted from the
request log, which has none. With `--log-predictions` each request and its answer are kept in the
workspace, identifiers masked as in a corpus (names and addresses are not: see `corpus/pii.py`), for
the owner's eyes, up to a size. From that come drift, by `drift.py`, and replay: the logged request
asked again of the logged model, in this process, and the answers compared by their digest. Where
anything was masked no digest is kept, because a number masked could be guessed from one; such a
request cannot be replayed and says so.
"""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from onsil.corpus.pii import mask
from onsil.errors import OnsilError
from onsil.lineage import Workspace
from onsil.serving import inprocess
from onsil.serving.drift import FEWEST, Drift, drift, spelled, wilson
from onsil.serving.feedback import checked, keep, read_feedback
from onsil.serving.guard import JsonAnswer, Refused, parse
from onsil.serving.keys import OWNER
from onsil.serving.metrics import FEEDBACK, Metrics
from onsil.serving.request_log import JsonLines, Observation, read_lines

PREDICTIONS = "logs/predictions.jsonl"  # in the workspace
LONGEST, WAITING = 64_000, 256  # bytes of a request kept with its text; answers not yet written
REFERENCE, WINDOW, DAYS = 500, 200, 30  # questions, questions, days that are shown
STALE = 300.0  # seconds after which drift is looked at again
PAGE = Path(__file__).with_name("page")
DOORS = {"/v1/chat/completions", "/v1/completions", "/v1/responses"}


def prediction(seen: Observation) -> dict[str, Any]:
    """What is kept of one answered request, masked."""
    body = json.loads(seen.body) if seen.body else {}
    request, found = masked(body)
    answer, in_answer = masked(seen.answer or "")
    row = {
        "id": seen.request_id,
        "at": round(seen.at, 3),
        "owner": seen.owner,
        "path": seen.path,
        "model": seen.model,
        "digest": seen.digest,
        "answered": seen.answered,
        "cited": seen.cited,
        "request": request,
        "seed": seen.seed,
        "answer": answer,
        "masked": found + in_answer,
    }
    return row if row["masked"] else row | {"sha256": digest_of(seen.answer)}


def masked(value: Any) -> tuple[Any, int]:
    """A JSON value with every identifier in its texts masked, and how many there were."""
    if isinstance(value, str):
        text, counts = mask(value)
        return text, counts.total()
    if isinstance(value, list):
        parts = [masked(v) for v in value]
        return [v for v, _ in parts], sum(n for _, n in parts)
    if isinstance(value, dict):
        pairs = [(masked(k), masked(v)) for k, v in value.items()]
        return {k: v for (k, _), (v, _) in pairs}, sum(a + b for (_, a), (_, b) in pairs)
    return value, 0


def digest_of(answer: str | None) -> str:
    return hashlib.sha256((answer or "").encode()).hexdigest()


def question_of(request: dict[str, Any]) -> str:
    """The last thing a person said in a logged request; empty where there is no text of theirs."""
    turns = request.get("messages") or request.get("input") or request.get("prompt") or ""
    if isinstance(turns, list):
        said = [t for t in turns if isinstance(t, dict) and t.get("role") == "user"]
        turns = said[-1].get("content", "") if said else ""
    if isinstance(turns, list):
        turns = "\n".join(str(p.get("text", "")) for p in turns if isinstance(p, dict))
    return turns if isinstance(turns, str) else ""


# -- replay ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replayed:
    """A logged request asked again: of which model, and whether it said the same bytes."""

    model: str
    digest: str
    same: bool
    before: str
    now: str


def logged(ws: Workspace, request_id: str) -> dict[str, Any]:
    """The row of a request in the prediction log. Raises OnsilError when there is none."""
    rows = [r for r in read_lines(ws.root / PREDICTIONS) if r.get("id") == request_id]
    if not rows:
        raise _no_replay(request_id, "it is not in the prediction log", "예측 기록에 없습니다")
    return rows[-1]


async def replay(ws: Workspace, row: dict[str, Any], app: ASGIApp) -> Replayed:
    """Ask a logged request again of the model that answered it, with the seed that was drawn then.
    `app`: the doors of that model, without guard. Raises OnsilError when it cannot be asked again
    or is refused."""
    request_id = row["id"]
    if row["masked"]:
        why = f"{row['masked']} identifiers in it were masked"
        raise _no_replay(request_id, why, f"개인정보 {row['masked']}건을 가렸습니다")
    name = row["model"].partition("@")[0]
    entries = ws.versions(name).items()
    version = next((v for v, e in entries if e["object"] == row["digest"]), None)
    if version is None or not row["request"]:
        why = f"model {row['digest'][:12]} or the request's text is no longer kept"
        raise _no_replay(
            request_id, why, f"모델 {row['digest'][:12]} 또는 질문이 남아 있지 않습니다"
        )
    ws.whole(ws.resolve(f"{name}@{version}")[2])
    left_out = ("stream", "stream_options")
    body = {k: v for k, v in row["request"].items() if k not in left_out}
    body |= {"model": f"{name}@{version}"}
    reply = await inprocess.post(app, row["path"], body, seed=row.get("seed"))
    if reply.status != 200:
        raise _no_replay(request_id, reply.message, reply.message)
    now, same = reply.seen.answer or "", digest_of(reply.seen.answer) == row["sha256"]
    return Replayed(f"{name}@{version}", reply.seen.digest, same, row["answer"], now)


def _no_replay(request_id: str, why: str, ko_why: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{request_id!r} cannot be asked again: {why}.",
            "A replay needs the very request and the very model.",
            "Serve with --log-predictions to keep requests.",
        ),
        ko=(
            f"{request_id!r}을(를) 다시 물어볼 수 없습니다: {ko_why}.",
            "다시 물으려면 그때의 질문과 그때의 모델이 모두 있어야 합니다.",
            "질문을 남기려면 --log-predictions로 실행해 주세요.",
        ),
    )


# -- the whole of it ------------------------------------------------------------------------------


class Monitoring:
    """What one server notices of its answers: a sink for observations, and the page about them."""

    def __init__(self, ws: Workspace, name: str, log: JsonLines, metrics: Metrics, keeps: bool):
        self.ws, self.name, self.metrics = ws, name, metrics
        self.predictions = JsonLines(ws.root / PREDICTIONS, waiting=WAITING) if keeps else None
        self._days: Counter[tuple[str, bool]] = Counter()
        self._drift: tuple[float, Drift | None] = (-STALE, None)
        self._known: tuple[str, frozenset[str]] = ("", frozenset())
        self._lock, self._looking = threading.Lock(), threading.Lock()
        before = log.path, time.time()
        threading.Thread(target=self._count_before, args=before, daemon=True).start()
        metrics.watch("onsil.abstention.rate", self._today)
        for gauge, value in GAUGES.items():
            metrics.watch(gauge, lambda value=value: self._of_drift(value))

    def __call__(self, seen: Observation) -> None:
        if seen.answered is not None:
            with self._lock:
                self._days[_day(seen.at), seen.answered] += 1
        if self.predictions and seen.answer is not None and seen.path in DOORS:
            if len(seen.body) > LONGEST:
                seen = replace(seen, body=b"")
            self.predictions.append(lambda: prediction(seen))

    @property
    def dropped(self) -> int:
        """Predictions that could not be written."""
        return self.predictions.dropped if self.predictions else 0

    def close(self) -> None:
        if self.predictions:
            self.predictions.close()

    def _count_before(self, path: Path, began: float) -> None:
        """The days before this server began, from the log of those before it."""
        counted = Counter[tuple[str, bool]]()
        for row in read_lines(path):
            answered, at = row.get("answered"), row.get("time")
            if isinstance(answered, bool) and isinstance(at, float) and at < began:
                counted[_day(at), answered] += 1
        with self._lock:
            self._days += counted

    def _today(self) -> float | None:
        with self._lock:
            yes, no = (self._days[_day(time.time()), answered] for answered in (True, False))
        return no / (yes + no) if yes + no else None

    def _of_drift(self, value: Callable[[Drift], float]) -> float | None:
        """A number of the last look; a stale one starts another, which nobody waits for."""
        at, found = self._drift
        stale = self.predictions and time.monotonic() - at > STALE
        if stale and not self._looking.locked():
            threading.Thread(target=self.look, name="drift", daemon=True).start()
        return value(found) if found else None

    def look(self) -> Drift | None:
        """Drift as of now, at most `STALE` seconds old."""
        with self._looking:
            if time.monotonic() - self._drift[0] > STALE:
                rows = read_lines(self.ws.root / PREDICTIONS)
                asked = [q for q in (question_of(r.get("request") or {}) for r in rows) if q]
                first = min(REFERENCE, len(asked) // 2)
                found = drift(asked[:first], asked[first:][-WINDOW:], self._is_known())
                self._drift = time.monotonic(), found
            return self._drift[1]

    def _is_known(self) -> Callable[[str], bool]:
        """Whether a term stands in a document of the model that answers now."""
        from onsil.corpus import load_corpus
        from onsil.retrieval.passages import passages_of, reading_text

        _, _, made = self.ws.resolve(self.name)
        if self._known[0] != made.digest:
            corpus = made.path / "corpus"
            documents = load_corpus(corpus).documents if corpus.is_dir() else ()
            texts = map(reading_text, passages_of(documents))
            self._known = made.digest, frozenset(t for text in texts for t in spelled(text))
        known = self._known[1]
        return lambda term: term in known

    def told(self) -> dict[str, Any]:
        """What the page shows."""
        with self._lock:
            days = sorted({day for day, _ in self._days})[-DAYS:]
            counts = [(d, self._days[d, True], self._days[d, False]) for d in days]
        said = read_feedback(self.ws.root, self.name)
        found = self.look() if self.predictions else None
        shares = [asdict(wilson(no, yes + no)) for _, yes, no in counts]
        return {
            "name": self.name,
            "keeps_predictions": self.predictions is not None,
            "days": [
                {"day": day, "asked": yes + no, "abstained": no, "share": share}
                for (day, yes, no), share in zip(counts, shares, strict=True)
            ],
            "drift": found and asdict(found),
            "drifted": {"words": found.words.drifted, "concepts": found.concepts.drifted}
            if found
            else None,
            "needed": 2 * FEWEST,
            "feedback": dict(Counter(row["verdict"] for row in said)),
            "recent": [
                {k: row.get(k, "") for k in ("id", "verdict", "question", "answer", "correct")}
                for row in said[:-21:-1]
            ],
        }

    # -- routes -----------------------------------------------------------------------------------

    async def data(self, request: Request) -> Response:
        _owners_only(request)
        return JsonAnswer(await run_in_threadpool(self.told))

    async def page(self, request: Request) -> Response:
        _owners_only(request)
        return FileResponse(PAGE / "monitor.html", media_type="text/html; charset=utf-8")

    async def script(self, request: Request) -> Response:
        return FileResponse(PAGE / "monitor.js", media_type="text/javascript; charset=utf-8")

    async def hear(self, request: Request) -> Response:
        """`POST /v1/feedback`."""
        fields = checked(parse(request.state.body))
        said = await run_in_threadpool(keep, self.ws.root, self.name, request.state.owner, fields)
        self.metrics.count(FEEDBACK, verdict=fields["verdict"])
        return JsonAnswer({"object": "feedback", "id": said}, 201)

    def routes(self) -> list[Route]:
        return [
            Route("/monitor", self.page),
            Route("/monitor.js", self.script),
            Route("/monitor/data", self.data),
            Route("/v1/feedback", self.hear, methods=["POST"]),
        ]


GAUGES: dict[str, Callable[[Drift], float]] = {
    "onsil.drift.psi": lambda found: found.words.psi,
    "onsil.drift.noise_floor": lambda found: found.words.floor,
    "onsil.drift.unknown_words": lambda found: found.unknown.value,
}


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at))


def _owners_only(request: Request) -> None:
    if request.state.owner != OWNER:
        raise Refused(403, "This page is for the owner of the workspace.", "permission_error")
