"""The JSON that the native core writes, read back by Python's own reader."""

import json
import locale
import math

import needed
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor import native


def json_text(value):
    return native.load().json_text(value)


def nine_digits(number):
    return float(f"{number:.9g}")


finite = st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite.map(nine_digits) | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


@given(values)
def test_what_is_written_is_read_back(value):
    text = json_text(value)
    assert json.loads(text) == value
    assert not any(letter < " " for letter in text)


@given(finite)
def test_numbers_have_nine_digits(number):
    assert json.loads(json_text(number)) == nine_digits(number)


@given(st.binary())
def test_bytes_that_are_not_utf8_are_replaced(text):
    assert json.loads(json_text(text)) == text.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([True, 1, 1.0, None, False, 0], "[true,1,1,null,false,0]"),
        ([math.nan, math.inf, -math.inf], "[null,null,null]"),
        ({"a": math.nan}, '{"a":null}'),
        (math.inf, "null"),
        (-0.0, "-0"),
        (5e-324, "4.94065646e-324"),
        (1.7976931348623157e308, "1.79769313e+308"),
        (0.1, "0.1"),
        (123456789012.0, "1.23456789e+11"),
        (-(2**63), "-9223372036854775808"),
        ([[], {}, [[]], {"a": {}, "b": []}], '[[],{},[[]],{"a":{},"b":[]}]'),
        ({"z": 1, "a": [2, {"y": 3}], "": ""}, '{"z":1,"a":[2,{"y":3}],"":""}'),
        ('"\\/\b\n\t\x00\x1f\x7f', '"\\"\\\\/\\u0008\\u000a\\u0009\\u0000\\u001f\x7f"'),
        ("é\u2028𝄞\ufffd", '"é\u2028𝄞\ufffd"'),
        (b"\xc0\xaf", '"\ufffd\ufffd"'),  # a slash in more bytes than it needs
        (b"\xed\xa0\x80x", '"\ufffd\ufffd\ufffdx"'),  # a surrogate
        (b"\xf4\x90\x80\x80", '"\ufffd\ufffd\ufffd\ufffd"'),  # beyond U+10FFFF
        (b"\xe2\x82", '"\ufffd"'),  # cut off
        ({"k\n": "v"}, '{"k\\u000a":"v"}'),
    ],
)
def test_exact_texts(value, text):
    assert json_text(value) == text


def test_a_comma_of_the_users_language_is_a_point():
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "es_ES.UTF-8", "pl_PL.UTF-8"):
        try:
            old = locale.setlocale(locale.LC_NUMERIC)
            locale.setlocale(locale.LC_NUMERIC, name)
        except locale.Error:
            continue
        try:
            assert json_text([0.5, -1.25e-9]) == "[0.5,-1.25e-09]"
        finally:
            locale.setlocale(locale.LC_NUMERIC, old)
        return
    needed.lacking("no language with a decimal comma is installed; run: apt-get install locales-all")


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, ["a", "\udc80"]])
def test_lone_surrogates_are_refused(value):
    with pytest.raises((UnicodeEncodeError, RuntimeError)):
        json_text(value)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, [2**64], {"a": 10**30}])
def test_integers_beyond_64_bits_are_refused(value):
    with pytest.raises((OverflowError, RuntimeError)):
        json_text(value)


@pytest.mark.parametrize("value", [object(), {1: 2}, [{1, 2}], (1, 2)])
def test_what_json_does_not_have_is_refused(value):
    with pytest.raises(TypeError, match="expected"):
        json_text(value)


def test_a_list_that_holds_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(ValueError, match="200 containers"):
        json_text(value)
