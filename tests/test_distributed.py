"""Two workers learn what one learns, from the same batches, and survive each other's deaths.

What "the same" means is measured: the curve of one process whose documents stand in another order
inside each batch differs from its own by rounding alone, and two workers may differ by as much.
"""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import distributed_child as child
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import PLANTED
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from onsil.errors import OnsilError
from onsil.lineage import Workspace
from onsil.models.transformer import Transformer
from onsil.tokenizer.template import NO_TARGET
from onsil.training.distributed import compiled_on, compute_on, work
from onsil.training.loop import train
from onsil.training.objectives import causal_batch, pieces_of, token_loss
from onsil.training.optim import Recipe
from onsil.training.parallel import Worker, cut, only, part_loss, worker
from onsil.training.plan import parse_plan, spelling_of

HERE = Path(__file__).parent
CPU = torch.device("cpu")
EVERY = len(child.STEPS) // child.CHECKPOINTS
KEPT = child.HALF // EVERY * EVERY  # the last checkpoint of a run that stopped at HALF
LAST, AGAIN = f"step{KEPT}", list(range(KEPT + 1, child.HALF + 1))


def torchrun(*arguments: str, restarts: int = 0, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", str(restarts), *arguments]
    set_to = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=set_to)


def alone(
    folder: Path, order: int = 0, kind: str = "decoder", recipe: Recipe = Recipe()
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The curve and weights of `loop.train`; `order` shuffles the documents inside each batch."""
    folder.mkdir()
    model = child.new_model(kind)

    def loss_of(k: int):
        batch = child.batch_of(k, kind)
        shuffled = list(range(len(batch.lengths)))
        random.Random(f"{order}-{k}").shuffle(shuffled)
        return token_loss(model, only(batch, shuffled) if order else batch)

    parameters = dict(model.named_parameters())
    loop = train(parameters, loss_of, len(child.STEPS), 2e-3, folder, recipe=recipe, **PLANTED)
    return [step.loss for step in loop], model.state_dict()


def apart(one: list[float], other: list[float]) -> float:
    """The largest distance between two curves over the steps both have, nats."""
    return max(abs(a - b) for a, b in zip(one, other, strict=False))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The curve of one process, and how far other orders of summation move it: the most of five."""
    folder, known = tmp_path_factory.mktemp("alone"), {}

    def of(kind: str = "decoder", recipe: Recipe = Recipe()) -> tuple[list[float], float]:
        if (kind, recipe) not in known:
            at = folder / str(len(known))
            at.mkdir()
            curve, *others = (alone(at / str(n), n, kind, recipe)[0] for n in range(6))
            known[kind, recipe] = curve, max(apart(curve, other) for other in others)
        return known[kind, recipe]

    return of


def curve_of(folder: Path) -> list[float]:
    """The last loss of every step, in order."""
    told = json.loads((folder / "curve.json").read_text())
    return [told[number][-1] for number in sorted(told, key=int)]


def launch(folder: Path, *arguments: str, restarts: int = 0) -> Path:
    """Two workers of distributed_child.py, to their end."""
    done = torchrun(str(HERE / "distributed_child.py"), str(folder), *arguments, restarts=restarts)
    said = [line for line in done.stderr.splitlines() if "rank" in line or "terminate" in line]
    assert done.returncode == 0, "\n".join(said)
    return folder


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launched")
    with worker() as at:  # the run that two go on with
        child.run(folder / "began alone", "ddp", at, stop=child.HALF)
    return launch(folder, "most")


@pytest.fixture(scope="module")
def rest(tmp_path_factory) -> Path:
    return launch(tmp_path_factory.mktemp("rest"), "rest")


# -- the batch, cut -----------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(5, 90), max_size=40), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_the_parts_are_the_batch_and_none_is_much_larger(documents, world):
    pieces = pieces_of(documents, 16)
    batch = causal_batch(pieces)
    rows = sorted(zip(*(b.tolist() for b in split(batch)), strict=True))
    parts = [cut(batch, rank, world) for rank in range(world)]
    assert rows == sorted(
        row for part in parts for row in zip(*(b.tolist() for b in split(part)), strict=True)
    )
    loads = [sum(part.lengths) for part in parts]
    assert max(loads) - min(loads) <= max(batch.lengths)


def split(batch) -> list[torch.Tensor]:
    """Ids, targets and the document's own length, a row each token."""
    of = torch.tensor([n for n in batch.lengths for _ in range(n)])
    return [batch.ids[0], batch.targets[0], of]


def test_a_worker_without_a_target_counts_nothing_and_still_has_gradients():
    model, batch = child.new_model(), causal_batch([[7, 8, 9]])
    whole = token_loss(model, batch)
    parts = [part_loss(model, batch, Worker(rank, 2, CPU)) for rank in range(2)]
    assert [count for _, count in parts] == [2, 0]
    assert torch.equal(parts[0][0], whole[0]) and float(parts[1][0].detach()) == 0.0
    parts[1][0].backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert (cut(batch, 1, 2).targets == NO_TARGET).all()


# -- the curve ----------------------------------------------------------------------------------


def test_one_worker_is_the_loop_to_the_same_bits(tmp_path):
    curve, weights = alone(tmp_path / "loop")
    with worker() as at:
        model = child.new_model()
        own = [step.loss for step in child.steps_of(tmp_path / "one", "ddp", at, model)]
    assert own == curve
    assert all(torch.equal(model.state_dict()[name], t) for name, t in weights.items())


def assert_same_curve(folder: Path, expected: tuple[list[float], float]) -> None:
    """No further apart than twice what the order of sums does in one process."""
    curve, bound = expected
    assert curve[0] - curve[-1] > 0.3  # it learns
    assert apart(curve, curve_of(folder)) <= 2 * bound


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_workers_have_the_curve_of_one(launched, expected, mode):
    assert_same_curve(launched / mode, expected())


@pytest.mark.slow
def test_two_workers_have_the_curve_of_one_with_hidden_words_and_with_muon(rest, expected):
    assert_same_curve(rest / "encoder", expected("encoder"))
    assert_same_curve(rest / "muon", expected("decoder", child.MUON))


@pytest.mark.slow
@pytest.mark.parametrize("fault", child.FAULTS)
def test_a_wrong_mean_part_or_norm_leaves_the_curve(rest, expected, fault):
    curve, bound = expected()
    assert apart(curve, curve_of(rest / fault)) > 100 * bound


def test_all_stop_when_one_has_no_number(launched):
    told = {(launched / "stopped" / f"stopped{rank}").read_text() for rank in range(2)}
    assert len(told) == 1 and "step 4" in told.pop()


def test_what_the_first_says_all_hear(launched):
    assert {(launched / f"heard{rank}").read_text() for rank in range(2)} == {"첫 작업자의 말"}


# -- checkpoints --------------------------------------------------------------------------------


def test_two_go_on_with_what_one_began(launched, expected):
    found = json.loads((launched / "began alone" / "curve.json").read_text())
    assert [int(n) for n in found if len(found[n]) == 2] == AGAIN
    assert_same_curve(launched / "began alone", expected())


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_one_goes_on_with_what_two_began(launched, expected, tmp_path, mode):
    folder = tmp_path / "half"
    shutil.copytree(launched / "half", folder)
    with worker() as at:
        child.run(folder, mode, at)
    found = json.loads((folder / "curve.json").read_text())
    assert [int(n) for n in found if len(found[n]) == 2] == AGAIN
    assert len(curve_of(folder)) == len(child.STEPS)
    assert_same_curve(folder, expected())


def test_a_checkpoint_is_safetensors_and_json_and_nothing_else(launched):
    folder = launched / "half"
    pointer = json.loads((folder / "latest.json").read_text())
    assert [p.name for p in folder.glob("step*")] == [pointer["folder"]] == [LAST]
    files = sorted(file.name for file in (folder / LAST).iterdir())
    assert files == sorted(pointer["files"]) and len(files) == 2
    for file in files:
        assert load_file(folder / LAST / file)


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_checkpoint_with_a_part_missing_is_refused(launched, tmp_path, damage):
    shutil.copytree(launched / "half", tmp_path / "half")
    part = max((tmp_path / "half" / LAST).iterdir())
    part.unlink() if damage == "gone" else os.truncate(part, 1000)
    with worker() as at, pytest.raises(OnsilError, match=part.name):
        child.run(tmp_path / "half", "ddp", at)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_kill_9_of_one_worker_costs_only_the_steps_since_the_checkpoint(launched, tmp_path, mode):
    """torchrun starts both again; the curve and the weights are those of a run nobody killed."""
    launch(tmp_path, mode, "--die", str(child.HALF), restarts=1)
    assert (tmp_path / "died").exists()
    found = json.loads((tmp_path / "curve.json").read_text())
    twice = [int(n) for n in found if len(found[n]) == 2]
    assert twice and twice == AGAIN[: len(twice)]  # the first may die before it writes the last
    assert curve_of(tmp_path) == curve_of(launched / mode)
    kept, whole = (load_file(f / "weights.safetensors") for f in (tmp_path, launched / mode))
    assert all(torch.equal(kept[name], tensor) for name, tensor in whole.items())


# -- the way in ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("desk") / "home"
    child.workspace_with_a_decoder(folder)
    return folder


def decoder_of(home: Path) -> Path:
    """What one process pretrained."""
    return Workspace(home).resolve("desk")[2].path


def test_pretraining_again_alone_gives_the_same_weights_and_once(home, capsys):
    asked = (home, "desk", "decoder", None, False)
    made, again = work(*asked), work(*asked)
    assert made is not None and made == again
    own, told = (load_file(f / "model.safetensors") for f in (made.path, decoder_of(home)))
    assert own.keys() == told.keys() and all(torch.equal(own[name], told[name]) for name in own)
    curves = [(f / "curve.json").read_text() for f in (made.path, decoder_of(home))]
    assert curves[0] == curves[1]


def test_an_encoder_begins_as_the_decoder_it_began_as(home):
    made = work(home, "reader", "encoder", None, False)
    assert made is not None
    alone = Workspace(home).resolve("reader")[2].path
    own, told = (load_file(f / "model.safetensors") for f in (made.path, alone))
    assert own.keys() == told.keys() and all(torch.equal(own[name], told[name]) for name in own)


FEW = {"decoder_epochs": 1, "batch_tokens": 256}


@pytest.mark.parametrize(
    ("told", "start"),
    [
        (FEW | {"decoder_recipe": "muon", "decoder_rate": 0.01}, None),
        (FEW, None),
        (FEW | {"width": 192}, HERE.parent / "base"),  # whose decoder is wider: half the rate
    ],
    ids=["noise, as planned", "noise, by hand", "the base"],
)
def test_one_worker_learns_as_pretrain_does_where_the_passes_are_few(told, start, tmp_path):
    home = tmp_path / "home"
    child.workspace_with_a_decoder(home, child.PLAN | told, start)
    made = work(home, "desk", "decoder", None, False)
    assert made is not None
    curves = [json.loads((f / "curve.json").read_text()) for f in (made.path, decoder_of(home))]
    assert len(curves[0]) >= 4 and curves[0][-1][1] < curves[0][0][1]
    for column in (1, 2):
        assert apart(*([point[column] for point in curve] for curve in curves)) <= 2e-4


def test_a_plan_is_read_as_grow_reads_it_whatever_its_spelling(home, tmp_path):
    plan, ws = child.PLAN | {"decoder_epochs": 1}, Workspace(home)
    made = []
    for name, told in (("line", plan), ("turned", dict(reversed(plan.items())))):
        (tmp_path / name).write_text(json.dumps(told, indent=4 if name == "turned" else None))
        made.append(work(home, "desk", "decoder", tmp_path / name, False))
    assert made[0] is not None and made[0] == made[1]
    nodes = (ws.record(made[0].key) or {})["ancestry"]["nodes"].values()
    (adopted,) = (n["arguments"]["text"] for n in nodes if n["stage"].startswith("adopt_plan"))
    assert adopted == spelling_of(parse_plan(json.dumps(plan)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"--plan .*plan\.json cannot be read \(No such file"),
        (b"\xff\xfe", r"cannot be read \(no UTF-8\)"),
        (b"{", "This is not a plan: JSON"),
    ],
)
def test_a_plan_that_cannot_be_read_is_said_as_grow_says_it(home, tmp_path, text, said):
    plan = tmp_path / "plan.json"
    if text is not None:
        plan.write_bytes(text)
    with pytest.raises(OnsilError, match=said):
        work(home, "desk", "decoder", plan, False)


