"""The plan as a person reads it before the run: a line each for shape, text, time, memory, energy
and what the language model is expected to reach, or why nothing is."""

from onsil.errors import say
from onsil.training.energy import VARIABLE
from onsil.training.memory import Machine, resident
from onsil.training.plan import Plan
from onsil.training.scaling import PUBLISHED, flop, predict

# Why there is no forecast (scaling.NO_FORECAST), Korean and English.
WHY_NOT = {
    "no held-out text": (
        "측정용으로 남겨 둔 글이 없습니다",
        "there is no held-out text to measure it on",
    ),
    "few runs": (
        "이런 출발점에서 시작한 실행 기록이 셋보다 적어 구간을 말할 수 없습니다",
        "fewer than three recorded runs started like this one, too few for an interval",
    ),
    "unlike the runs": (
        "글의 양이나 모델의 너비가 기록된 실행의 범위를 벗어납니다",
        "the amount of text or the width lies outside the recorded runs",
    ),
}


def described(plan: Plan, machine: Machine | None = None) -> str:
    """Lines for the terminal, in the reader's language; those an older plan cannot fill are left
    out. `machine`: warn when its free memory is less than the plan's."""
    lines = [_shape(plan), _text(plan), _time(plan)]
    if plan.predicted_memory_mb:
        mb = f"{plan.predicted_memory_mb:,}"
        lines.append(
            say(
                f"  memory   up to about {mb} MB while training",
                f"  메모리   학습 중 최대 약 {mb} MB",
            )
        )
        lines.append(_warning(plan, machine))
    if plan.energy_source:
        lines.append(_energy(plan))
    if plan.parameters:
        lines += [_forecast(plan), _law(plan)]
    return "\n".join(line for line in lines if line)


RECIPES = {"adamw": "AdamW", "muon": "Muon"}


def _shape(plan: Plan) -> str:
    many = f"{plan.parameters:,}" if plan.parameters else ""
    compiled = say(", compiled", ", 컴파일한 코드") if plan.compiled else ""
    recipe = f"{RECIPES[plan.decoder_recipe]} {plan.decoder_rate or plan.learning_rate:g}"
    return say(
        f"Plan: {plan.width} wide × {plan.depth} deep"
        + (f", {many} weights in the decoder" if many else "")
        + f", {plan.compute}, {plan.threads} threads{compiled}, "
        f"learning rate {plan.learning_rate:g} "
        f"(decoder: {recipe}), seed {plan.seed}",
        f"계획: 너비 {plan.width} × 깊이 {plan.depth}"
        + (f", 언어 모델 가중치 {many}개" if many else "")
        + f", {plan.compute}, 스레드 {plan.threads}개{compiled}, 학습률 {plan.learning_rate:g}"
        f"(언어 모델: {recipe}), 시드 {plan.seed}",
    )


def _text(plan: Plan) -> str:
    epochs = " · ".join(
        f"{part} {getattr(plan, f'{part}_epochs')}" for part in ("decoder", "encoder", "reader")
    )
    tokens, steps = f"{plan.decoder_tokens:,}", f"{plan.decoder_steps:,}"
    told = plan.decoder_steps > 0
    return say(
        f"  text     epochs: {epochs}; batches of {plan.batch_tokens:,} tokens"
        + (f"; decoder {tokens} tokens in {steps} steps" if told else ""),
        f"  분량     에폭(회): {epochs}. 배치 {plan.batch_tokens:,}토큰"
        + (f". 언어 모델 {tokens}토큰, {steps}단계" if told else ""),
    )


def _time(plan: Plan) -> str:
    speed, seconds = f"{plan.tokens_per_second:,}", f"{plan.predicted_seconds:,}"
    return say(
        f"  time     about {seconds} s of training at {speed} tokens/s, measured",
        f"  시간     학습 약 {seconds}초(측정한 속도 {speed} tokens/s)",
    )


def _warning(plan: Plan, machine: Machine | None) -> str:
    if machine is None:
        return ""
    free = (machine.available + resident()) / 2**20
    if plan.predicted_memory_mb <= free:
        return ""
    return say(
        f"           Warning: only {free:,.0f} MB are free now. Close other programs first.",
        f"           주의: 지금 남은 메모리는 {free:,.0f} MB입니다. 다른 프로그램을 먼저 닫아 "
        "주세요.",
    )


def _energy(plan: Plan) -> str:
    hours, watts = f"{plan.predicted_watt_hours:.3g}", f"{plan.watts:.3g}"
    if plan.energy_source == "measured":
        return say(
            f"  energy   about {hours} Wh (power measured at the processor: {watts} W)",
            f"  전력량   약 {hours} Wh(프로세서에서 측정한 전력 {watts} W)",
        )
    each = f"{plan.watts / plan.threads:.3g}"
    return say(
        f"  energy   about {hours} Wh (modelled: {each} W a core assumed; {VARIABLE} changes it)",
        f"  전력량   약 {hours} Wh(추정: 코어당 {each} W로 가정, {VARIABLE}로 바꿀 수 있음)",
    )


def _forecast(plan: Plan) -> str:
    if plan.no_forecast:
        ko, en = WHY_NOT[plan.no_forecast]
        return say(f"  quality  no forecast: {en}", f"  품질     예측하지 않음: {ko}")
    bits = f"{plan.predicted_bits_per_byte:.2f} [{plan.bits_low:.2f}, {plan.bits_high:.2f}]"
    trigram = f"{plan.trigram_bits_per_byte:.2f}"
    return say(
        f"  quality  {bits} bits per byte of held-out text (a trigram: {trigram}; 95 % interval "
        "from earlier runs)",
        f"  품질     남겨 둔 글에서 바이트당 {bits}비트(trigram {trigram}, 지난 실행에서 얻은 "
        "95 % 구간)",
    )


def _law(plan: Plan) -> str:
    """What the published law says, or that it says nothing of a run this small."""
    name, law = list(PUBLISHED.items())[-1]
    sizes = (plan.parameters, plan.decoder_tokens)
    compute, least = f"{flop(*sizes):.1e}", f"{law.lowest:.1e}"
    if flop(*sizes) < law.lowest:
        return say(
            f"  law      none: {compute} FLOP, and scaling laws break below {least}",
            f"  법칙     쓰지 않음: 계산량이 {compute} FLOP이고, 스케일링 법칙은 {least} 아래에서 "
            "어긋납니다",
        )
    loss = f"{predict(law, *sizes):.2f}"
    return say(
        f"  law      {compute} FLOP: {loss} nats a token by {name}, of their text and vocabulary",
        f"  법칙     계산량 {compute} FLOP: {name}의 법칙으로는 토큰당 {loss}nats(그 글과 어휘 "
        "기준)",
    )
