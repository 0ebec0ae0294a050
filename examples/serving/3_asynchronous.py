"""Pattern 3, asynchronous: 202 and a job's id now, the answer later.

When: an answer takes longer than anybody holds a line, or must not be lost whatever breaks.
For it: 202 is said only when the job is on the disk; a killed worker's job is done by another, and
the same `Idempotency-Key` is the same job however often it is sent.
Against it: the caller has to come back (or give a webhook), and somebody must look at dead jobs.

    POST /v1/jobs {"input": {"question": "…"}}  →  202 {"id": "job_…", …}
    GET  /v1/jobs/job_…                         →  {"status": "done", "result": {…}}
"""

from onsil.graph import model
from onsil.serving.deployment import App

app = App()
app.jobs("/v1/jobs", model("desk@champion"), attempts=3, lease=60)

if __name__ == "__main__":
    app.run()
