"""Two Ray workers on this machine make the decoder that one process makes."""

import json
from pathlib import Path

import distributed_child as child
import pytest

from onsil.lineage import Workspace
from onsil.training.distributed import on_ray

ray = pytest.importorskip("ray", reason="needs the extra [ray]")


@pytest.fixture
def cluster():
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_workers_of_a_local_cluster_make_the_decoder_of_one(cluster, tmp_path):
    home = tmp_path / "home"
    ws = child.workspace_with_a_decoder(home)
    made = on_ray(2, home, "desk", "decoder", None, False)
    notes = json.loads((made / "notes.json").read_text())
    assert notes["workers"] == 2
    alone: Path = Workspace(home).resolve("desk")[2].path
    told, own = (json.loads((f / "curve.json").read_text()) for f in (made.path, alone))
    assert len(own) >= 8 and len(told) == len(own)
    for a, b in zip(told, own, strict=True):
        assert a == pytest.approx(b, abs=2e-4)
    assert ws.is_whole(made)
