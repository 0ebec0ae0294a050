"""Jobs, files and batches of a whole server: the same answer later as now, also after a kill."""

import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from job_doors import listener
from openai_forms import conforms
from served import make_pen, random_pen, server

from onsil.lineage import Workspace
from onsil.serving.jobs import open_store
from onsil.serving.keys import add_key, list_keys, remove_key

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
CHAT = {
    "model": "pen",
    "messages": [{"role": "user", "content": "휴가"}],
    "max_tokens": 16,
    "seed": 3,
}


JOB = {"kind": "chat.completions", "input": CHAT}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_pen(tmp_path_factory.mktemp("work"))


def key_of(home: Path) -> str:
    return (home / "key").read_text().strip()


class Served:
    """One server for all tests here, which one of them kills and starts again."""

    def __init__(self, home: Path, *arguments: str):
        self.home, self.arguments, self.life = home, arguments, ExitStack()
        self.start()

    def start(self) -> None:
        self.address, _ = self.life.enter_context(server(self.home, *self.arguments, name="pen"))

    def kill(self) -> None:
        """SIGKILL to whoever listens there."""
        port = int(self.address.rpartition(":")[2])
        victim = next(
            p
            for p in psutil.Process().children(recursive=True)
            if any(c.laddr and c.laddr.port == port for c in p.net_connections("inet"))
        )
        os.kill(victim.pid, signal.SIGKILL)
        self.life.close()

    def client(self, key: str = "") -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or key_of(self.home)}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=30)


@pytest.fixture(scope="module")
def ear() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A program that is told when jobs are done."""
    with listener([]) as found:
        yield found


@pytest.fixture(scope="module")
def poor(home) -> str:
    """The key of one who may use ten tokens a day."""
    return add_key(home, "kim", tokens_per_day=10)


@pytest.fixture(scope="module")
def served(home, ear, poor) -> Iterator[Served]:
    made = Served(home, "--webhook-host", ear[0].split("/")[2])
    yield made
    made.life.close()


def until(done, seconds: float = 30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := done()) is not None:
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


def finished(client: httpx.Client, job: str):
    found = client.get(f"/v1/jobs/{job}").json()
    return found if found["status"] in ("done", "failed", "dead", "cancelled") else None


def batch_file(many: int) -> io.BytesIO:
    lines = [
        {
            "custom_id": f"line-{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": CHAT | {"seed": n},
        }
        for n in range(many)
    ]
    return io.BytesIO("".join(json.dumps(line) + "\n" for line in lines).encode())


def test_a_job_is_answered_as_the_door_would_and_only_once(served):
    with served.client() as client:
        now = client.post("/v1/chat/completions", json=CHAT).json()
        asked = {"kind": "chat.completions", "input": CHAT}
        first = client.post("/v1/jobs", json=asked, headers={"Idempotency-Key": "a"})
        again = client.post("/v1/jobs", json=asked, headers={"Idempotency-Key": "a"})
        assert first.status_code == 202 and again.json()["id"] == first.json()["id"]
        later = until(lambda: finished(client, first.json()["id"]))
        assert later["status"] == "done" and later["result"]["choices"] == now["choices"]
        changed = asked | {"input": CHAT | {"seed": 4}}
        other = client.post("/v1/jobs", json=changed, headers={"Idempotency-Key": "a"})
        assert other.status_code == 409
        bad = {"kind": "chat.completions", "input": CHAT | {"temperature": -1}}
        made = client.post("/v1/jobs", json=bad).json()
        assert "temperature" in until(lambda: finished(client, made["id"]))["error"]["message"]
        assert client.post("/v1/jobs", json={"kind": "x", "input": 1}).status_code == 400
        assert client.post("/v1/jobs", json=asked | {"input": False}).status_code == 400


def test_a_key_stands_for_the_model_that_was_meant(served):
    """After a new champion the same request is other work; and the old one is still there."""
    ws, key = Workspace(served.home), {"Idempotency-Key": "of-v1"}
    asked = {"kind": "chat.completions", "input": CHAT}
    ws.set_alias("pen", "champion", "v1")
    with served.client() as client:
        first = client.post("/v1/jobs", json=asked, headers=key)
        version = ws.register("pen", random_pen(ws, vocabulary=600, context=256))
        ws.set_alias("pen", "champion", version)
        try:
            other = client.post("/v1/jobs", json=asked, headers=key)
            assert other.status_code == 409 and other.json()["error"]["code"] == "conflict"
        finally:
            ws.set_alias("pen", "champion", "v1")
        again = client.post("/v1/jobs", json=asked, headers=key)
        assert first.status_code == again.status_code == 202
        assert again.json()["id"] == first.json()["id"]
        gone = asked | {"input": CHAT | {"model": "pen@v9"}}
        made = client.post("/v1/jobs", json=gone).json()
        assert "pen@v9" in until(lambda: finished(client, made["id"]))["error"]["message"]


def test_whoever_is_told_can_check_who_tells(served, ear):
    """The secret as the page on jobs says to make it."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "jobs.md").read_text()
    found = re.search(r"^    \$ (python -c .*?)$\n\n", page, re.S | re.M)
    assert found
    made = subprocess.run(
        ["sh", "-c", found[1].replace("\n    > ", "\n")],
        env=os.environ | {"ONSIL_HOME": str(served.home), "PATH": PATH},
        capture_output=True,
        check=True,
    )
    secret, (url, heard) = made.stdout.decode().strip(), ear
    with served.client() as client:
        asked = {"kind": "chat.completions", "input": CHAT, "webhook": url}
        job = client.post("/v1/jobs", json=asked).json()["id"]
        headers, body = until(lambda: heard[-1] if heard else None)
    assert json.loads(body)["data"] == {"id": job}
    with openai.OpenAI(api_key="x", webhook_secret=secret) as official:
        official.webhooks.verify_signature(body, headers)


