"""A test that lacks a tool or a download is skipped, and fails where nothing may be lacking."""

import shutil
from pathlib import Path

import needed
import pytest

REASON = "no-such-tool is not installed; run: apt-get install no-such-package"


@pytest.mark.parametrize("value", [None, "", "0"])
def test_what_is_lacking_is_skipped(value, monkeypatch):
    monkeypatch.delenv(needed.COMPLETE, raising=False)
    if value is not None:
        monkeypatch.setenv(needed.COMPLETE, value)
    with pytest.raises(pytest.skip.Exception, match=REASON):
        needed.require("no-such-tool", "no-such-package")


def test_what_is_lacking_fails_where_all_is_promised(monkeypatch):
    monkeypatch.setenv(needed.COMPLETE, "1")
    with pytest.raises(pytest.fail.Exception, match=f"{REASON}; COMPRESSOR_TESTS_COMPLETE=1"):
        needed.require("no-such-tool", "no-such-package")


def test_what_is_there_is_found(monkeypatch):
    monkeypatch.setenv(needed.COMPLETE, "1")
    assert needed.require("sh", "dash") == shutil.which("sh")


def test_ci_promises_that_all_is_there():
    text = (Path(__file__).parents[1] / ".ci" / "run").read_text()
    assert f"export {needed.COMPLETE}=1" in text.splitlines()