@pytest.mark.slow
@pytest.mark.parametrize("way", [[], ["--sharded"]])
def test_torchrun_makes_a_decoder_out_of_a_name(home, tmp_path, way):
    """A longer plan than the model's own, by two; the curve is that of one under the same plan."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(child.PLAN | {"decoder_epochs": 5 + len(way)}))
    command = ["-m", "onsil.training.distributed", "desk", "--plan", str(plan), *way]
    done = torchrun(*command, ONSIL_HOME=str(home))
    assert done.returncode == 0, done.stderr[-3000:]
    made = Path(done.stdout.strip().splitlines()[-1])
    assert json.loads((made / "notes.json").read_text())["workers"] == 2
    alone = work(home, "desk", "decoder", plan, not way)  # one worker, the other way of keeping
    told, own = (json.loads((f / "curve.json").read_text()) for f in (made, alone.path))
    assert len(own) >= 8 and apart([p[1] for p in told], [p[1] for p in own]) <= 2e-4
    assert apart([p[2] for p in told], [p[2] for p in own]) <= 2e-4
    assert own[-1][2] < own[0][2]


@pytest.mark.slow
def test_two_machines_meet_at_an_address(home, tmp_path):
    """Two torchruns of one worker each, as on two machines that see one folder."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(child.PLAN | {"decoder_epochs": 7}))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", address, "-m"]
    command += ["onsil.training.distributed", "desk", "--plan", str(plan)]
    where = os.environ | {"OMP_NUM_THREADS": "1", "ONSIL_HOME": str(home)}
    both = [subprocess.Popen(command, env=where, stdout=subprocess.PIPE) for _ in range(2)]
    said = [one.communicate()[0].decode().split() for one in both]
    assert [one.returncode for one in both] == [0, 0]
    (path,) = {words[-1] for words in said if words}  # one of them has the first worker
    assert json.loads((Path(path) / "notes.json").read_text())["workers"] == 2


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = HERE.parent / "docs" / "parallel.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(page), "exec"), {})
    assert re.match(r"1 worker\(s\): 4\.\d\d → [0-3]\.\d\d nats", capsys.readouterr().out)


def test_an_unknown_name_is_said_once_and_nobody_waits(home):
    with pytest.raises(OnsilError, match="desc"):
        work(home, "desc", "decoder", None, False)
    with pytest.raises(OnsilError, match="No encoder"):
        work(home, "desk", "encoder", None, False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_bf16_compiled_fused_and_close_to_the_processor(tmp_path):
    """As close as bf16 on the processor is to fp32 there, three times over."""
    curves = {}
    for compute in ("fp32", "bf16"):
        model = Transformer(child.new_model().shape, compute).initialise(child.SEED)
        with worker() as at:
            here = replace(at, device=CPU)
            loop = child.steps_of(tmp_path / compute, "ddp", here, model)
            curves[compute] = [step.loss for step in loop]
    with worker() as at:
        assert at.device.type == "cuda" and compute_on(at.device, "fp32") == "bf16"
        model = Transformer(child.new_model().shape, "bf16").initialise(child.SEED).to(at.device)
        compiled_on(model, at.device)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            curves["gpu"] = [s.loss for s in child.steps_of(tmp_path / "gpu", "ddp", at, model)]
    bound = 3 * apart(curves["fp32"], curves["bf16"])
    assert apart(curves["fp32"], curves["gpu"]) <= bound
