"""Durations: what is read, what is refused, and that writing and reading give the same value."""

from datetime import timedelta
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from workers.durations import Duration, between, format_duration, parse_duration


class Holder(BaseModel):
    wait: Duration = timedelta(seconds=1)
    span: Annotated[Duration, between("50ms", "1d")] = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("250ms", 0.25),
        ("1h30m", 5400),
        ("0s", 0),
        ("0.2s", 0.2),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("90m", 5400),
        ("1s500ms", 1.5),
        ("1us", 0.000001),
        (" 30s ", 30),
        ("1d2h3m4s5ms6us", 93_784.005006),
    ],
)
def test_a_duration_with_units_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "30", "s", "-5s", "+5s", "30 s", "30S", "30sec", "0x10s", "1e3s", "nan", "inf"),
        *(".5s", "5.s", "1,5s", "5m1h", "1s1s", "1h 30m", "٣s", "30s\n\n5", "9" * 13 + "s"),
    ],
)
def test_anything_else_is_refused_with_an_example_of_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a duration: write it with a unit, such as 30s"):
        parse_duration(text)


def test_a_duration_finer_than_a_microsecond_is_refused() -> None:
    with pytest.raises(ValueError, match=r"in steps of 1us"):
        parse_duration("0.0000001s")


def test_a_duration_beyond_what_timedelta_holds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 999999999d23h59m59\.999999s"):
        parse_duration("999999999999d")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (timedelta(0), "0s"),
        (timedelta(seconds=30), "30s"),
        (timedelta(seconds=100), "1m40s"),
        (timedelta(minutes=5), "5m"),
        (timedelta(minutes=90), "1h30m"),
        (timedelta(days=1), "1d"),
        (timedelta(milliseconds=250), "250ms"),
        (timedelta(milliseconds=1500), "1.5s"),
        (timedelta(microseconds=7), "7us"),
        (timedelta(microseconds=1500), "1500us"),
        (timedelta(hours=1, milliseconds=1), "1h0.001s"),
        (timedelta(seconds=-5), "-5s"),
    ],
)
def test_a_duration_is_written_in_its_shortest_usual_form(value: timedelta, text: str) -> None:
    assert format_duration(value) == text


@given(st.timedeltas(min_value=timedelta(0)))
def test_what_is_written_is_read_back_as_the_same_value(value: timedelta) -> None:
    assert parse_duration(format_duration(value)) == value


def complaint_about(text: str) -> str:
    try:
        parse_duration(text)
    except ValueError as error:
        return str(error)
    return ""


@given(st.text(alphabet="0123456789.dhmsu -", max_size=20))
def test_any_text_is_either_read_or_refused_in_plain_words(text: str) -> None:
    said = complaint_about(text)

    assert not said or said.startswith("must be a duration")


def test_a_model_takes_text_and_timedelta_and_gives_text_in_json() -> None:
    held = Holder.model_validate({"wait": "1h30m"})

    assert held.wait == timedelta(minutes=90)
    assert Holder.model_validate({"wait": timedelta(minutes=90)}) == held
    assert Holder.model_validate_json(held.model_dump_json()) == held
    assert '"wait":"1h30m"' in held.model_dump_json()


@pytest.mark.parametrize("value", [30, 0.5, True, None, ["30s"], float("nan"), b"30s"])
def test_a_model_refuses_a_number_without_unit(value: object) -> None:
    with pytest.raises(ValidationError, match=r"write it with a unit"):
        Holder.model_validate({"wait": value})


@pytest.mark.parametrize(
    ("value", "complaint"),
    [("49ms", "must be at least 50ms"), ("0s", "must be at least 50ms"), ("1d1us", "must be at most 1d")],
)
def test_a_duration_outside_the_field_s_bounds_is_refused(value: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Holder.model_validate({"span": value})


@pytest.mark.parametrize("value", ["50ms", "1d"])
def test_both_bounds_are_allowed_themselves(value: str) -> None:
    assert format_duration(Holder.model_validate({"span": value}).span) == value
