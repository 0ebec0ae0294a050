"""Search results put in order: from twenty candidates, the passage that fits the question.

BM25 finds; this decides. A candidate's fit is a weighted sum of how far the question is covered by
the passage and by its best line, how far the passage's headings are about the question (a heading
about another subject speaks against it), whether the kind of thing asked for («며칠» → a number of
days) is there, and what something was before, if that is asked. The weights were fitted on the dev
questions of examples/handbook by a listwise softmax and rounded to whole numbers (docs/log.md,
"Ranking"); fitted anew on three folders they came out alike.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from onsil.retrieval.bm25 import BM25, DEFINES, TERM, Word, coverage, marks, terms
from onsil.retrieval.passages import LONGEST, Passage, sentences
from onsil.retrieval.values import fits

CANDIDATES, READ = 20, 5  # passages put in order, and given to a reader
WEIGHTS = {
    "search": 5.0,  # BM25 score over the best candidate's
    "passage": 2.0,  # question covered by passage and headings
    "line": 3.0,  # … by the best line with its heading
    "line_alone": 3.0,  # … by the best line without it
    "heading": 1.0,  # heading covered by the question
    "title": 1.0,  # title covered by the question
    "kind": 2.0,  # the kind of thing asked for is there
    "defines": 2.0,  # it defines what the question asks the meaning of
    "length": 1.0,  # a stub is a worse answer than a full article
    "changed": 2.0,  # it says what something was before, and that is asked
    "cover": -2.0,  # it stands under the document's title: dates and offices, not rules
}

# Not the tail of a longer number, nor the day of a date (3월 1일; but the 3 of «월 3회»).
NUMBER = r"(?<![\d,.])(?<!\d월)(?<!\d월 )\d[\d,.]*\s*(?:백만|천만|백|천|만|억)?\s*"
BOUND = r"(?:\s*(?:이상|이하|이내|미만|초과|전까지|전|안에|까지))?"
DATE = (
    r"(?:\d{4}\s*[.년-]\s*)?\d{1,2}\s*[.월-]\s*\d{1,2}일?(?:까지)?|"
    r"매[년월주]\s*(?:\d{1,2}[월일]|[첫둘셋넷마]\S*\s*주\s*\S요일)(?:\s*\d{1,2}일)?"
)
WEEK = r"\d{1,2}월\s*(?:첫|둘|셋|넷|다섯|마지막)째?\s*주(?:\s*[월화수목금토일]요일)?"
SPAN = r"(?!(?:19|20)\d\d\s*년)" + NUMBER + r"(?:영업일|근무일|일|주일|주|개월|시간|년)" + BOUND
# What «얼마» asks for where no money is: a share, a size, a weight.
SIZE = (
    r"(?<![\d,.])\d[\d,.]*\s*(?:분의\s*\d[\d,.]*|(?i:[mgkt]b\b|kg\b|g\b|km\b|m\b|cm\b|l\b)|"
    r"(?:메가|기가|킬로)바이트|킬로그램|그램|킬로미터|미터|리터|럭스|도|배|℃|㎡|평|쪽|매|건|회)"
    + BOUND
)
# Of three syllables and more, 부 and 실 name a department (기록보존부) and not a part or a room.
ROOMS = "전시|처리|녹화|준비|회의|휴게|상담|자료|열람|보관|건강|방재|전산|당직|접견|교육|체험|강의"
WHO = (
    r"[가-힣·]{0,12}(?:위원장|원장|실장|팀장|부장|센터장|담당관|담당자|담당|책임자|감사|위원회|"
    rf"위원|전문요원|팀|부서장|부서|(?<=[가-힣]{{3}})부|(?<=[가-힣]{{3}})(?<!{ROOMS})실)"
    r"(?=[이가은는의에을를과와로으,\s.)]|$)"
)
PLACE = (
    r"(?:본관|별관|동관|서관)?\s?(?:지하\s?)?\d+층[^\n.,/]{0,12}|"
    r"[가-힣\d]+(?:\s[가-힣\d]+)?\s?(?:안내데스크|로비|센터|분원|출구|마당|게시판|서고)"
)
# Where something is handed in or asked for: a room, an office, «a menu», before 에 or 에서.
SPOT = (
    r"(?:[가-힣]{2,8}\s)?«[^»]{2,20}»(?=에|에서)|"
    r"[가-힣\d]{1,8}(?:실|과|팀|부|소|관|원|함|창구|누리집|홈페이지)(?=에)"
)
# Who somebody is by name stands before an extension: 담당 홍길동(내선 1234), 홍길동 ☎ 1234.
EXTENSION = r"(?=\s*\(?\s*(?:내선|☎|전화\s*0))"
NAME = r"(?<![가-힣])[가-힣]{2,4}" + EXTENSION
OFFICER = (
    r"(?:(?<![가-힣])[가-힣]{1,7}[^은는이가을를의도로과와에\s]\s)?"
    r"(?<![가-힣])[가-힣]{2,4}(?:\s[가-힣]{2,8})?" + EXTENSION
)
TIME = r"(?:오전\s*|오후\s*)?(?:\d{1,2}:\d{2}|\d{1,2}시(?!간)(?:\s*\d{1,2}분|\s*반)?)"
# From … to: «7월 28일부터 8월 1일까지», «10:00~11:30».
RANGE = r"{0}(?:부터)?\s*(?:[~∼～–-]\s*)?{0}(?:까지)?"
ASKED = [
    (r"성함|이름이|이름은|이름\s*(?:좀|알)", NAME, WHO),
    (r"누구|누가|(?:어느|어떤)\s*(?:팀|부서|분)|담당자가|담당자는", WHO, OFFICER),
    (
        r"어디(?:에|에다|로|다)\s*(?:\S+\s+)?(?:내|제출|반납|올|맡|돌려|알|신고|신청|전화)",
        PLACE,
        SPOT,
    ),
    (r"어디|몇\s*층|어느\s*(?:방|문|건물|층|회의실|창구)", PLACE),
    (r"몇\s*시(?!간).*부터.*까지|몇\s*시(?!간)[^?]*(?:~|에서)\s*몇\s*시", RANGE.format(TIME), TIME),
    (r"언제까지|마감|며칠에(?!\s*한\s*번)|몇\s*월\s*며칠", DATE, SPAN),
    (r"며칠|몇\s*일|기한", SPAN, DATE),
    (r"얼마\s*(?:동안|나\s*(?:지나|오래|자주))", SPAN + r"|영구|해마다|매년"),
    (
        r"얼마|금액|한도|비용|몇\s*원",
        NUMBER + r"(?:원|달러|유로|엔)" + BOUND,
        NUMBER + r"(?:%|퍼센트|점)" + BOUND,
        SIZE,
    ),
    (r"몇\s*시(?!간)", TIME + r"(?:까지)?"),
    (r"언제|날짜|시행일|몇\s*월", DATE + "|" + WEEK + r"|\d{1,2}월(?:,\s*\d{1,2}월)*|" + SPAN),
]
# What is known by its number: 9층, 3실, R-22. An amount (50개, 3부) may be one no paper says.
NUMBERED = re.compile(r"(?<![\d.,])\d+\s?(?:층|호실|호|실|관|호선)(?![가-힣]*\d)|[A-Za-z]{1,4}-\d+")
# «공유 링크: 계정이 없는 사람도 …», «검열인 · 뜻: …»: a line that explains its first words.
EXPLAINED = re.compile(
    r"^\W*(?:(?:[가-하]|\d{1,2})[.)]\s*)?([가-힣A-Za-z0-9 ]{2,15}?)\W*(?:: | · )"
)
# What it was before: «원래는 몇 인승이었죠», «그전에는 몇 퍼센트였어요».
BEFORE_ASKED = re.compile(
    r"원래|예전|옛날|그\s?전에|이전에|전에는|전엔|종전|기존|바뀌기\s?전|(?:달라|바뀐|바뀌었|고쳐진)|"
    r"(?:으로|로)\s?(?:늘|줄|올|낮|바뀌|오르)|(?:올랐|늘었|늘어났|줄었|줄어들었|내렸)"
)
BEFORE_SAID = re.compile(
    r"→|(?:개정|변경|시행)\s?전|종전|달라진|\d월까지: |"
    r"에서\s[^.\n]{1,25}(?:으로|로)\s(?:올|늘|줄|바꾸|바뀌|낮추|낮아|넓|고치|고쳐)"
)
ANNOUNCES = re.compile(r"다음\s*(?:표|각\s*호|과\s*같)")
# «몇 명» asks for a number of 명 or 인: the counting word, and what a rule may write instead.
COUNTED = {
    "명": "명|인", "사람": "명|인", "번": "회|번|차례", "회": "회|번", "살": "세", "년": "년",
    "달": "개월", "개월": "개월", "시간": "시간", "분": "분", "주": "주", "프로": "%|퍼센트",
    "퍼센트": "%|퍼센트", "점": "점", "쪽": "쪽", "장": "장|매|쪽", "자": "자", "급": "급",
    "개": "개|매|부|대|인", "부": "부", "건": "건", "대": "대", "도": "도|℃", "배": "배",
    "%": "%|퍼센트", "kg": "kg|킬로그램", "km": "km|킬로미터", "mb": "mb|메가바이트", "℃": "도|℃",
    "기가": "gb|기가바이트|기가", "메가": "mb|메가바이트|메가",
}  # fmt: skip


def kinds_asked(question: str) -> tuple[str, ...]:
    """Patterns of what a question asks for, the likeliest first («며칠» → a number of days, else a
    date); none when nothing is counted, dated, placed or named."""
    for asks, *answers in ASKED:
        if re.search(asks, question):
            return tuple(answers)
    found = re.search(r"몇\s*([가-힣a-z%℃]{1,3})", question.lower())
    if found is None:
        return ()
    unit = found.group(1)
    known = next((unit[:n] for n in (3, 2, 1) if unit[:n] in COUNTED), None)
    counted = COUNTED[known] if known else re.escape(unit[:2])
    return (r"(?:만\s*)?" + NUMBER + f"(?i:{counted})" + BOUND,)


@dataclass(frozen=True)
class Hit:
    """A candidate: its place in the index, its fit, and the line that covers most."""

    passage: Passage
    fit: float
    covered: float
    line: str


Search = Callable[..., list[Hit]]  # (index, question, limit=, without=) → the best first


def find(index: BM25, question: str, limit: int = READ, without: str | None = None) -> list[Hit]:
    """The passages that fit a question best, best first."""
    found = index.search(question, CANDIDATES, without)
    if not found:
        return []
    words, kind = index.words(question), "|".join(kinds_asked(question))
    defined, before = index.defined(question), bool(BEFORE_ASKED.search(question))
    asked = frozenset(terms(question)) | frozenset(c for word in words for c in word.concepts)
    hits = []
    for score, i in found:
        passage, at = index.passages[i], marks(index.passages[i].heading)
        lines = [(line, marks(line)) for line in sentences(passage.text) or [passage.text]]
        covers = [coverage(words, there | at) + told_apart(line, question) for line, there in lines]
        best = max(range(len(lines)), key=covers.__getitem__)
        parts = {
            "search": score / found[0][0],
            "passage": coverage(words, index.marks(i)),
            "line": min(1.0, covers[best]),
            "line_alone": max(coverage(words, there) for _, there in lines),
            "heading": about(index.words(passage.heading), asked),
            "title": about(index.words(passage.trail.split(" > ")[0]), asked),
            "kind": float(bool(kind and re.search(kind, passage.text))),
            "defines": float(i in defined),
            "length": min(1.0, len(passage.text) / LONGEST),
            "changed": float(before and bool(BEFORE_SAID.search(passage.text))),
            "cover": float(bare(passage.heading) == bare(passage.trail.split(" > ")[0])),
        }
        fit = sum(WEIGHTS[name] * value for name, value in parts.items())
        hits.append(Hit(passage, fit, parts["passage"], lines[best][0]))
    return sorted(hits, key=lambda hit: -hit.fit)[:limit]


def told_apart(line: str, question: str) -> float:
    """What a line's form says: one that only announces a list answers nothing; the row whose range
    holds the question's amount, or the line that defines its term, answers it."""
    if ANNOUNCES.search(line):
        return -1.0
    label, row, _ = line.partition(" · ")
    if row and (fit := fits(question, label)):
        return fit
    asked = bare(question)
    explained = [*TERM.findall(line), *EXPLAINED.findall(line)]
    defines = any(bare(term) in asked for term in explained)
    return 1.0 if defines and DEFINES.search(question) else 0.0


