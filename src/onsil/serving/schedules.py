"""Work at given times: slots, and a thread that submits one job for each.

A slot is a moment by the clock (every full hour, 02:00 each night), not a distance from the last
run: two servers, and one that was restarted, agree on which slot it is, and the job store takes a
slot's key once. So a slot runs once however many ask for it. One that passed while no server was up
is made up for at the next start, the last alone.

Times of a cron line are those of the machine's zone. Left out: names of days and months, `@daily`.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from onsil.errors import OnsilError

LOOK = 1.0  # seconds between looks at the clock
FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
log = logging.getLogger("onsil.serving")


@dataclass(frozen=True)
class Every:
    """Each multiple of so many seconds since 1970."""

    seconds: float

    def last(self, now: float) -> float:
        """The latest slot that is not after `now` (epoch seconds)."""
        return now // self.seconds * self.seconds


@dataclass(frozen=True)
class Cron:
    """Five fields, minute hour day month weekday: numbers, `*`, `a-b`, `/n`, lists of those; 0 and
    7 are Sunday. With day and weekday both given, either will do, as in cron(8)."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool

    def last(self, now: float) -> float:
        """The latest slot that is not after `now` (epoch seconds), at most five years ago."""
        at = datetime.fromtimestamp(now).replace(second=0, microsecond=0)
        oldest = at - timedelta(days=5 * 366)
        while at > oldest:
            if not self._on(at):
                at = at.replace(hour=23, minute=59) - timedelta(days=1)
            elif at.hour not in self.hours:
                at = at.replace(minute=59) - timedelta(hours=1)
            elif at.minute not in self.minutes:
                at -= timedelta(minutes=1)
            else:
                return at.timestamp()
        return 0.0

    def _on(self, at: datetime) -> bool:
        day, weekday = at.day in self.days, at.isoweekday() % 7 in self.weekdays
        return at.month in self.months and (day or weekday if self.either else day and weekday)


def every_so_often(seconds: float) -> Every:
    """Raises OnsilError for less than a second: a slot is named by its second."""
    if not 1 <= seconds < float("inf"):
        raise OnsilError(
            en=(
                f"every={seconds!r} is no time between two slots.",
                "A slot is named by its second.",
                "Give one second at least, every=3600 for each full hour.",
            ),
            ko=(
                f"every={seconds!r}은(는) 쓸 수 없는 간격입니다.",
                "실행 시각은 초 단위로 구별합니다.",
                "1초 이상으로 지정해 주세요. 매시 정각은 every=3600입니다.",
            ),
        )
    return Every(seconds)


def cron_times(line: str) -> Cron:
    """A cron line. Raises OnsilError for one that is none."""
    parts = line.split()
    if len(parts) != len(FIELDS):
        raise _no_cron(
            line, f"it has {len(parts)} fields, not 5", f"항목이 5개가 아니라 {len(parts)}개입니다"
        )
    sets = [_field(line, text, *field) for text, field in zip(parts, FIELDS, strict=True)]
    weekdays = frozenset(day % 7 for day in sets[4])
    either = parts[2] != "*" and parts[4] != "*"
    return Cron(sets[0], sets[1], sets[2], sets[3], weekdays, either)


def _field(line: str, text: str, name: str, least: int, most: int) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = (str(least), "-", str(most)) if span == "*" else span.partition("-")
        last = last if dash else str(most) if slash else first
        if not all(number.isdecimal() and len(number) < 5 for number in (first, last, step or "1")):
            raise _no_cron(line, f"{part!r} is no {name}", f"{part!r}은(는) 쓸 수 없는 값입니다")
        low, high, by = int(first), int(last), int(step or 1)
        if not least <= low <= high <= most or by < 1:
            raise _no_cron(
                line,
                f"{part!r} is not between {least} and {most}",
                f"{part!r}은(는) {least}에서 {most} 사이가 아닙니다",
            )
        found |= set(range(low, high + 1, by))
    return frozenset(found)


def _no_cron(line: str, en: str, ko: str) -> OnsilError:
    return OnsilError(
        en=(f"{line!r} is no cron line: {en}.", "", "Write it like '0 2 * * *': 02:00 each night."),
        ko=(
            f"{line!r}은(는) cron 형식이 아닙니다: {ko}.",
            "",
            "'0 2 * * *'(매일 02:00)처럼 적어 주세요.",
        ),
    )


Times = Every | Cron


def spelled(slot: float) -> str:
    """A slot as it stands in keys and file names, in UTC."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(slot))


class Scheduler:
    """A thread that calls `submit(slot)` when a slot begins. `seen`: the last slot that was
    submitted before; without one, slots of the past are left alone."""

    def __init__(self) -> None:
        self._entries: list[tuple[Times, Callable[[float], None]]] = []
        self._seen: list[float] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="schedule", daemon=True)

    def add(self, times: Times, submit: Callable[[float], None], seen: float | None) -> None:
        self._entries.append((times, submit))
        self._seen.append(times.last(time.time()) if seen is None else seen)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Submit the slots that have begun."""
        for n, (times, submit) in enumerate(self._entries):
            slot = times.last(time.time())
            if slot > self._seen[n]:
                try:
                    submit(slot)
                    self._seen[n] = slot
                except OnsilError as e:  # the store is away; the slot waits for it
                    log.warning("%s", e.en[0])

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.look()
            self._stopped.wait(LOOK)
