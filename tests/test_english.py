"""English documents: their parts, their editions, what is asked of them and what answers."""

import pytest

from onsil.documents.structure import promote_headings, title_of
from onsil.documents.types import Block, Document
from onsil.retrieval.asked import asks_before, kinds_asked, says_before
from onsil.retrieval.bm25 import BM25, asks_meaning, terms
from onsil.retrieval.concepts import ENGLISH, concept, concepts, concepts_at, groups
from onsil.retrieval.passages import Passage, passages_of, table_lines
from onsil.retrieval.ranking import find
from onsil.retrieval.readers import typed_sentence
from onsil.retrieval.stems import stem


def answer(question: str, *texts: str) -> str:
    passages = [Passage("a.md", f"{n} Part", f"Rules > {n} Part", t) for n, t in enumerate(texts)]
    index = BM25(passages)
    reading = typed_sentence(index, question, find(index, question))
    assert reading is not None
    return reading.answer


# -- documents ----------------------------------------------------------------------------------


def headings(*lines: str) -> list[str]:
    blocks = promote_headings([Block("paragraph", line) for line in lines])
    assert "\n".join(b.text for b in blocks) == "\n".join(lines)
    return [b.text for b in blocks if b.kind == "heading"]


def test_a_part_named_in_capitals_is_a_heading():
    notice = (
        "QUAY HOUSE NOTICE TO ALL STAFF",
        "Posted by the manager.",
        "1. BREAKS",
        "Half an hour each.",
        "OPENING HOURS",
        "Monday to Friday.",
        "HSE",
        "A form has nine boxes.",
    )
    assert headings(*notice) == [notice[0], "1. BREAKS", "OPENING HOURS"]
    assert (
        title_of(promote_headings([Block("paragraph", line) for line in notice[:4]])) == notice[0]
    )


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        ("Article 3 – Annual leave", True),
        ("Section 4.2: Claims", True),
        ("Part II", True),
        ("Appendix B (Forms)", True),
        ("Schedule 1. Rates", True),
        ("Section 4 applies to drivers", False),
        ("Article 3 – Annual leave is granted by the manager.", False),
        ("Part of the yard", False),
        ("Article 3.", True),
        ("Section 4.2 does not apply to:", False),
        ("Part 3-phase supply to the shed", False),
        ("LONDON NW1 6XE", False),
        ("SELECT NAME = OTHER FROM USERS", False),
    ],
)
def test_a_part_by_its_number_is_a_heading(line, heading):
    assert headings("Some words before.", line, "Some words after.") == [line] * heading


def test_a_firm_in_capitals_is_no_heading_of_a_korean_notice():
    assert headings("새 협력사", "알려 드립니다.", "LG CNS", "설치를 맡는다.") == []


def test_short_lines_that_count_through_are_headings_and_a_list_is_none():
    parts = [f"{n}. {name}" for n, name in enumerate(("Scope", "Hours", "Pay", "Changes"), 1)]
    over = [line for part in parts for line in (part, "It says so here.")]
    assert headings(*over) == parts
    assert headings(*over[:6]) == []  # three may be a list
    assert headings(*parts, "It says so here.") == []
    wrapped = [line for part in parts for line in (part, "and so it goes on")]
    assert headings(*wrapped) == []
    korean = [line for n in range(1, 5) for line in (f"{n}. 항목", " - 이렇게 한다.")]
    assert headings(*korean) == [f"{n}. 항목" for n in range(1, 5)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Effective date: 1 March 2023", "Effective from 2 January 2025"),
        ("In force since March 1st, 2023", "Effective: 2025-01-02"),
        ("Effective from 1 ſep 2023", "Applies from September 2, 2024"),
    ],
)
def test_of_two_editions_the_older_is_superseded(old, new):
    documents = tuple(
        Document(path, "", "md", title, (Block("paragraph", f"{said}\nTaxis are paid for."),))
        for path, title, said in (
            ("a.md", "Travel Rules 2023", old),
            ("b.md", "Travel Rules 2025 (revised)", new),
            ("c.md", "Leave Rules", old),
        )
    )
    assert {p.document for p in passages_of(documents) if p.superseded} == {"a.md"}


def test_two_rules_are_no_editions_of_one():
    documents = tuple(
        Document(path, "", "md", title, (Block("paragraph", f"Effective: {year}-01-02"),))
        for path, title, year in (
            ("a.md", "Examination Regulations", 2023),
            ("b.md", "Final Examination Regulations", 2025),
            ("c.md", "Travel_Rules_rev_1", 2023),
            ("d.md", "Travel_Rules_final", 2025),
        )
    )
    assert {p.document for p in passages_of(documents) if p.superseded} == {"c.md"}


# -- words --------------------------------------------------------------------------------------


def test_a_word_is_found_with_any_ending():
    assert terms("Allowances, allowance") == [stem("allowance")] * 2
    passages = [Passage("a.md", "Pay", "Rules > Pay", text) for text in ("Allowances", "Vehicles")]
    assert [i for _, i in BM25(passages).search("an allowance for it")] == [0]


def test_words_that_ask_are_no_words_of_the_subject():
    index = BM25([Passage("a.md", "Pay", "Rules > Pay", "Wages are paid monthly.")])
    assert [list(word.idf) for word in index.words("When do I get my wages, please?")] == [["wage"]]


def test_a_word_of_asking_may_be_a_name():
    assert list(BM25([]).words("A등급은 휴가가 며칠인가요?")[0].idf) == ["a"]
    assert list(BM25([]).words("the price to zone A")[-1].idf) == ["a"]
    assert not any("a" in word.idf for word in BM25([]).words("a price to a zone"))
    text = "S등급: 5일\nA등급: 3일\nB등급: 2일"
    assert answer("A등급은 휴가가 며칠인가요?", text) == "3일"


def test_an_expression_is_met_by_its_stems():
    assert concepts("two bank holidays") & concepts("a public holiday")
    assert concept("public_holiday") not in concepts("the bank is on holiday")
    text = "Ring us. Bank holidays count."
    assert [text[a:b] for a, b, name in concepts_at(text) if name == concept("public_holiday")] == [
        "Bank holidays"
    ]


def test_no_expression_belongs_to_two_concepts_and_every_group_has_two():
    owners: dict[tuple[str, ...], set[str]] = {}
    for group in groups(ENGLISH):
        forms = {tuple(map(stem, form.lower().split("_"))) for form in group}
        assert len(forms) > 1, group
        for form in forms:
            owners.setdefault(form, set()).add(group[0])
    assert [form for form, names in owners.items() if len(names) > 1] == []


