"""What a session process says for its log."""

import logging

import pytest

from mountsafe.filesystem.operations import is_news


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fuse_releasedir(): fuse_reply_* failed with No such file or directory", False),
        ("fuse_read(): fuse_reply_* failed with Input/output error", True),
        ("a folder without end", True),
    ],
)
def test_an_answer_that_nobody_waits_for_is_no_news(words: str, said: bool) -> None:
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "%s", (words,), None)
    assert is_news(record) is said
