"""How long what is over is kept, and how it is forgotten.

A number of days is an operator's promise in both directions: who handed work in can read the result
that long, and no longer does anybody else. 0 is for ever, as retention is written elsewhere
(journald's MaxRetentionSec, CloudWatch's retention in days): a result that is gone before its
caller could read it is of no use, so nothing else can be meant by it.

Left out: a time of one's own for each owner or each kind of work.
"""

import math

from onsil.errors import OnsilError
from onsil.serving.jobs.schema import Run

DAYS, A_DAY = 30.0, 24 * 3600.0  # that things are kept; seconds
TOGETHER, MOST_ROWS = 100, 2_000  # jobs and checkpoints forgotten in one transaction
SCHEDULED = "batch.%"  # the kinds of scheduled batches


def kept(days: float, option: str = "days") -> float:
    """The days after which something is forgotten: never (inf) for 0. Raises OnsilError, naming the
    option, for what is no number of days."""
    if 0 <= days < math.inf:
        return days or math.inf
    raise OnsilError(
        en=(
            f"{option} {days:g} cannot be used.",
            "What is over is kept for so many days after its end, then forgotten.",
            "Give a number above 0, such as 7, or 0 to keep everything.",
        ),
        ko=(
            f"{option} {days:g}은(는) 쓸 수 없습니다.",
            "끝난 작업은 여기 적은 날수만큼 보관한 뒤 지웁니다.",
            "7처럼 0보다 큰 날수를 주세요. 0을 주면 지우지 않습니다.",
        ),
    )


def forget_jobs(run: Run, days: float, skip_locked: str) -> int:
    """Forget some jobs that ended more than `days` ago, each whole; how many. One whose webhook is
    still to be sent stays, and so does a scheduled batch's last, which says what slot came last."""
    old = run(
        "select id, progress from jobs where finished < (select epoch() - ?)"
        " and not exists (select 1 from deliveries d where d.job = jobs.id"
        " and d.state = 'ready') and (kind not like ? or seq < (select max(seq)"
        " from jobs later where later.owner = jobs.owner and later.kind = jobs.kind))"
        f" order by finished limit {TOGETHER}{skip_locked}",
        *(days * A_DAY, SCHEDULED),
    )
    rows = 0
    for place, job in enumerate(old):
        if place and rows + job["progress"] > MOST_ROWS:
            return place
        rows += job["progress"]
        for table in ("checkpoints", "events", "deliveries"):
            run(f"delete from {table} where job = ?", job["id"])
        run("delete from jobs where id = ?", job["id"])
    return len(old)
