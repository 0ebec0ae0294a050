"""Pattern 4, batch: a schedule over a data set.

When: answers are wanted for many rows by the morning, and nobody waits for one of them.
For it: each row is written down once as it is answered, so a run that was killed at night goes on
with the others; one slot of the schedule runs once, on however many machines this file is started;
all rows of a run are answered by the models that were champions when it began.
Against it: answers are as old as the last slot, and a bad row is found out in the morning.

Questions are read from questions.jsonl, answers are put into answers/.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from onsil.graph import model
from onsil.serving.deployment import App


def rows() -> Iterator[dict]:
    """One question a line."""
    with Path("questions.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


app = App()
app.batch("nightly", model("desk@champion"), rows, Path("answers"), cron="0 2 * * *")

if __name__ == "__main__":
    app.run()