def bare(text: str) -> str:
    """Letters and digits alone."""
    return re.sub(r"\W", "", text)


def about(words: list[Word], asked: frozenset[str]) -> float:
    """How far a heading is about what was asked; one without words says nothing either way."""
    return coverage(words, asked) if words else 0.5


def evidence(index: BM25, question: str, hits: list[Hit], passage: Passage) -> tuple[float, ...]:
    """What the gate judges by, of the passage that is cited: its fit, its lead over the mean of all
    found, how far it and how far its headings cover the question; whether its best line has the
    kind of thing asked for (1, or −1 where it lacks it), and 1 where no kind is asked for; (minus)
    how many of the question's words no document here has, and how many words there are: a long
    question is covered less by what answers it. Nothing fits a question about what is known by a
    number that no document here says (9층, R-22). The choice was made with whole folders left out
    (docs/log.md, "Three more houses")."""
    mine = next(hit for hit in hits if hit.passage is passage)
    lead = mine.fit - sum(hit.fit for hit in hits) / max(READ, len(hits))  # of few, none is near
    words, kind = index.words(question), "|".join(kinds_asked(question))
    unknown = sum(
        not any(index.known(term) for term in (*word.idf, *word.concepts)) for word in words
    )
    asked = (1.0 if re.search(kind, mine.line) else -1.0) if kind else 0.0
    asking = (asked, float(not kind), -float(unknown), float(len(words)))
    if not all(map(index.says, NUMBERED.findall(question))):
        return (0.0, 0.0, 0.0, 0.0, *asking)
    return (mine.fit, lead, mine.covered, coverage(words, marks(passage.trail)), *asking)