# -- what is asked ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "text", "said"),
    [
        ("How many days can I carry over?", "Up to 5 days are carried over.", "5 days"),
        ("How many days of rest are there?", "There are two weeks of rest.", "two weeks"),
        ("How many days off do I get?", "You get five working days.", "five working days"),
        ("How many pallets fit?", "24 euro pallets fit.", "24 euro pallets"),
        ("How many people may come?", "At most 12 visitors may come.", "12 visitors"),
        ("how long is probation", "Probation: four months, no more.", "four months"),
        ("How many keys do tenants get?", "Tenants get two keys.", "two keys"),
        ("How many pupils may come?", "Nineteen pupils may come.", "Nineteen pupils"),
        ("How much is parking?", "Parking until 5 p.m. is £3 here.", "£3"),
        ("Where is gate A?", "Gate A is in Room 3.", "Room 3"),
        ("How often is it cleaned?", "It is cleaned twice a week.", "twice a week"),
        ("How much is a copy?", "A copy is 15p, or £2.50 bound.", "15p"),
        ("What is the deposit?", "The deposit is £1,200.50 then.", "£1,200.50"),
        ("How much off do groups get?", "Groups get 10 % off.", "10 %"),
        ("What share do we pay?", "We pay 40 per cent of it.", "40 per cent"),
        ("How heavy may a box be?", "A box may be 23 kg.", "23 kg"),
        ("How old must a driver be?", "A driver must be over 18 or so.", "over 18"),
        ("When is it due?", "It is due on 15 April 2025, at noon.", "15 April 2025"),
        ("When does the panel meet?", "It meets every second Tuesday.", "every second Tuesday"),
        ("What time does it open?", "It opens at 9.30 am daily.", "9.30 am"),
        ("What are the opening hours?", "It opens 09:00 to 17:30.", "09:00 to 17:30"),
        ("Who approves it?", "The Travel Desk approves it.", "The Travel Desk"),
        ("Who is in charge?", "In charge: Mina Harlow for now.", "Mina Harlow"),
        ("Where is it kept?", "It is kept in Room 2.14 on hooks.", "Room 2.14"),
        (
            "Where do I thaw out?",
            "Thaw out in the heated cabin hall; boxes go.",
            "the heated cabin hall",
        ),
        ("Where is the stand?", "Stands are in boxes in Shed B.", "Shed B"),
        ("What number do I call?", "Call ext. 250 at night.", "ext. 250"),
        ("What is her extension?", "Her extension is ext. 250 now.", "ext. 250"),
    ],
)
def test_the_thing_asked_for_is_cut_out(question, text, said):
    assert answer(question, text, "Nothing of that kind stands here.") == said


@pytest.mark.parametrize(
    "question",
    [
        "Is smoking allowed?",
        "What do I do when the alarm rings?",
        "Can I bring a guest who is not a member?",
        "What happens if I exceed the limit?",
        "May I use my phone at work?",
        "Can I share my password?",
    ],
)
def test_not_every_word_of_asking_asks_for_a_kind(question):
    assert kinds_asked(question) == ()


def test_a_question_that_asks_for_nothing_of_a_kind_is_answered_by_its_line():
    said = "Smoking is allowed in the yard."
    assert answer("Is smoking allowed?", said, "Eating is not.") == said


def test_of_a_table_the_cell_under_the_column_that_is_named():
    rows = (
        ("Zone", "Half pallet", "Full pallet", "Day"),
        ("Stannick", "24", "79", "1 May 2025"),
        ("Skarra", "30", "95", "2 May 2025"),
    )
    text = "\n".join(table_lines(rows))
    assert answer("How much is a full pallet to Stannick?", text) == "79"
    assert answer("When does Skarra start?", text) == "2 May 2025"
    assert not answer("What time does the van to Stannick leave?", text).isdigit()


def test_what_a_term_means_is_answered_from_where_it_is_defined():
    texts = (
        'The "banksman" waves. A banksman has a vest.',
        '"Banksman" means a person who guides reversing lorries. "Bay" means a marked place.',
    )
    assert answer("What does banksman mean?", *texts) == "a person who guides reversing lorries"
    heavy = '"Heavy lorry" means a lorry over 3.5 tonnes. It waits.'
    assert answer("What does heavy lorry mean?", heavy) == "a lorry over 3.5 tonnes"
    index = BM25([Passage("a.md", "1", "Rules > 1", "Lease: a contract.\nBay: a place.")])
    assert index.defined("What is a lease?") and not index.defined("What is a bayonet, please?")
    turn = 'A "short turn" is a change within 11 hours. "Standby" is being near.'
    assert answer("I have a short turn. What is that?", turn) == "a change within 11 hours"
    assert asks_meaning("what exactly is a bay?") and not asks_meaning("what is the deposit?")


@pytest.mark.parametrize(
    ("question", "text", "both"),
    [
        ("What was the rate before it was raised?", "Raised from 12 to 14.", True),
        ("what did it use to be", "The rate was 12 until May.", True),
        ("what is the rate", "Raised from 12 to 14.", False),
        ("what did it use to be", "The rate is 12.", False),
    ],
)
def test_what_it_was_before(question, text, both):
    assert (asks_before(question) and says_before(text)) is both
