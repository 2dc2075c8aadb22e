"""Nothing from a medium can hide, reorder or rewrite what a terminal shows."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mountsafe.text import printable, size

# Whatever bytes or text a medium may hold, with the dangerous ones more often than chance would have it.
DANGEROUS = st.sampled_from("\0\x07\x08\x1b\x7f\x85\u200b\u200e\u202a\u202e\u2028\u2029\u2066\u2069\ufeff\ue000\udcff")
TEXTS = st.text() | st.text(DANGEROUS | st.characters())
BIDI_CONTROLS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def plainly_visible(text: str) -> bool:
    return all(
        unicodedata.category(char)[0] != "C"
        and unicodedata.category(char) not in ("Zl", "Zp")
        and unicodedata.bidirectional(char) not in BIDI_CONTROLS
        for char in text
    )


@given(TEXTS | st.binary())
@example("evil\u202efdp.exe")
@example(b"\x1b]0;title\x07")
@example("\udcff")
def test_only_visible_characters_come_out(untrusted: str | bytes) -> None:
    assert plainly_visible(printable(untrusted))


@given(TEXTS | st.binary(), st.integers(1, 300))
@example("\0" * 300, 255)
def test_no_more_than_the_limit_comes_out(untrusted: str | bytes, limit: int) -> None:
    assert len(printable(untrusted, limit)) <= limit


@given(TEXTS | st.binary())
def test_what_was_made_printable_stays_as_it_is(untrusted: str | bytes) -> None:
    once = printable(untrusted)
    assert printable(once) == once


@given(st.text(st.characters(whitelist_categories=("L", "N", "P", "S", "Zs")), max_size=255))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert printable(text.encode()) == text


@pytest.mark.parametrize(
    ("untrusted", "shown"),
    [
        (b"caf\xe9", r"caf\xe9"),
        ("a\nb", r"a\nb"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u202e", r"\u202e"),
        ("x" * 300, "x" * 254 + "…"),
        ("", ""),
    ],
)
def test_examples(untrusted: str | bytes, shown: str) -> None:
    assert printable(untrusted) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 40, "1.0 TiB"), (1 << 62, "4.0 EiB")]
)
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown
