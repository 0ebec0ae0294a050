"""What each Korean identifier looks like: shapes, checksums, and the words that speak for it.

A rule is a shape, a check on the digits and how much the words around must say: `free` needs no
word, `unless` gives way to a word such as 주문번호 standing before the number, `word` needs a word
of its own kind. Resident numbers issued since 2020-10 carry no checksum, so a possible birth date
and a seventh digit are enough. Every repetition is bounded and every rule starts and ends where a
run of digits joined by «-» or «.» starts and ends: the time is linear, and masking one number
never makes another out of what is left. Shapes are read on folded text (see `pii.fold`).
"""

import re
from dataclasses import dataclass
from typing import Literal

from onsil.corpus.pii_checks import (
    Check,
    account,
    always,
    business,
    card,
    corporation,
    front_half,
    half_masked,
    labelled,
    landline,
    local_phone,
    national,
    passport_spaced,
    phone,
    phone_run,
    resident,
    resident_labelled,
)

LABELS = {
    "email": "[이메일]",
    "rrn": "[주민등록번호]",
    "corporation": "[법인등록번호]",
    "card": "[카드번호]",
    "licence": "[운전면허번호]",
    "phone": "[전화번호]",
    "business": "[사업자등록번호]",
    "passport": "[여권번호]",
    "customs": "[개인통관고유부호]",
    "health": "[건강보험증번호]",
    "plate": "[차량번호]",
    "account": "[계좌번호]",
}

# -- shapes -------------------------------------------------------------------------------------

START = r"(?<![0-9])(?<![0-9][-.])"
APART = r"(?=[0-9])" + START + r"(?<![A-Za-z])(?<![A-Za-z][-_])"
TELEPHONE = (  # «Tel02-…» and «M.010-…» are phones, «SM010-…» is a product
    r"(?=[0-9(+])"
    + START
    + r"(?:(?<![A-Za-z])|(?<=(?i:tel))|(?<=(?i:fax))|(?<=(?i:\b[tmfh]))|(?<=(?i:hp)))"
)
END = r"(?![0-9])(?![-.][0-9])(?![A-Za-z][0-9])"
JOIN = r"(?: {0,2}\n?[-./_] {0,2}\n? {0,2}| {1,2}|)"  # a line may break only beside a sign
SIGN = r"(?: {0,2}\n?[-./] {0,2}\n? {0,2}| {1,2})"
PHONE_JOIN = r"(?: {0,2}\n?[-./] {0,2}\n? {0,2}| {1,2}|)"
AREA = r"0(?:1[016789]|2|[3-6][1-5]|[678]0|50[2-9]?|303)"
# The name of a column or field of phones, not «전화요금»; a number stands beside it or below it.
CALLED = (
    r"(?:(?:전화|연락처|팩스|직통|대표)(?: ?번호)?[은는이가]?(?![가-힣])|☎|☏"
    r"|(?i:\b(?:tel|fax|phone)\b))"
    r"(?:[^\w\n]{0,4}\([^()\d\n]{1,12}\))?[^\w\n]{0,32}"
    r"(?:(?![^\n]{0,24}(?:요금|료|비용|금액|건수|실적|회선))(?:[^\d\n]{0,24})\n)?"
)
# Where one half of a resident number is named: «앞자리», «(뒤)», or the head of its column alone.
HALF = r"(?: ?[67]? ?자리)?[ :=)]{0,3}(?:[은는이가] )?\n?[ (]{0,2}"
UNDER = r"주민 ?(?:등록)? ?번호\n"
SPELLED = "[공영일이삼사오육륙칠팔구0-9]"
SPELL_JOIN = r" ?[-.,]? ?"
REGION = "(?:서울|부산|대구|인천|광주|대전|울산|경기|강원|충북|충남|전북|전남|경북|경남|제주|세종)"
PLATE_LETTER = (
    "[가나다라마거너더러머버서어저고노도로모보소오조구누두루무부수우주아바사자하허호배외육해공국합]"
)
UNIT = r"(?! ?(?:년|월|일[^0-9]|억|만|천|원|명|건|개|호|번지|%|조|항|톤|주[^가-힣]|㎡|,[0-9]))"
TOP_LEVEL = (
    r"(?!(?i:png|jpe?g|gif|svg|webp|js|css|py|so|mp4|ttf|html?)(?![A-Za-z0-9_]))[A-Za-z]{2,24}"
)
HOST = rf"(?:[A-Za-z0-9_-]{{1,63}}\.){{1,5}}{TOP_LEVEL}(?![A-Za-z0-9_])"
LOCAL = r"(?<![A-Za-z0-9])(?!git@)[A-Za-z0-9_][A-Za-z0-9_.+%-]{0,63}"


