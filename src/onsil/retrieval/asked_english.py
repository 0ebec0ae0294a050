"""What a question in English asks for (asked.py says what a kind is).

Papers write numbers as figures or as words («two working days»), so both are read.
"""

import re

# Words that ask or only hold a sentence together: they say nothing about the subject.
ASKING = """
a about actually after again all already also am an and another any anybody anyone anything are as
at be because been before being but by can cannot come could d did do does doing done during each
either else ever every exactly for from get getting go going got had has have having he her here
hers hi him his how i if in into is it its itself just know let like ll m many may maybe me might
mine more most much must my myself need no nobody not nothing now of off ok okay on once one only or
other our out over own per please really re s shall she should so some somebody someone something
still such supposed t tell than thank thanks that the their them then there these they thing this
those through till to too under until up us use ve very want was we were what whats when where
whether which while who whom whose why will with within without would yet you your
"""

FIGURE = r"(?<![\d.,\w])\d+(?:[.,]\d+)*"
ONES = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
SPOKEN = (
    r"(?:thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|"
    rf"(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?:-(?:{ONES}))?|"
    rf"(?:(?:{ONES}|a) )?hundred|{ONES})"
)
COUNT = rf"(?:{FIGURE}|\b(?i:{SPOKEN})\b)"
UNIT = "minute|min|hour|day|night|week|weekend|fortnight|month|quarter|term|semester|year"
# «once a week» is how often, not how long.
SPAN = (
    rf"(?<!once )(?<!twice )(?<!times )(?<!per )(?:{COUNT}|\b(?i:half an?|a couple of|an?))"
    r"(?:[ -](?i:full|whole|clear|consecutive|calendar|working|business|school))*"
    rf"[ -](?i:{UNIT})s?\b"
)
MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|"
    r"Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\b"
)
DAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)days?"
DATE = (
    rf"(?:{DAY},? )?(?:\b\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {MONTH}(?:,? \d{{4}})?|"
    rf"{MONTH} \d{{1,2}}(?:st|nd|rd|th)?\b(?:,? \d{{4}})?)|\b\d{{4}}-\d\d-\d\d\b|"
    r"\b\d{1,2}/\d{1,2}/\d{2,4}\b"
)
WEEKDAY = (
    rf"(?:(?i:every|each|the)(?i: first| second| third| last| other)? )?{DAY}"
    rf"(?:(?: to |–|-| and ){DAY})?(?: of (?:the|each|every) month)?|"
    r"(?i:the (?:first|last) (?:working )?day of (?:the|each|every) (?:month|week|term))"
)
CLOCK = r"(?:\b\d{1,2}[:.]\d\d(?: ?[ap]\.?m\b\.?)?|\b\d{1,2} ?[ap]\.?m\b\.?|\b(?i:noon|midnight)\b)"
CLOCKS = rf"{CLOCK} ?(?:to|until|till|and|-|–) ?{CLOCK}"
OFTEN = (
    rf"(?i:every (?:{SPOKEN} |other |second |\d+ )?(?:{UNIT})s?\b|"
    rf"(?:once|twice|{COUNT} times) (?:a|an|per|each|every|in) (?:\w+ )?\w+|"
    r"\b(?:hourly|daily|weekly|fortnightly|monthly|quarterly|annually|yearly)\b)"
)
CURRENCY = "dollars?|euros?|pounds?|won|pence|cents?|usd|eur|gbp|krw"
MONEY = (
    r"(?:[$€£₩]|\b(?:USD|EUR|GBP|KRW) )\s?\d+(?:[.,]\d+)*(?:k\b| million)?|"
    rf"{FIGURE}(?:k| million)? ?(?:[$€£₩]|(?i:{CURRENCY})\b|p\b(?!\.?m\b))"
)
SHARE = rf"{FIGURE} ?(?:%|(?i:per ?cent|points?)\b)"
SIZE = (
    rf"{FIGURE} ?(?:(?i:kg|kilos?|kilograms?|tonnes?|t|g|grams?|km/h|kph|mph|km|m|cm|mm|"
    r"(?:centi|milli|kilo)?met(?:re|er)s?|miles?|feet|lit(?:re|er)s?|l|ml|lux|[mgt]b|kwh?|db|"
    r"square met(?:re|er)s?|sq ?m|degrees?|pages?|copies|items?)\b|°\s?C?|℃|m²|%)"
)
ROLE = (
    "manager|officer|director|coordinator|co-ordinator|supervisor|lead|leader|head|team|committee|"
    "department|desk|clerk|assistant|registrar|technician|secretary|treasurer|chair|warden|board|"
    "controller|planner|accountant|nurse|librarian|keeper|marshal|aider|adviser|advisor|inspector|"
    "administrator|foreman|engineer|reception|office"
)
WHO = (
    r"\b(?:[Tt]he )?(?:(?:[A-Z][\w&-]*|duty|line|shift|first|deputy|senior|safety) )*"
    rf"(?i:{ROLE})s?\b(?: of (?:[A-Z]\w+|the \w+))?"
)
NAMED = r"\b[A-Z][a-z]+(?:[-'’][A-Z][a-z]+)? [A-Z][a-z]+(?:[-'’][A-Z][a-z]+)?\b"
SPOT = (
    "room|bay|gate|floor|level|building|block|warehouse|hall|store|shed|dock|desk|counter|cabinet|"
    "cupboard|shelf|locker|rack|box|kitchen|canteen|cafe|office|yard|car park|entrance|lobby|"
    "reception|foyer|lane|street|quay|wing|gallery|studio|area|zone|point"
)
# The quiet room, Shed B, Room 2.14 on the second floor: a spot alone is nowhere.
PLACE = (
    rf"\b(?:(?i:the|an?) (?:[\w'’-]+ ){{0,2}}?(?i:{SPOT})|(?:[A-Z][\w'’-]* )+(?i:{SPOT})|"
    rf"(?i:{SPOT})(?= (?:[A-Z]?\d|[A-Z]\b)))\b(?: (?:[A-Z]?\d(?:[\w.-]*\w)?|[A-Z]\b))?"
    r"(?:,? (?:on|in|at|by|behind|next to|beside|of) the [\w ]{3,30})?"
)
PHONE = r"\b(?i:ext(?:ension|\.)? ?)?\d{3,4}\b(?!-\d\d-)|\b\d{2,4}-\d{3,4}-\d{4}\b"
AGE = rf"(?:under[- ]|over[- ]|aged? )?{COUNT}(?:s\b| years?(?: old)?| or over)?"
# Where a question begins inside of what is said: «My vest is torn. Who …», «do you know where …».
OPENS = (
    r"(?:^|[.?!,;:–-]\s*|\b(?:and|but|so|or|know|me|see|idea|wonder|wondering|ask|find out|please|"
    r"hi|hello|exactly|from|until|till|by|since|to|with|for)\s)"
)
PRICED = "cost|costs|price|fee|charge|rate|fine|deposit|limit|allowance|maximum|minimum|amount"
ASKED = [
    (
        r"\b(?:what|which)(?:'s| is)? (?:\w+ ){0,3}?(?:extension|phone number)\b|"
        r"\bnumber (?:do i |to )(?:call|ring)\b",
        PHONE,
    ),
    (
        rf"{OPENS}(?:who|whom|whose)\b|\bwhich (?:team|department|manager|person|officer)\b",
        WHO,
        NAMED,
    ),
    (rf"{OPENS}where\b|\b(?:which|what) (?:\w+ )?(?:{SPOT}|door|place)\b", PLACE),
    (r"\bhow (?:often|regularly|frequently|many times)\b", OFTEN, SPAN),
    (r"\b(?:what|which|opening) hours\b|\bwhat times\b", CLOCKS, CLOCK),
    (r"\b(?:what|which) time\b|\bhow (?:early|late)\b", CLOCK, SPAN),
    (
        r"\bhow (?:long|soon|quickly|far ahead)\b|\bhow much (?:time|notice|longer)\b",
        SPAN,
        DATE,
        CLOCKS,
    ),
    (r"\b(?:what|which) (?:percentage|per ?cent|share|proportion)\b", SHARE),
    (
        rf"\bhow much\b|"
        rf"\bwhat(?:'s| is| are| was)? (?:(?:the|my|our) )?(?:\w+ ){{0,2}}(?:{PRICED})\b|"
        r"\bwhat (?:does|do|will|would) [^?]{1,40} cost\b",
        MONEY,
        SHARE,
        SIZE,
    ),
    (
        r"\bhow (?:heavy|far|fast|high|tall|wide|big|large|deep|warm|cold|hot|bright|loud|close)\b|"
        r"\bwhat (?:weight|size|temperature|speed|height|distance)\b",
        SIZE,
    ),
    (r"\bhow old\b|\bwhat age\b", AGE),
    (
        rf"{OPENS}when\b|\bwhen (?:is|are|was|were|do|does|did|can|will|should|must|may|has|to)\b|"
        r"\bwhen\W*$|\b(?:what|which) (?:days?|date|month|week)\b|\bdeadline\b|\blast day\b",
        DATE,
        WEEKDAY,
        SPAN,
        CLOCK,
    ),
]
COUNTED = re.compile(
    r"\bhow many (?:more |other |different )?((?:[a-z-]+ ){0,2}?[a-z-]+)(?= (?:do|does|did|can|"
    r"could|are|is|were|was|should|must|will|would|have|has|may|am|i|we|you|they|fit|of|in|per|on|"
    r"at|to|for|a|the|left|before|after|without)\b|\W*$)"
)
PERSONS = (
    r"(?:people|persons?|members?|employees|staff|students|visitors|guests|adults|children|pupils|"
    r"volunteers|colleagues)"
)


