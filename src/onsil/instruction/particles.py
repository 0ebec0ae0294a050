"""Korean particles that agree with the word before them: 여비가 but 금액이, 서울로 but 집으로.

Which of the two follows depends on whether the word, as spoken, ends in a consonant (Standard
Korean; after ㄹ it is 로 all the same). A number is spoken by its last digit, a Latin word by the
name of its last letter; what stands in brackets at the end is not spoken.
"""

import re

PAIRS = (("은", "는"), ("이", "가"), ("을", "를"), ("과", "와"), ("으로", "로"), ("이란", "란"))
FORMS = {form: pair for pair in PAIRS for form in pair}
WRITTEN = re.compile("({})".format("|".join(f"{a}/{b}" for a, b in PAIRS)))
FOLLOWING = re.compile(r"({})(?![가-힣])".format("|".join(sorted(FORMS, key=len, reverse=True))))
BRACKETS = re.compile(r"\s*[(\[〔][^()\[\]〔〕]*[)\]〕]$")
RIEUL = 8  # the place of ㄹ among the 28 endings of a syllable
DIGITS = {"0": 21, "1": RIEUL, "3": 16, "6": 1, "7": RIEUL, "8": RIEUL}  # 영 일 삼 육 칠 팔
LETTERS = {"l": RIEUL, "m": 16, "n": 4, "r": RIEUL}  # 엘 엠 엔 알


def ending(word: str) -> int:
    """Which consonant a word ends in when spoken, 1 to 27; 0 for a vowel or what is not known."""
    spoken = BRACKETS.sub("", word).rstrip(" .,;:»”\"')") or word
    last = spoken[-1:].lower()
    if "가" <= last <= "힣":
        return (ord(last) - ord("가")) % 28
    return DIGITS.get(last, LETTERS.get(last, 0))


def particle(word: str, form: str) -> str:
    """Of the pair that `form` is one of (은, 를, 으로 …) the one that follows `word`."""
    after_consonant, after_vowel = FORMS[form]
    closed = ending(word)
    if not closed or (closed == RIEUL and after_vowel == "로"):
        return after_vowel
    return after_consonant


def agreeing(text: str) -> str:
    """A text in which pairs are written out, «금액은/는», with one of each."""
    parts = WRITTEN.split(text)
    for i in range(1, len(parts), 2):
        parts[i] = particle("".join(parts[:i]), parts[i].split("/")[0])
    return "".join(parts)


def followed(word: str, rest: str) -> str:
    """`rest` with the particle that it begins with, if it does, made to agree with `word`."""
    found = FOLLOWING.match(rest) if word else None
    return rest if found is None else particle(word, found[1]) + rest[found.end() :]
