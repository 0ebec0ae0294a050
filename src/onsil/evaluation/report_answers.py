"""Report sections about answering: the headline, held-out questions, risk–coverage, samples."""

from onsil.evaluation.report_html import (
    Markup,
    both,
    heading,
    join,
    measure,
    middle,
    number,
    pair,
    percent,
    plain_measure,
    put,
    score,
    table,
)
from onsil.evaluation.report_svg import Line, line_chart
from onsil.evaluation.report_words import NON_NEURAL, READERS, SAMPLES, TYPES, called

NAMED = 10  # ids of questions named at most
HEADLINES = (
    ("f1", ("답의 정확도 (F1)", "Answer accuracy (F1)"), score),
    ("answered_share", ("답이 있는 질문에 답한 비율", "Answered when answerable"), percent),
    ("citation", ("근거가 맞은 답", "Answers with the right source"), percent),
    ("abstained_share", ("답이 없을 때 물러난 비율", "Turned away when unanswerable"), percent),
)


def headline_section(card: dict) -> Markup:
    """Which reader answers, its four numbers on test, and what they are to be held against."""
    chosen = card.get("chosen", "")
    ko, en = called(READERS, chosen)
    test = ((card.get("readers") or {}).get(chosen) or {}).get("test") or {}
    boxes = [
        Markup(
            f'<div class="headline">{pair(words)}<b>{put(_first(test[key], form))}</b>'
            f'<span class="ci">{put(_interval(test[key], form))}</span></div>'
        )
        for key, words, form in HEADLINES
        if test.get(key) is not None
    ]
    return join(
        [
            both(f"답하는 방식: {ko}", f"The reader that answers: {en}") if chosen else Markup(""),
            Markup(f'<div class="headlines">{"".join(boxes)}</div>') if boxes else Markup(""),
            both(*verdict(card)),
            _baselines(card),
            _source_of_questions(card),
        ]
    )


def _first(value, form) -> str:
    return form(middle(value))


def _interval(value, form) -> str:
    if not isinstance(value, (list, tuple)) or len(value) < 3:
        return ""
    return f"95 % [{form(value[1])}, {form(value[2])}]"


def verdict(card: dict) -> tuple[str, str]:
    """Whether the trained reader beats the best non-neural one, as far as the interval tells."""
    found = card.get("difference") or {}
    if not found.get("f1"):
        return (
            "신경망이 아닌 방식과의 차이는 재지 않았습니다.",
            "The difference to the non-neural readers was not measured.",
        )
    mean, low, high = found["f1"]
    one, other = (
        called(READERS, found.get(k) or d)
        for k, d in (("of", card.get("chosen", "")), ("against", "best_sentence"))
    )
    if low > 0:
        ko, en = "이 차이는 우연으로 보기 어렵습니다.", "chance alone is an unlikely reason."
    elif high < 0:
        ko, en = "학습한 모델이 더 나쁩니다.", "the trained reader is worse."
    else:
        ko = "구간에 0이 들어 있어 어느 쪽이 낫다고 말할 수 없습니다."
        en = "the interval contains 0, so neither can be called better."
    return (
        f"시험 질문에서 ‘{one[0]}’의 F1에서 ‘{other[0]}’의 F1을 뺀 값은 {mean:+.3f}이고, "
        f"95 % 구간은 [{low:+.3f}, {high:+.3f}]입니다. {ko}",
        f"On test questions the F1 of “{one[1]}” minus that of “{other[1]}” is {mean:+.3f}, 95 % "
        f"interval [{low:+.3f}, {high:+.3f}]: {en}",
    )


def _baselines(card: dict) -> Markup:
    """The other readers' F1 in one sentence, and the word for a choice that was not the network."""
    scores = {
        name: splits["test"]["f1"]
        for name, splits in (card.get("readers") or {}).items()
        if name != card.get("chosen") and (splits.get("test") or {}).get("f1")
    }
    parts = []
    if scores:
        words = [(called(READERS, n), plain_measure(v, score)) for n, v in scores.items()]
        parts.append(
            both(
                "견줄 값(F1): " + ", ".join(f"{w[0]} {v}" for w, v in words) + ".",
                "To hold against it (F1): " + "; ".join(f"{w[1]} {v}" for w, v in words) + ".",
            )
        )
    few = (card.get("gold") or {}).get("borrowed", 0)
    if card.get("chosen") in NON_NEURAL and few:
        parts.append(
            both(
                "사람이 쓴 질문이 모자라 학습한 모델이 더 나은지 알 수 없으므로 신경망이 아닌 "
                f"방식을 골랐고, 답할지 정하는 문턱은 onsil 예시 문서에 사람이 한 질문 {few:,}개를 "
                "함께 보고 정했습니다. gold.jsonl에 질문을 더 적으면 이 문서로 정합니다.",
                "People have not asked enough to tell whether a trained reader is better, so a "
                "non-neural one answers, and the threshold was set with "
                f"{few:,} questions people asked about onsil's example documents. More questions "
                "in gold.jsonl set it by these documents.",
            )
        )
    elif card.get("chosen") in NON_NEURAL:
        parts.append(
            both(
                "개발용 질문에서 학습한 모델이 뚜렷하게 낫지 않아 신경망이 아닌 방식을 골랐습니다.",
                "On dev questions the trained reader was not clearly better, so a non-neural one "
                "was chosen.",
            )
        )
    return join(parts)


def _source_of_questions(card: dict) -> Markup:
    gold = card.get("gold") or {}
    if not gold:
        return Markup("")
    dev, test = gold.get("dev", 0), gold.get("test", 0)
    if gold.get("source") == "lessons":
        return both(
            f"사람이 쓴 질문(gold.jsonl)이 없어 학습에 쓰지 않은 문서에서 만든 질문으로 "
            f"시험했습니다(개발용 {dev:,}개, 시험용 {test:,}개). 사람이 묻는 말과 다르므로 "
            "실제보다 높게 나올 수 있습니다.",
            f"There is no gold.jsonl, so the questions were made from held-out documents (dev "
            f"{dev:,}, test {test:,}). People ask differently: expect lower numbers in use.",
        )
    seen, nowhere = gold.get("seen", 0), gold.get("nowhere") or []
    told = both(
        f"질문은 {gold.get('source', 'gold.jsonl')}에서 왔습니다(개발용 {dev:,}개, 시험용 "
        f"{test:,}개). 시험용 가운데 학습한 수업에 거의 그대로 있던 것은 {seen:,}개입니다.",
        f"The questions come from {gold.get('source', 'gold.jsonl')} (dev {dev:,}, test {test:,}). "
        f"Of those for test, {seen:,} stand almost as they are in the lessons.",
    )
    if not nowhere:
        return told
    ids = ", ".join(nowhere[:NAMED]) + (" …" if len(nowhere) > NAMED else "")
    return join(
        [
            told,
            both(
                f"정답이 있다는 곳이 문서에 없는 질문이 {len(nowhere):,}개 있습니다({ids}). 무엇을 "
                "근거로 대도 틀린 것으로 매겨지니 gold.jsonl의 document와 heading을 확인해 주세요.",
                f"{len(nowhere):,} questions name a place that no document has ({ids}). Whatever "
                "is cited for them counts as wrong: check document and heading in gold.jsonl.",
            ),
        ]
    )


def questions_section(card: dict) -> Markup:
    """All readers on dev and test, with intervals; and the chosen one by type of question."""
    tables = []
    for split, words in SPLITS:
        rows, chosen = [], None
        for name, splits in (card.get("readers") or {}).items():
            if not (m := splits.get(split)):
                continue
            if name == card.get("chosen"):
                chosen = len(rows)
            mark = (
                Markup('<span class="mark">← 고른 방식 · chosen</span>')
                if name == card.get("chosen")
                else Markup("")
            )
            rows.append(
                (
                    Markup(pair(called(READERS, name)) + mark),
                    *(measure(m.get(k), f) for k, _, f in MEASURES),
                    f"{number(m.get('answered', '–'))} / {number(m.get('questions', '–'))}",
                )
            )
        numbers = range(1, len(MEASURES) + 2)
        tables.append(table(words, QUESTION_HEAD, rows, list(numbers), chosen))
    types = [
        (pair(called(TYPES, k)), number(v.get("n", "–")), measure(v.get("f1"), score))
        for k, v in (card.get("by_type") or {}).items()
    ]
    if not any(tables) and not types:
        return Markup("")
    threshold = card.get("threshold")
    return join(
        [
            heading(("학습하지 않은 질문", "Held-out questions")),
            both(
                "읽는 방식과 답할지 정하는 문턱은 개발용(dev) 질문만 보고 골랐고, 시험용(test) "
                "질문은 마지막에 한 번 채점했습니다. 대괄호는 95 % 부트스트랩 구간입니다.",
                "The reader and the threshold for answering were chosen on dev questions alone; "
                "test questions were scored once, at the end. Brackets are 95 % bootstrap "
                "intervals.",
            ),
            both(
                f"확신이 {threshold:.3f} 이상일 때만 답합니다.",
                f"It answers only from a confidence of {threshold:.3f} up.",
            )
            if threshold is not None
            else Markup(""),
            *tables,
            table(
                ("고른 방식의 질문 종류별 F1 (시험용)", "F1 of the chosen reader by type (test)"),
                [("종류", "Type"), ("질문", "Questions"), ("F1", "")],
                types,
                [1, 2],
            ),
        ]
    )