def kinds_asked(question: str) -> tuple[str, ...]:
    """Patterns of what a question asks for, the likeliest first; none where nothing is counted,
    dated, placed or named."""
    low = question.lower()
    if "how many" in low and "how many times" not in low:
        return _counted(low)
    for asks, *answers in ASKED:
        if re.search(asks, low):
            return tuple(answers)
    return ()


def _counted(question: str) -> tuple[str, ...]:
    """«how many days» asks for a number of days, else of weeks; «how many pallets» for one of
    pallets, else for any number."""
    found = COUNTED.search(question)
    nouns = found.group(1).split() if found else []
    noun = next((n for n in nouns if re.fullmatch(rf"(?:{UNIT})s?", n)), "")
    if noun:  # «how many days off»
        return rf"{COUNT}(?:[ -][a-z]+)?[ -]{noun.rstrip('s')}s?\b", SPAN
    noun = nouns[-1] if nouns else ""
    if not noun:
        return (COUNT,)
    named = PERSONS if re.fullmatch(PERSONS, noun) else re.escape(noun[: max(3, len(noun) - 2)])
    return rf"{COUNT}(?: [\w-]+){{0,2}}? (?i:{named})\w*", COUNT


# What it was before: «what did it use to be», «before it was raised».
BEFORE_ASKED = re.compile(
    r"\bused? to\b|\b(?:originally|previously|formerly|in the past|until recently|no longer)\b|"
    r"\bbefore (?:the change|it|this|that|they)\b|\bold (?:rate|limit|price|fee|rules?|version)\b|"
    r"\b(?:raised|cut|increased?|reduced?|lowered|changed?|dropped|extended|shortened)\b",
    re.IGNORECASE,
)
BEFORE_SAID = re.compile(
    r"\b(?:previously|formerly|instead of|no longer)\b|"
    r"\b(?:raised|increased|reduced|lowered|changed|extended|shortened|cut|moved|rose|fell)\b"
    r"[^.\n]{0,40}?\b(?:from|to)\b|\bfrom [^.\n]{1,25} to \d|\bwas [^.\n]{1,25} (?:before|until)\b",
    re.IGNORECASE,
)
# «what does X mean»: the passage that defines X is wanted.
DEFINES = re.compile(
    r"\bmean(?:s|t|ing)?\b|\bdefin(?:e|ed|ition)\b|\bcounts? as\b|\bstands? for\b|"
    r"\bwhat(?:'s|’s| is| are) (?:an?|this|these|that)\b|"
    r"\bwhat(?:'s|’s| is| are) [^?]*\b(?:exactly|called|anyway|supposed to be)\b|"
    r"\b(?:call(?:ed)?|name for) (?:an?|it|the)\b|\bwhat exactly\b",
    re.IGNORECASE,
)
# «Bank shift means a shift that …», «"Short turn" is a change …»: the term and its meaning.
MEANING = re.compile(
    r"(?:^|(?<=[.;:\n] )|(?<=\n))\W{0,4}(?:[a-z\d]{1,2}[.)]\s*)?(?:[Aa]n? |[Tt]he )?[\"“‘']?"
    r"((?!(?:this|that|it|which|these|they|there)\b)[A-Za-z][^\"“”.:;\n]{1,40}?)"
    r"(?:[\"”’']\W{0,3}\s(?:is|are)|[\"”’']?\W{0,3}\s(?:means|refers to|stands for))\s+"
    r"((?:[^.;\n]|\.(?=\d)){3,200})"
)
ANNOUNCES = re.compile(r"(?:as follows|the following|listed below):?\W*$", re.IGNORECASE)