def test_what_is_done_later_is_on_the_same_budget(served, poor):
    with served.client(poor) as client, served.client() as mine:
        made = client.post("/v1/jobs", json={"kind": "chat.completions", "input": CHAT}).json()
        assert mine.get(f"/v1/jobs/{made['id']}").status_code == 404  # kim's alone
        assert until(lambda: client.get("/v1/models").status_code == 429 or None)


def new_batch(client: httpx.Client, many: int) -> str:
    sent = {"file": ("in.jsonl", batch_file(many))}
    file = client.post("/v1/files", files=sent, data={"purpose": "batch"}).json()["id"]
    wanted = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return client.post("/v1/batches", json=wanted | {"input_file_id": file}).json()["id"]


def test_a_budget_that_is_used_up_holds_up_nobody_else(served):
    """A batch waits for it and lets others by; it may always be ended."""
    slow = add_key(served.home, "slow", requests_per_minute=6)
    with served.client(slow) as client, served.client() as mine:
        batch = new_batch(client, 40)
        until(lambda: client.get("/v1/models").status_code == 429 or None)
        other = mine.post("/v1/jobs", json=JOB).json()
        assert until(lambda: finished(mine, other["id"]))["status"] == "done"
        ended = client.post(f"/v1/batches/{batch}/cancel")
        assert ended.status_code == 200, ended.text
    remove_key(served.home, "slow")


def test_jobs_that_their_owners_budget_turns_away_wait(served):
    """Longer than three attempts take; they are ready, and go on as the budget does."""
    many = add_key(served.home, "many", requests_per_minute=30)
    with served.client(many) as client, kept(served.home) as state_of:
        long = JOB | {"input": CHAT | {"max_tokens": 200}}
        sent = iter(lambda: client.post("/v1/jobs", json=long), None)
        jobs = [a.json()["id"] for a in itertools.takewhile(lambda a: a.status_code == 202, sent)]
        begun = time.monotonic()
        while time.monotonic() < begun + 6:
            states = [*map(state_of, jobs)]
            assert {*states} <= {"ready", "running", "done"}
            time.sleep(0.1)
        assert states.count("done") > 1 and "ready" in states
        assert all(client.post(f"/v1/jobs/{job}/cancel").status_code == 200 for job in jobs)
    remove_key(served.home, "many")


