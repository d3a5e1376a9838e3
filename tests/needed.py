"""What some tests need and not every machine has: tools of the system, and what is downloaded.

Such a test is skipped where it lacks something; where COMPRESSOR_TESTS_COMPLETE=1 promises that all is there, as
.ci/run does, it fails. What a processor, a kernel or a user's rights do not give is skipped by pytest.skip itself.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

COMPLETE = "COMPRESSOR_TESTS_COMPLETE"


def lacking(reason: str) -> NoReturn:
    """Ends the test: skipped for this reason, or failed."""
    if os.environ.get(COMPLETE) == "1":
        pytest.fail(f"{reason}; {COMPLETE}=1 says that nothing is missing here", pytrace=False)
    pytest.skip(reason)


def require(tool: str, package: str) -> str:
    """Where the program is. Ends the test where there is none."""
    found = shutil.which(tool, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    return found or lacking(f"{tool} is not installed; run: apt-get install {package}")