@dataclass(frozen=True)
class Rule:
    kind: str
    name: str
    shape: re.Pattern[str]
    check: Check = always
    words: Literal["free", "unless", "word"] = "free"


def _rule(kind: str, name: str, shape: str, check: Check = always, words: str = "free") -> Rule:
    return Rule(kind, name, re.compile(shape), check, words)  # pyright: ignore[reportArgumentType]


RULES = (
    _rule("email", "email", rf"{LOCAL}@{HOST}"),
    _rule("email", "email, written round", rf"{LOCAL} ?[\[(](?i:at)[\])] ?{HOST}"),
    _rule("email", "email, spaced", rf"{LOCAL} @ {HOST}", labelled, "word"),
    _rule("rrn", "date and seventh digit", rf"{START}\d{{6}}{JOIN}\d{{7}}{END}", resident, "free"),
    _rule(
        "rrn",
        "one half set apart",
        rf"{START}(?:\d{{6}} {{0,2}}- {{0,2}}[1-8](?: \d){{6}}"
        rf"|\d(?: \d){{5}} {{0,2}}- {{0,2}}\d{{7}}){END}(?! \d)",
        resident,
    ),
    _rule(
        "rrn",
        "half masked",
        START + r"\d{6} {0,2}- {0,2}(?:[1-8][*xX●○◯#.■□]{6}|[*xX●○◯#■□]{7})(?![*xX●○◯#.■□])",
        half_masked,
    ),
    _rule(
        "rrn",
        "loosely set",
        rf"{START}(?:\d{{6}}\)? {{0,2}}(?:[-~∼〜,/]|\n)? {{0,2}}\(?[1-8]\d{{6}}"
        r"|\d{6} ?-? ?(?:[1-8] \d{6}|[1-8]\d \d{5}|[1-8]\d\d \d{4}|[1-8]\d{3} \d{3})"
        rf"|\d\d([-. /])\d\d\1\d\d ?[-~ ] ?[1-8]\d{{6}}){END}{UNIT}",
        resident_labelled,
        "unless",
    ),
    _rule(
        "rrn",
        "zeros lost",
        rf"{APART}[1-9]\d{{9,11}}(?:\.0)?{END}{UNIT}",
        resident_labelled,
        "unless",
    ),
    _rule(
        "rrn",
        "front half",
        rf"(?:앞{HALF}|{UNDER})(?P<number>\d{{6}}){END}{UNIT}",
        front_half,
        "unless",
    ),
    _rule(
        "rrn",
        "back half",
        rf"(?:[뒤뒷]{HALF}|{UNDER})(?P<number>[1-8]\d{{6}}){END}{UNIT}",
        labelled,
        "unless",
    ),
    _rule(
        "corporation",
        "checksum",
        rf"{APART}\d{{6}}{JOIN}\d{{7}}{END}",
        corporation,
        "unless",
    ),
    _rule(
        "card",
        "Luhn",
        rf"{APART}(?:\d{{4}}{SIGN}\d{{4}}{SIGN}\d{{4}}{SIGN}\d{{4}}|3[47]\d\d{SIGN}\d{{6}}{SIGN}"
        rf"\d{{5}}|3[068]\d\d{SIGN}\d{{6}}{SIGN}\d{{4}}){END}",
        card,
        "free",
    ),
    _rule("card", "Luhn, run", rf"{APART}(?:\d{{16}}|3[47]\d{{13}}){END}{UNIT}", card, "unless"),
    _rule(
        "licence",
        "2-2-6-2",
        APART + r"(?:1[1-9]|2[0-8]) ?[-.] ?\d\d ?[-.] ?\d{6} ?[-.] ?\d\d" + END,
        always,
        "unless",
    ),
    _rule(
        "licence",
        "region",
        rf"{REGION} ?-? ?\d\d ?[-.] ?\d{{6}} ?[-.] ?\d\d{END}",
        always,
        "unless",
    ),
    _rule(
        "licence",
        "word",
        START + r"(?:1[1-9]|2[0-8])[-. /]?\d\d[-. /]?\d{6}[-. /]?\d\d" + END,
        labelled,
        "word",
    ),
    _rule(
        "phone",
        "area code",
        rf"{TELEPHONE}(?:\({AREA}\)|{AREA}\)?){PHONE_JOIN}\d{{3,4}}{PHONE_JOIN}\d{{4}}{END}",
        phone,
        "free",
    ),
    _rule("phone", "run", rf"{TELEPHONE}{AREA}\d{{7,8}}{END}{UNIT}", phone_run, "unless"),
    _rule(
        "phone",
        "zero lost",
        rf"{TELEPHONE}(?:10\d{{8}}|1[16-9]\d{{7,8}})(?:\.0)?{END}{UNIT}",
        labelled,
        "unless",
    ),
    _rule(
        "phone",
        "zero of the area lost",
        rf"{TELEPHONE}(?:2|[3-6][1-5]|70) ?[-.] ?\d{{3,4}} ?[-.] ?\d{{4}}{END}{UNIT}",
        landline,
        "unless",
    ),
    _rule(
        "phone",
        "zero of the area lost, run",
        rf"{CALLED}(?P<number>(?:2[1-9]\d{{6,7}}|(?:[3-6][1-5]|70)[1-9]\d{{6,7}})(?:\.0)?)"
        rf"{END}{UNIT}",
        labelled,
        "unless",
    ),
    _rule(
        "phone",
        "+82",
        rf"(?:{TELEPHONE}(?:\+ ?|00)82[-. )]{{0,2}}\(?0?\)?|{TELEPHONE}82[-. ]0?(?=10))"
        rf"(?:1[016789]|2|[3-6][1-5]|70|50\d){PHONE_JOIN}\d{{3,4}}{PHONE_JOIN}\d{{4}}{END}",
    ),
    _rule("phone", "15xx", rf"{TELEPHONE}1[568]\d\d ?[-. ]? ?\d{{4}}{END}", national, "free"),
    _rule(
        "phone",
        "abroad",
        r"(?<![0-9A-Za-z])\+[1-9]\d{0,2}(?:[-. ]\(?\d{1,4}\)?){2,4}" + END,
        labelled,
        "word",
    ),
    _rule("phone", "local", rf"{TELEPHONE}\d{{3,4}} ?- ?\d{{4}}{END}", local_phone, "word"),
    _rule(
        "phone",
        "spelled out",
        rf"(?<![가-힣0-9])[공영]일[공영]{SPELL_JOIN}(?:{SPELLED} ?){{3}}{SPELLED}?{SPELL_JOIN}"
        rf"(?:{SPELLED} ?){{3}}{SPELLED}(?!(?!이(?!{SPELLED})){SPELLED})",  # «팔이에요» is said
    ),
    _rule("phone", "letter o", rf"(?<![A-Za-z0-9])[oO]1[oO][-. ]\d{{3,4}}[-. ]\d{{4}}{END}"),
    _rule(
        "business",
        "checksum",
        rf"{APART}\d{{3}}{JOIN}\d{{2}}{JOIN}\d{{5}}{END}{UNIT}",
        business,
        "unless",
    ),
    _rule(
        "passport",
        "letter and digits",
        r"(?<![A-Za-z0-9])(?<![A-Za-z0-9][-_.])(?:M\d{8}|[MSRODG]\d{3}[A-Z]\d{4})"
        r"(?![A-Za-z0-9])(?![-_.][A-Za-z0-9])",
        always,
        "unless",
    ),
    _rule(
        "passport",
        "word",
        r"(?<![A-Za-z0-9])(?:[A-Za-z]{1,2}[- ]?\d{7,8}|[A-Za-z] ?\d{3} ?[A-Za-z] ?\d{4})"
        r"(?![A-Za-z0-9])",
        labelled,
        "word",
    ),
    _rule(
        "passport",
        "spaced",
        r"(?<![A-Za-z0-9])[MSRODGmsrodg] {0,2}(?:\d{4} {1,2}\d{4}|\d{3} {1,2}[A-Za-z] {1,2}\d{4})"
        r"(?![A-Za-z0-9])(?! \d)",
        passport_spaced,
        "unless",
    ),
    _rule(
        "customs",
        "spaced",
        r"(?<![A-Za-z0-9])[Pp] {0,2}-? {0,2}\d{4}(?:[- ]?\d{4}){2}(?![A-Za-z0-9])(?![- ]\d)",
        labelled,
        "unless",
    ),
    _rule(
        "customs",
        "P and 12 digits",
        r"(?<![A-Za-z0-9])[Pp]-?\d{12}(?![A-Za-z0-9])",
        always,
        "unless",
    ),
    _rule("health", "word", rf"{APART}\d[- ]?\d{{10}}{END}", labelled, "word"),
    _rule(
        "health",
        "care number",
        r"(?<![A-Za-z0-9])[Ll] ?-?\d{10}(?:-\d{3})?(?![A-Za-z0-9])",
        labelled,
        "word",
    ),
    _rule(
        "plate",
        "tight",
        rf"(?<![0-9.A-Za-z제]){REGION}?(?<![0-9])\d{{2,3}}{PLATE_LETTER}\d{{4}}{END}{UNIT}",
        always,
        "unless",
    ),
    _rule(
        "plate",
        "region",
        rf"{REGION} ?\d{{1,3}} ?{PLATE_LETTER} ?\d{{4}}{END}{UNIT}",
        always,
        "unless",
    ),
    _rule(
        "plate",
        "word",
        rf"{START}(?<!제)\d{{2,3}} ?{PLATE_LETTER} ?-?\d{{4}}{END}{UNIT}",
        labelled,
        "word",
    ),
    _rule(
        "account",
        "groups",
        rf"{APART}\d{{2,6}}(?: ?[-.] ?\n?\d{{1,8}}){{1,4}}{END}{UNIT}",
        account,
        "word",
    ),
    _rule(
        "account",
        "spaced groups",
        rf"{APART}\d{{3,6}} \d{{2,6}} \d{{4,8}}(?: \d{{1,4}})?(?! ?\d){END}{UNIT}",
        account,
        "word",
    ),
    _rule("account", "run", rf"{APART}\d{{10,14}}{END}{UNIT}", account, "word"),
)