@contextmanager
def kept(home: Path) -> Iterator[Callable[[str], str]]:
    """The state of a job as it is kept, whoever's it is."""
    with closing(open_store(home / "jobs/jobs.db")) as store:

        def state_of(job: str) -> str:
            with store.database.reading() as run:
                return run("select state from jobs where id = ?", job)[0]["state"]

        yield state_of


def test_work_of_a_key_that_is_removed_ends(served):
    """A batch as a whole: the lines that were answered are kept, the others are not asked."""
    gone = add_key(served.home, "gone", requests_per_minute=6)
    with served.client(gone) as client:
        new_batch(client, 40)
        until(lambda: client.get("/v1/models").status_code == 429 or None)
    owner = next(key.owner for key in list_keys(served.home) if key.name == "gone")
    remove_key(served.home, "gone")
    with closing(open_store(served.home / "jobs/jobs.db")) as store:
        (job,) = store.listed(owner, ["batch"])
        until(lambda: store.get(owner, job.id).closed or None)
        ended = store.get(owner, job.id)
        assert ended.state == "dead" and "was removed" in ended.error["message"]
        assert sum(store.checkpoint_counts(job.id)) < 10


def test_a_job_for_a_damaged_model_is_not_tried_for_ever(served):
    ws = Workspace(served.home)
    version = ws.register("pen", made := random_pen(ws, vocabulary=600, context=128))
    weights = next(made.path.glob("*.safetensors"))
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    ws.set_alias("pen", "champion", "v1")
    asked = {"kind": "chat.completions", "input": CHAT | {"model": f"pen@{version}"}}
    with served.client() as client:
        job = client.post("/v1/jobs", json=asked | {"max_attempts": 2}).json()["id"]
        path = f"/v1/jobs/{job}"
        ended = until(lambda: told if (told := client.get(path).json())["error"] else None)
        ended = until(lambda: told if (told := client.get(path).json())["finished_at"] else None)
    assert ended["attempts"] == 2 and "damaged" in ended["error"]["message"]


def test_the_official_client_runs_a_batch(served):
    with openai.OpenAI(base_url=f"{served.address}/v1", api_key=key_of(served.home)) as official:
        file = official.files.create(file=("in.jsonl", batch_file(5)), purpose="batch")
        conforms(file.model_dump(exclude_unset=True), "OpenAIFile")
        made = official.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        conforms(made.model_dump(exclude_none=True), "Batch")  # null, in the examples, is absent
        done = until(
            lambda: ((b := official.batches.retrieve(made.id)).status == "completed" and b) or None
        )
        assert done.request_counts.completed == 5
        text = official.files.content(done.output_file_id).text
        rows = [json.loads(line) for line in text.splitlines()]
        assert {row["custom_id"] for row in rows} == {f"line-{n}" for n in range(5)}
        for row in rows:
            conforms(row["response"]["body"], "CreateChatCompletionResponse")
        seed = int(rows[0]["custom_id"].partition("-")[2])
        now = official.chat.completions.create(**CHAT | {"seed": seed})
        said = rows[0]["response"]["body"]["choices"][0]["message"]["content"]
        assert now.choices[0].message.content == said


def test_a_killed_server_goes_on_with_its_batch_where_it_was(served):
    """kill -9 in the midst of forty lines; each is answered once."""
    with served.client() as client:
        sent = {"file": ("in.jsonl", batch_file(40))}
        file = client.post("/v1/files", files=sent, data={"purpose": "batch"}).json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
        batch = client.post("/v1/batches", json=asked | {"completion_window": "24h"}).json()
        look = f"/v1/batches/{batch['id']}"
        counts = lambda: client.get(look).json()["request_counts"]["completed"]  # noqa: E731
        until(lambda: counts() >= 5 or None)
    served.kill()
    served.start()
    with served.client() as client:
        done = until(
            lambda: ((b := client.get(look).json())["status"] == "completed" and b) or None, 90
        )
        assert done["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
        text = client.get(f"/v1/files/{done['output_file_id']}/content").text
        names = [json.loads(line)["custom_id"] for line in text.splitlines()]
        assert sorted(names) == sorted(f"line-{n}" for n in range(40))
