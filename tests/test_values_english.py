"""Amounts and times in English as values, and the conditions that are made of them."""

import math

import pytest

from onsil.retrieval.values import Range, fits, quantities, ranges, same_values


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("$5,000", 5000, "달러"),
        ("5 thousand dollars", 5000, "달러"),
        ("USD 1.5 million", 1_500_000, "달러"),
        ("£45 a head", 45, "파운드"),
        ("€2k", 2000, "유로"),
        ("three business days", 3, "영업일"),
        ("5 working days", 5, "영업일"),
        ("two weeks", 14, "일"),
        ("20 kg", 20, "kg"),
        ("2 tonnes", 2000, "kg"),
        ("1.5 hours", 90, "분"),
        ("a six-month contract", 6, "개월"),
        ("15 per cent", 15, "%"),
    ],
)
def test_an_english_amount_is_a_value(text: str, value: float, unit: str):
    (one,) = quantities(text)
    assert (one.value, one.unit) == (pytest.approx(value), unit)


@pytest.mark.parametrize(
    "text", ["Room 2.07", "in 2025", "the second day", "bays 20 to 31", "form FN-12", "one of them"]
)
def test_a_number_without_a_unit_is_none(text: str):
    assert quantities(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("over $5,000", Range(5000, math.inf, "달러", open_low=True)),
        ("more than 5 thousand dollars", Range(5000, math.inf, "달러", open_low=True)),
        ("up to 20 kg", Range(-math.inf, 20, "kg")),
        ("within 3 business days", Range(-math.inf, 3, "영업일")),
        ("less than two weeks", Range(-math.inf, 14, "일", open_high=True)),
        ("at least 6 months", Range(6, math.inf, "개월")),
        ("$500 or more", Range(500, math.inf, "달러")),
        ("5 years or less", Range(-math.inf, 60, "개월")),
        ("2 to 5 years", Range(24, 60, "개월")),
        ("between $100 and $500", Range(100, 500, "달러")),
        ("over $1,000 and up to $5,000", Range(1000, 5000, "달러", open_low=True)),
        ("20 kg 이하", Range(-math.inf, 20, "kg")),
    ],
)
def test_an_english_condition_is_a_range(text: str, expected: Range):
    assert ranges(text) == [expected]


@pytest.mark.parametrize(
    ("text", "low", "high", "unit"),
    [
        ("no more than 10 days", -math.inf, 10, "일"),
        ("must not exceed $5,000", -math.inf, 5000, "달러"),
        ("not exceeding 20 kg", -math.inf, 20, "kg"),
        ("cannot be over 30 minutes", -math.inf, 30, "분"),
        ("doesn’t exceed 20 kg", -math.inf, 20, "kg"),
        ("not less than 5 days", 5, math.inf, "일"),
        ("no fewer than 3 people", 3, math.inf, "명"),
    ],
)
def test_a_bound_that_is_denied_is_the_other_one(text: str, low: float, high: float, unit: str):
    assert ranges(text) == [Range(low, high, unit)]


def test_what_is_denied_from_afar_is_left_alone():
    assert ranges("leave not taken within 3 months") == ranges("do not carry more than 5 kg") == []
    assert ranges("no fee under 5 days") == ranges("under 5 days")


@pytest.mark.parametrize(
    ("question", "label", "fit"),
    [
        ("Who signs for $6,000?", "over $5,000", 1.0),
        ("Who signs for 4 thousand dollars?", "over $5,000", -1.0),
        ("Who signs for $5,000?", "over $5,000", -1.0),
        ("My parcel is 12 kg", "up to 20 kg", 1.0),
        ("I have been here for 3 years", "2 to 5 years", 1.0),
        ("I have been here for 3 years", "over $5,000", 0.0),
        ("12kg 소포는요?", "up to 20 kg", 1.0),
    ],
)
def test_an_english_row_fits_the_amount_asked_about(question: str, label: str, fit: float):
    assert fits(question, label) == fit


def test_two_spellings_of_an_english_amount_are_one_answer():
    assert same_values("$5,000", "5 thousand dollars")
    assert not same_values("$5,000", "$6,000")


def test_a_bound_inside_of_an_amount_bounds_it():
    assert ranges("absent for 3 or more days") == [Range(3, math.inf, "일")]
    assert ranges("2 or fewer weeks") == [Range(-math.inf, 14, "일")]
    assert ranges("not 3 or more days") == []


def test_the_ends_of_a_range_have_units_of_their_own():
    assert ranges("between 3 days and 2 weeks") == [Range(3, 14, "일")]
    assert ranges("3 months to 2 weeks") == []


def test_the_number_of_a_grade_begins_no_range():
    assert ranges("Grade 3 - 10 days") == []
    assert ranges("Upgrade 3 - 10 days") == ranges("3 - 10 days") == [Range(3, 10, "일")]
