"""The children that work on templates and schemas: given up, replaced, and never mixed up."""

import gc
import os
import resource
import signal
import threading
from pathlib import Path

import psutil
import pytest

from onsil.inference import confined as home
from onsil.inference.confined import Confined, GaveUp

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

NULL = '{"type": "null"}'


@pytest.fixture
def confined():
    made = Confined()
    yield made
    made.close()


def rendered(confined: Confined, template: str, seconds: float = 30.0) -> str:
    return confined.ask({"template": template, "values": {}}, seconds)["text"]


def test_a_child_that_overruns_or_dies_is_replaced(confined):
    with pytest.raises(GaveUp, match=r"more than 0\.3 seconds"):
        rendered(confined, ENDLESS, 0.3)
    assert rendered(confined, "{{ 1 + 1 }}") == "2"
    confined.templates.process.kill()
    confined.templates.process.wait()
    with pytest.raises(GaveUp, match="ended the process"):
        rendered(confined, "{{ 1 + 1 }}")
    assert rendered(confined, "{{ 1 + 1 }}") == "2"


def test_an_answer_that_nobody_took_is_not_the_next_ones(confined, monkeypatch):
    assert rendered(confined, "first") == "first"

    def interrupted(pipe):
        raise KeyboardInterrupt

    with monkeypatch.context() as here, pytest.raises(KeyboardInterrupt):
        here.setattr(home, "receive", interrupted)
        rendered(confined, "second")
    assert rendered(confined, "third") == "third"


def test_a_child_that_is_killed_while_its_answer_is_taken_does_not_fail_the_next(
    confined, monkeypatch
):
    assert rendered(confined, "first") == "first"
    plain = home.receive

    def slow(pipe):
        answer = plain(pipe)
        confined.templates.process.wait()  # the time is over now
        return answer

    with monkeypatch.context() as here:
        here.setattr(home, "receive", slow)
        assert rendered(confined, "second", 0.5) == "second"
    assert rendered(confined, "third") == "third"


def test_a_child_that_does_not_start_says_so(confined, monkeypatch):
    monkeypatch.setattr(home, "CHILD", Path("nowhere.py"))
    with pytest.raises(GaveUp, match="not be started"):
        rendered(confined, "")
    monkeypatch.undo()
    assert rendered(confined, "first") == "first"


def test_the_child_opens_no_file_and_no_socket(confined, tmp_path, monkeypatch):
    """Even where the sandbox had a hole: the limits are of the process."""
    program = home.CHILD.read_text()
    holed = program.replace(
        "raise jinja2.TemplateError(str(message))", "return open(message).read()"
    )
    assert holed != program
    child = tmp_path / "child.py"
    child.write_text(holed)
    monkeypatch.setattr(home, "CHILD", child)
    asked = {"template": "{{ raise_exception('/etc/hostname') }}", "values": {}}
    assert "Too many open files" in confined.ask(asked, 30)["error"]


def judged(confined: Confined, schema: str, seconds: float = 30.0) -> str:
    return confined.ask({"schema": schema, "options": {}}, seconds)["grammar"]


def test_a_schema_that_takes_all_its_time_does_not_hold_up_a_chat(confined):
    """What comes first is looked at, not how long it takes: the schema's child stands still."""
    assert judged(confined, NULL) and rendered(confined, "first") == "first"
    done, process = list[str](), confined.schemas.process
    os.kill(process.pid, signal.SIGSTOP)

    def hostile() -> None:
        with pytest.raises(GaveUp):
            judged(confined, NULL, 20)
        done.append("schema")

    asking = threading.Thread(target=hostile)
    asking.start()
    while not confined.schemas.lock.locked():
        asking.join(0.001)
    done.append(rendered(confined, "chat"))
    process.kill()
    asking.join()
    assert done == ["chat", "schema"]
    assert judged(confined, NULL)


def test_each_kind_of_work_has_a_child_when_it_first_comes_and_none_in_the_end():
    for closed in (True, False):
        confined = Confined(600 << 20)
        assert rendered(confined, "a") == "a" and confined.schemas.process is None
        assert judged(confined, NULL)
        children = (confined.templates.process, confined.schemas.process)
        pids = [child.pid for child in children if child]
        assert len({*pids}) == 2
        for pid in pids:
            assert resource.prlimit(pid, resource.RLIMIT_AS)[0] == 600 << 20
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == 3
        if closed:
            confined.close()
        else:
            del confined
            gc.collect()
        assert not [pid for pid in pids if psutil.pid_exists(pid)]