SPLITS = (
    ("test", ("시험용(test): 결과", "test: the result")),
    ("dev", ("개발용(dev): 고르는 데 쓴 질문", "dev: what the choices were made on")),
)
MEASURES = (
    ("f1", ("F1", ""), score),
    ("exact", ("완전 일치", "Exact"), percent),
    ("citation", ("답 가운데 근거 맞음", "Right source, of all answers"), percent),
    ("citation_answerable", ("답 있는 질문의 근거 맞음", "Right source, answerable"), percent),
    ("answered_share", ("답이 있을 때 답함", "Answered, answerable"), percent),
    ("abstained_share", ("답이 없을 때 물러남", "Abstained, unanswerable"), percent),
)
QUESTION_HEAD = [
    ("읽는 방식", "Reader"),
    *(words for _, words, _ in MEASURES),
    ("답함 / 질문", "Answered / asked"),
]


def risk_section(card: dict) -> Markup:
    """How the share of wrong answers grows as more questions are answered."""
    curves = card.get("risk_coverage") or {}
    lines = [
        Line(" · ".join(called(READERS, name)), [(c, r) for c, r in points])
        for name, points in curves.items()
    ]
    chart = line_chart(
        ("위험–응답률 곡선", "Risk–coverage curve"),
        "답한 질문의 비율 · share of questions answered",
        "틀린 정도 · risk",
        lines,
        from_zero=True,
    )
    if not chart:
        return Markup("")
    return join(
        [
            heading(("얼마나 답하고 얼마나 틀리는지", "How much it answers, how much is wrong")),
            both(
                "왼쪽은 가장 확신하는 질문에만 답할 때, 오른쪽은 모두 답할 때입니다. 낮을수록 "
                "좋고, 확신이 쓸모 있다면 왼쪽으로 갈수록 내려갑니다.",
                "On the left only the most confident questions are answered, on the right all of "
                "them. Lower is better; a useful confidence falls towards the left.",
            ),
            chart,
        ]
    )


def samples_section(card: dict) -> Markup:
    """Good, bad and withheld answers as they were given, with their sources."""
    samples = card.get("samples") or []
    if not samples:
        return Markup("")
    ordered = sorted(samples, key=lambda s: list(SAMPLES).index(s["kind"]))
    return join(
        [
            heading(("답변 예", "Sample answers")),
            both(
                "맞힌 답과 틀린 답을 함께 보입니다. 시험용 질문의 순서대로 고르게 뽑았습니다.",
                "Good and bad ones alike, drawn evenly in the order of the test questions.",
            ),
            *map(_sample, ordered),
        ]
    )


def _sample(sample: dict) -> Markup:
    rows = [(("질문", "Question"), put(sample.get("question", "")))]
    answer = sample.get("answer")
    if answer is None:
        rows.append((("답변", "Answer"), pair(("문서에서 답을 찾지 못했습니다.", "Not found."))))
    else:
        rows.append((("답변", "Answer"), put(answer)))
    gold = " / ".join(sample.get("gold") or [])
    none = pair(("문서에 답이 없는 질문입니다.", "The documents do not answer it."))
    rows.append((("정답", "Accepted"), put(gold) if gold else none))
    if gold and answer is not None and sample.get("f1") is not None:
        rows.append((("F1", ""), put(score(sample["f1"]))))
    label = ("근거", "Source") if answer is not None else ("가장 가까운 곳", "Nearest passage")
    for c in sample.get("citations") or []:
        place = " › ".join(x for x in (c.get("document"), c.get("heading")) if x)
        quoted = Markup(f'<p class="passage">{put(c.get("passage", ""))}</p>')
        rows.append((label, Markup(put(place) + quoted)))
    body = "".join(f"<dt>{pair(words)}</dt><dd>{text}</dd>" for words, text in rows)
    kind = sample["kind"]
    return Markup(
        f'<article class="sample {put(kind)}">{heading(called(SAMPLES, kind), 3)}'
        f"<dl>{body}</dl></article>"
    )
