"""Energy: counters of a made-up processor read right, and a model where there are none."""

import time

import pytest

from onsil.errors import OnsilError
from onsil.training.energy import VARIABLE, WATTS_PER_CORE, Meter, measured, modelled


@pytest.fixture
def powercap(tmp_path):
    """Two packages; a part of one and the board, which must not be counted too; another kind."""
    for zone, name, energy in (
        ("intel-rapl:0", "package-0", 1_000_000),
        ("intel-rapl:0:0", "core", 900_000),
        ("intel-rapl:1", "package-1", 5_000_000),
        ("intel-rapl:2", "psys", 7_000_000),
        ("intel-rapl-mmio:0", "package-0", 77),
    ):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text(f"{energy}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("10000000\n")
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def count(powercap, zone, energy):
    (powercap / zone / "energy_uj").write_text(f"{energy}\n")


def test_packages_are_added_and_their_parts_and_the_board_are_not(powercap):
    meter = Meter(powercap)
    assert meter.read() == 0
    count(powercap, "intel-rapl:0", 3_000_000)
    count(powercap, "intel-rapl:0:0", 2_900_000)
    count(powercap, "intel-rapl:1", 5_500_000)
    count(powercap, "intel-rapl:2", 9_900_000)
    count(powercap, "intel-rapl-mmio:0", 9_000_000)
    assert meter.read() == pytest.approx(2.5)
    assert meter.read() == pytest.approx(2.5)


def test_a_counter_that_starts_again_goes_on(powercap):
    meter = Meter(powercap)
    count(powercap, "intel-rapl:0", 9_000_000)
    assert meter.read() == pytest.approx(8.0)
    count(powercap, "intel-rapl:0", 500_000)  # 1.5 J later: 1 to the end of the range, 0.5 after
    assert meter.read() == pytest.approx(9.5)


@pytest.mark.parametrize("content", ["", "none", None])
def test_a_counter_that_cannot_be_read_is_none(powercap, content):
    for zone in ("intel-rapl:0", "intel-rapl:1"):
        file = powercap / zone / "energy_uj"
        file.unlink() if content is None else file.write_text(content)
    meter = Meter(powercap)
    assert meter.read() is None and meter.watts(lambda: 1) == (1, None)


def test_power_is_what_was_drawn_while_the_work_was_done(powercap):
    meter = Meter(powercap)
    count(powercap, "intel-rapl:0", 9_000_000)  # before the work: not its energy

    def work() -> float:
        start = time.monotonic()
        count(powercap, "intel-rapl:1", 7_000_000)
        time.sleep(0.02)
        return time.monotonic() - start

    seconds, watts = meter.watts(work)
    assert watts is not None and 0 < watts <= 2.0 / seconds


def test_a_machine_without_counters_has_none(tmp_path):
    assert Meter(tmp_path / "nothing").read() is None


def test_the_model_is_cpu_seconds_times_watts(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert modelled(3600).watt_hours == WATTS_PER_CORE == 12
    monkeypatch.setenv(VARIABLE, "3.5")
    assert modelled(7200).watt_hours == 7.0
    assert modelled(1).source == "modelled"


def test_joules_are_watt_hours():
    assert measured(7200).watt_hours == 2.0 and measured(0).source == "measured"


@pytest.mark.parametrize("told", ["0", "-1", "inf", "nan", "twelve"])
def test_no_power_is_refused_with_what_was_given(monkeypatch, told):
    monkeypatch.setenv(VARIABLE, told)
    with pytest.raises(OnsilError, match=rf"{VARIABLE}={told} ") as refused:
        modelled(1)
    assert f"{VARIABLE}={told}" in refused.value.ko[0]