# Finds of these rules contain Hangul or words; context is read with every such shape blanked, so
# that it says the same before and after masking.
WORDY = tuple(
    r for r in RULES if r.kind in ("email", "plate") or r.name in ("spelled out", "region")
)

# -- words that speak for a kind ----------------------------------------------------------------

_NUMBER = r"(?:등록|인정|증|의|면허증?|표지?)? ?(?:번호|No\b)?"
_BANKS = "신한|국민|하나|우리|기업|제일|씨티|부산|대구|광주|전북|경남|케이|토스|IBK|KB|NH|SC"
WORDS = re.compile(
    "|".join(
        f"(?P<{kind}>{shape})"
        for kind, shape in {
            "rrn": rf"(?:주민|외국인) ?등록{_NUMBER}|주민 ?번호|외국인 ?번호|주번\b|민번\b"
            r"|주민(?= ?\(?[앞뒤뒷](?: ?자리|\)))|(?i:resident reg\w{0,9})",
            "corporation": rf"법인(?!카드|세|차량|명의|계좌|통장){_NUMBER}",
            "card": rf"카드{_NUMBER}|(?i:\bcards?\b)",
            "business": rf"사업자{_NUMBER}|(?i:business\ reg\w{{0,9}})",
            "licence": rf"면허{_NUMBER}|(?i:licen[cs]e)",
            "passport": rf"여권{_NUMBER}|(?i:passport)",
            "customs": r"통관 ?(?:고유)? ?(?:부호|번호)?",
            "health": rf"(?:건강보험|보험증|건보|요양인정|장기요양){_NUMBER}|증번호",
            "plate": rf"(?:차량|자동차|승용차|화물차|승합차|번호판|주차|렌터카|차 ?번호|운행)"
            rf"{_NUMBER}",
            "phone": r"(?:전화|휴대폰|휴대전화|핸드폰|연락처|발신|팩스|직통|대표(?=번호))"
            r" ?(?:번호)?|☎|☏|📞|(?i:\b(?:tel|fax|phone|mobile|cell|hp|h\.p)\b)",
            "email": r"(?i:e-?mail)|이메일|메일|전자우편",
            "account": rf"(?:계좌|통장|예금주?|입금|송금|이체|환급|은행|농협|수협|신협|축협"
            rf"|새마을금고|우체국|뱅크|증권){_NUMBER}(?! ?(?:잔액|금액|총액|한도|이자|내역|액))"
            r"|(?i:\b(?:bank|account|acct|a/c)\b)(?: (?i:no|number)\b)?"
            rf"|(?:{_BANKS})(?= {{0,2}}[:)]? {{0,2}}[0-9\x01])",
            "other": r"(?!등록번호)[가-힣]{2,6}(?:번호|부호)|코드|일련|모델|품번|버전|규격|바코드"
            r"|청구기호|시리얼|좌표|위도|경도|송장|(?i:\b(?:ISBN|ISSN|DOI|S/N|SKU|model|serial|order|invoice"
            r"|version|ticket|lot|part|case|ref|tracking|code|id)\b)",
        }.items()
    )
)


def spoken_kind(word: re.Match[str]) -> str:
    """The kind a word speaks for; «환불계좌번호» is an account's, whatever stands in front."""
    if word.lastgroup == "other":
        for start in range(1, len(word.group())):
            inner = WORDS.fullmatch(word.group(), start)
            if inner and inner.lastgroup != "other":
                return inner.lastgroup or ""
    return word.lastgroup or ""


# Hangul letters: how far a word speaks, forbids, speaks backwards, and how many may follow a number
# on a line that is no sentence; and how many words are asked.
REACH, NEAREST, AFTER, LINE, MOST = 30, 12, 8, 12, 6
