"""Energy of a run: read from the processor where it may be read, else a model that says so.

Linux shows the energy counters of Intel and AMD processors (RAPL, running average power limit) as
files: `/sys/class/powercap/intel-rapl:0/energy_uj` counts microjoules and starts again at zero
after `max_energy_range_uj` (docs.kernel.org, power/powercap). Only zones named `package-…` count:
beside them some laptops have `psys`, the whole board, which has the package in it. Since 2020 most
kernels let only root read them (CVE-2020-8694), and a virtual machine seldom has them. What is
read is the whole package: everything the machine did meanwhile is in it, memory and the rest of the
computer are not.

Without them the energy is CPU-seconds × watts a core. The watts are an assumption, not a
measurement: 12 W, what Green Algorithms takes for a processor it does not know (Lannelongue,
Grealey and Inouye 2021; `TDP_cpu.csv`, row "Any": thermal design power ÷ cores). Many-core servers
draw less (3.5 W a virtual core at full load in Cloud Carbon Footprint's average over AWS), some
desktops more; `$ONSIL_WATTS_PER_CORE` says what yours does. Left out: memory, graphics cards,
cooling, carbon.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from onsil.errors import OnsilError

POWERCAP = Path("/sys/class/powercap")
WATTS_PER_CORE = 12.0
VARIABLE = "ONSIL_WATTS_PER_CORE"
Source = Literal["measured", "modelled"]
T = TypeVar("T")


@dataclass(frozen=True)
class Energy:
    """Watt-hours, and whether a counter said so or the model."""

    watt_hours: float
    source: Source


class Meter:
    """The packages' energy counters from now on. `root` is where the kernel shows its zones.

    A counter that starts again is noticed if `read` is called at least once each time round: at
    100 W the usual range of 262 kJ lasts 44 minutes.
    """

    def __init__(self, root: Path = POWERCAP):
        self.joules, self.last, self.range = 0.0, {}, {}
        for name in sorted(root.glob("intel-rapl:*/name")):
            zone, package = name.parent, name.read_text().startswith("package")
            if package and (start := _number(zone / "energy_uj")) is not None:
                self.last[zone] = start
                self.range[zone] = _number(zone / "max_energy_range_uj") or 2**32

    def read(self) -> float | None:
        """Joules of all packages since the meter was made; None where no counter can be read."""
        for zone, before in self.last.items():
            now = _number(zone / "energy_uj")
            if now is not None:
                around = self.range[zone] if now < before else 0
                self.joules += (now - before + around) / 1e6
                self.last[zone] = now
        return self.joules if self.last else None

    def watts(self, work: Callable[[], T]) -> tuple[T, float | None]:
        """What `work` gives, and the mean power meanwhile; None where no counter can be read."""
        start, before = time.monotonic(), self.read()
        made, after = work(), self.read()
        if before is None or after is None:
            return made, None
        return made, (after - before) / (time.monotonic() - start)


def _number(file: Path) -> int | None:
    """What a counter says; None where there is none or it may not be read."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def watts_per_core() -> float:
    """`$ONSIL_WATTS_PER_CORE`, else 12. Raises OnsilError when it is not a power."""
    told = os.environ.get(VARIABLE, "")
    if not told:
        return WATTS_PER_CORE
    try:
        watts = float(told)
    except ValueError:
        watts = math.nan
    if not 0 < watts < math.inf:
        raise OnsilError(
            en=(
                f"{VARIABLE}={told} is not a power in watts.",
                "Energy is CPU-seconds times it.",
                f"Give a number such as 12, or unset {VARIABLE}.",
            ),
            ko=(
                f"{VARIABLE}={told}은(는) 전력(와트)으로 읽을 수 없습니다.",
                "전력량은 CPU 시간에 이 값을 곱해 계산합니다.",
                f"12 같은 숫자를 주거나 {VARIABLE}을 지워 주세요.",
            ),
        )
    return watts


def modelled(cpu_seconds: float) -> Energy:
    """CPU-seconds × watts a core."""
    return Energy(cpu_seconds * watts_per_core() / 3600, "modelled")


def measured(joules: float) -> Energy:
    return Energy(joules / 3600, "measured")
