"""Slots by the clock and by cron lines."""

import time
from datetime import datetime

import pytest

from onsil.errors import OnsilError
from onsil.serving.schedules import Every, Scheduler, cron_times


@pytest.mark.parametrize(("before", "submitted"), [(None, []), (0.0, ["last"])])
def test_a_slot_that_was_missed_is_made_up_for_but_not_before_the_first(before, submitted):
    slots: list[float] = []
    times = Every(1e6)
    scheduler = Scheduler()
    scheduler.add(times, slots.append, before)
    for _ in range(2):
        scheduler.look()
    assert slots == [times.last(time.time()) for _ in submitted]


@pytest.mark.parametrize(
    ("line", "now", "last"),
    [
        ("* * * * *", "2026-03-01 10:20:31", "2026-03-01 10:20"),
        ("0 2 * * *", "2026-03-01 10:20:00", "2026-03-01 02:00"),
        ("0 2 * * *", "2026-03-01 01:59:59", "2026-02-28 02:00"),
        ("*/15 9-17 * * 1-5", "2026-03-02 08:00:00", "2026-02-27 17:45"),
        ("30 6 29 2 *", "2026-03-01 00:00:00", "2024-02-29 06:30"),
        ("0 0 1 * 0", "2026-03-10 00:00:00", "2026-03-08 00:00"),
        ("5,35 */6 * 1,7 *", "2026-03-01 00:00:00", "2026-01-31 18:35"),
        ("0 12 * * 7", "2026-03-02 00:00:00", "2026-03-01 12:00"),
    ],
)
def test_the_last_slot_of_a_cron_line(line, now, last):
    found = cron_times(line).last(datetime.fromisoformat(now).timestamp())
    assert datetime.fromtimestamp(found) == datetime.fromisoformat(last)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "* * * *",
        "60 * * * *",
        "a * * * *",
        "5-1 * * * *",
        "*/0 * * * *",
        "* * 0 * *",
        "-1 * * * *",
        "1-2-3 * * * *",
    ],
)
def test_what_is_no_cron_line(line):
    with pytest.raises(OnsilError, match="is no cron line"):
        cron_times(line)
