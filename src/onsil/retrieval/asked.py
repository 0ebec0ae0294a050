"""What a question asks for: a number with its unit, a date, a place, who; and what it was before.

Each kind is a pattern that its answer matches, read off the question's own asking words («며칠» → a
number of days, else a date). Korean stands here, English in asked_english.py.
"""

import re

from onsil.retrieval import asked_english

HANGUL = re.compile("[가-힣]")

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
    r"(?<![\d,.])\d[\d,.]*\s*(?:분의\s*\d[\d,.]*|(?i:[mgkt]b|kg|g|km|m|cm|l)(?![A-Za-z])|"
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
    r"(?:(?<![가-힣])[가-힣]{1,7}[^은는이가을를의도로과와에\s:]\s)?"
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
    (r"몇\s*시(?!간)", TIME + r"(?:까지)?"),
    (r"언제까지|마감|며칠에(?!\s*한\s*번)|몇\s*월\s*며칠", DATE, SPAN),
    (r"며칠|몇\s*일|기한", SPAN, DATE),
    (r"얼마\s*(?:동안|나\s*(?:지나|오래|자주)|(?:나\s*)?(?:걸|소요))", SPAN + r"|영구|해마다|매년"),
    (
        r"얼마|금액|한도|비용|몇\s*원",
        NUMBER + r"(?:원|달러|유로|엔)" + BOUND,
        NUMBER + r"(?:%|퍼센트|점)" + BOUND,
        SIZE,
    ),
    (r"언제|날짜|시행일|몇\s*월", DATE + "|" + WEEK + r"|\d{1,2}월(?:,\s*\d{1,2}월)*|" + SPAN),
]
# What it was before: «원래는 몇 인승이었죠», «그전에는 몇 퍼센트였어요».
BEFORE_ASKED = re.compile(
    r"원래|예전|옛날|그\s?전에|이전에|전에는|전엔|종전|기존|바뀌기\s?전|(?:달라|바뀐|바뀌었|고쳐진)|"
    r"(?:으로|로)\s?(?:늘|줄|올|낮|바뀌|오르)|(?:올랐|늘었|늘어났|줄었|줄어들었|내렸)"
)
BEFORE_SAID = re.compile(
    r"→|(?:개정|변경|시행)\s?전|종전|달라진|\d월까지: |"
    r"에서\s[^.\n]{1,25}(?:으로|로)\s(?:올|늘|줄|바꾸|바뀌|낮추|낮아|넓|고치|고쳐)"
)
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
    if not HANGUL.search(question):
        return asked_english.kinds_asked(question)
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


def asks_before(question: str) -> bool:
    """Whether a question asks what something was before it was changed."""
    asks = BEFORE_ASKED if HANGUL.search(question) else asked_english.BEFORE_ASKED
    return bool(asks.search(question))


def says_before(text: str) -> bool:
    """Whether a text says what something was before."""
    return bool(BEFORE_SAID.search(text) or asked_english.BEFORE_SAID.search(text))
