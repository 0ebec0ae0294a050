"""How much loss a size and an amount of text buy: the law, its fit, and where it may not be used.

Hoffmann et al. 2022 ("Chinchilla") write the loss of a model of N weights after D tokens as
L = E + A/N^α + B/D^β: what no model can know, what a small one misses, what too little text leaves
untold. Their five constants, and those Besiroglu et al. 2024 (Epoch AI) got from the same runs when
they fitted again, are rows of `PUBLISHED`. `fit` finds them for other runs as both papers do: Huber
loss (δ = 1e-3) between log L and the log of the law, L-BFGS from the best of a grid. The interval
comes from fits to resampled runs, with the scatter of single runs added.

A law holds where it was fitted. Deshpande et al. see this one break below 2.2e15 FLOP, and a run of
minutes on a laptop is a hundred times below that, so `predict` refuses, as it refuses to go below
the smallest run of a fit of your own. What a small run will reach is said by small runs instead:
`forecast` takes how far the runs recorded in this project ended from a Kneser-Ney trigram of the
same text, one run a corpus, and gives the interval that so few runs allow (Student's t). Where none
of them resembles the run, it gives a reason and no figure.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

from onsil.errors import OnsilError

REGIME = 2.2e15  # FLOP; Deshpande et al., abstract
DELTA = 1e-3
# Where the search starts: exponents, E's share of the mean loss, and A's share of the rest.
EXPONENTS, SHARES_OF_E, SHARES_OF_A = (0.1, 0.3, 0.5, 0.8), (0.2, 0.5, 0.7, 0.9), (0.2, 0.5, 0.8)
STARTS = 8


@dataclass(frozen=True)
class Law:
    """L(N, D) in nats a token of the text and vocabulary it was fitted on; `lowest` in FLOP."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    lowest: float = REGIME

    def loss(self, weights: float, tokens: float) -> float:
        """The formula alone, wherever it is asked; `predict` asks whether it holds there."""
        return self.E + self.A / weights**self.alpha + self.B / tokens**self.beta


PUBLISHED = {
    "Hoffmann et al. 2022": Law(1.69, 406.4, 0.34, 410.7, 0.28),
    "Besiroglu et al. 2024": Law(1.817, 482.0, 0.348, 2085.4, 0.366),
}


@dataclass(frozen=True)
class Trained:
    """One finished run: weights N, tokens D, held-out loss."""

    weights: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Fit:
    """A law, the laws of resampled runs, and how far (in log loss) each run lay from it."""

    law: Law
    resampled: tuple[Law, ...]
    residuals: tuple[float, ...]

    def interval(self, weights: float, tokens: float) -> tuple[float, float]:
        """Where 95 % of further runs of this size would lie. Raises OnsilError below the runs
        fitted."""
        predict(self.law, weights, tokens)
        draw, n = random.Random(0), len(self.residuals)
        wider = math.sqrt(n / max(1, n - 5))  # five constants were fitted to the scatter
        seen = sorted(
            law.loss(weights, tokens) * math.exp(wider * draw.choice(self.residuals))
            for law in self.resampled
            for _ in range(20)
        )
        cut = len(seen) // 40
        return seen[cut], seen[-1 - cut]


def flop(weights: float, tokens: float) -> float:
    """Training compute, 6·N·D (Kaplan et al. 2020)."""
    return 6 * weights * tokens


def predict(law: Law, weights: float, tokens: float) -> float:
    """The law's loss for a run. Raises OnsilError for less compute than it was fitted on."""
    asked = flop(weights, tokens)
    if asked < law.lowest:
        raise OnsilError(
            en=(
                f"No law says what {weights:,.0f} weights reach after {tokens:,.0f} tokens: that "
                f"is {asked:.1e} FLOP.",
                f"Its constants hold from {law.lowest:.1e} FLOP on.",
                "Use the forecast from small runs, or fit runs of this size.",
            ),
            ko=(
                f"가중치 {weights:,.0f}개로 {tokens:,.0f}토큰을 학습한 결과는 법칙으로 말할 수 "
                f"없습니다. 계산량이 {asked:.1e} FLOP입니다.",
                f"법칙의 상수는 {law.lowest:.1e} FLOP부터 맞습니다.",
                "작은 실행에서 얻은 예측을 쓰거나, 이 크기의 실행으로 다시 맞춰 주세요.",
            ),
        )
    return law.loss(weights, tokens)


def fit(runs: Sequence[Trained], resamples: int = 40, seed: int = 0) -> Fit:
    """The law of some runs. Raises OnsilError for fewer than six, or without two sizes and two
    amounts of text: five constants need more than that to be told apart."""
    if len(runs) < 6 or min(len({r.weights for r in runs}), len({r.tokens for r in runs})) < 2:
        raise OnsilError(
            en=(
                f"{len(runs)} runs cannot be fitted.",
                "The law has five constants: it takes six runs, of several sizes and lengths.",
                "Add runs that differ in size and in tokens.",
            ),
            ko=(
                f"실행 {len(runs)}개로는 법칙을 맞출 수 없습니다.",
                "상수가 다섯 개라서 크기와 길이가 다른 실행이 여섯 개는 필요합니다.",
                "크기와 토큰 수가 다른 실행을 더해 주세요.",
            ),
        )
    rows = torch.tensor([[r.weights, r.tokens, r.loss] for r in runs], dtype=torch.float64).log()
    middle, lowest = rows.mean(0), min(flop(r.weights, r.tokens) for r in runs)
    best = min(
        (_descend(rows - middle, start) for start in _starts(rows - middle)), key=lambda f: f[1]
    )
    draw, resampled = random.Random(seed), []
    for _ in range(resamples):
        chosen = torch.tensor([draw.randrange(len(runs)) for _ in runs])
        found, _ = _descend(rows[chosen] - middle, best[0])
        resampled.append(_law(found, middle, lowest))
    law = _law(best[0], middle, lowest)
    off = tuple(math.log(r.loss / law.loss(r.weights, r.tokens)) for r in runs)
    return Fit(law, tuple(resampled), off)


def _log_law(theta_P5: Tensor, rows_R3: Tensor) -> Tensor:
    """log L of every run under every set of (log E, log A, α, log B, β), P × R."""
    e, a, alpha, b, beta = (theta_P5[:, i, None] for i in range(5))
    terms = (a - alpha * rows_R3[:, 0], b - beta * rows_R3[:, 1])
    return torch.stack((e.expand_as(terms[0]), *terms)).logsumexp(0)


def _objective(theta_P5: Tensor, rows_R3: Tensor) -> Tensor:
    """Huber's loss summed over the runs, one a set of constants."""
    off = (_log_law(theta_P5, rows_R3) - rows_R3[:, 2]).abs()
    return torch.where(off < DELTA, off**2 / 2, DELTA * (off - DELTA / 2)).sum(1)


def _starts(rows_R3: Tensor) -> list[Tensor]:
    """The best few of a grid. The rows are centred: the three terms add up to 1 in the middle."""
    grid = [
        [math.log(e), math.log((1 - e) * a), alpha, math.log((1 - e) * (1 - a)), beta]
        for e in SHARES_OF_E
        for a in SHARES_OF_A
        for alpha in EXPONENTS
        for beta in EXPONENTS
    ]
    theta_P5 = torch.tensor(grid, dtype=torch.float64)
    return list(theta_P5[_objective(theta_P5, rows_R3).argsort()[:STARTS]])


def _descend(rows_R3: Tensor, start_5: Tensor) -> tuple[Tensor, float]:
    """L-BFGS from one start: the constants and their objective."""
    theta_5 = start_5.clone().requires_grad_()
    finder = torch.optim.LBFGS(
        [theta_5],
        max_iter=1000,
        history_size=20,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        finder.zero_grad()
        loss = _objective(theta_5[None], rows_R3)[0] / DELTA**2
        loss.backward()
        return loss

    finder.step(closure)  # type: ignore[arg-type]
    found = theta_5.detach()
    return found, float(_objective(found[None], rows_R3)[0])


def _law(theta_5: Tensor, middle_3: Tensor, lowest: float) -> Law:
    """Constants of centred logs as constants of N, D and L."""
    e, a, alpha, b, beta = theta_5.tolist()
    n, d, loss = middle_3.tolist()
    return Law(
        math.exp(e + loss),
        math.exp(a + alpha * n + loss),
        alpha,
        math.exp(b + beta * d + loss),
        beta,
        lowest,
    )


@dataclass(frozen=True)
class Small:
    """A run recorded in this project: bytes of its corpus, the decoder's width and whether it
    started from a base; held-out bits per byte of the decoder and of a trigram of the same text."""

    corpus: str
    where: str
    bytes: int
    width: int
    base: bool
    bits: float
    trigram: float


# Small runs, planned as `onsil grow` plans; the last of a corpus counts.
RUNS = "benchmarks/results/wirings.jsonl"
SMALL_RUNS = (
    Small("raw-docs", RUNS, 6_287_852, 128, False, 1.1032, 1.1609),
    Small("law-ko", RUNS, 3_140_072, 192, False, 0.9963, 0.9496),
    Small("tech-ko", RUNS, 2_770_150, 192, False, 1.2716, 1.2972),
    Small("handbook", RUNS, 146_281, 128, False, 1.4574, 1.4475),
    Small("handbook", "benchmarks/results/grown.jsonl", 146_281, 192, True, 1.0013, 1.418),
)
# Student's t, two-sided 95 %, by degrees of freedom; beyond the last that of the last, wider.
STUDENT = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
NO_FORECAST = ("no held-out text", "few runs", "unlike the runs")


@dataclass(frozen=True)
class Forecast:
    """Held-out bits per byte with a 95 % interval; or why there is none (a word of NO_FORECAST)."""

    bits: float = 0.0
    low: float = 0.0
    high: float = 0.0
    why_not: str = ""


def forecast(
    trigram: float | None,
    size: int,
    width: int,
    base: bool,
    runs: Sequence[Small] = SMALL_RUNS,
) -> Forecast:
    """What a small run will reach: the trigram's bits per byte times the ratio that earlier runs
    ended at. `size` in bytes of the corpus; `base`: it starts from one."""
    if not trigram:
        return Forecast(why_not="no held-out text")
    alike = [run for run in runs if run.base == base]
    ratios = list({run.corpus: math.log(run.bits / run.trigram) for run in alike}.values())
    if len(ratios) - 1 < min(STUDENT):
        return Forecast(why_not="few runs")
    widths, sizes = {run.width for run in alike}, [run.bytes for run in alike]
    if not (min(sizes) <= size <= max(sizes) and min(widths) <= width <= max(widths)):
        return Forecast(why_not="unlike the runs")
    middle = fmean(ratios)
    apart = (
        STUDENT[min(len(ratios) - 1, max(STUDENT))] * stdev(ratios) * math.sqrt(1 + 1 / len(ratios))
    )
    told = [round(trigram * math.exp(middle + x), 4) for x in (0.0, -apart, apart)]
    return Forecast(bits=told[0], low=told[1], high=told[2])
