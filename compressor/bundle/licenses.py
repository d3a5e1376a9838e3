"""The licence texts and notices that lie beside a teacher, which a bundle of its student passes on."""

from __future__ import annotations

import re
from pathlib import Path

from compressor.errors import TeacherError
from compressor.intake.files import check_within, read_bounded

LICENSES = "licenses"
_NAME = re.compile(r"(un)?licen[cs]e|notice|copying", re.ASCII | re.IGNORECASE)
_ENDING = re.compile(r"([._-][A-Za-z0-9_.+-]*)?", re.ASCII)
_MOST_BYTES = 1 << 20


def license_texts(folder: Path) -> dict[str, bytes]:
    """LICENSE, LICENCE, UNLICENSE, NOTICE and COPYING of a teacher's folder, of any ending, such as LICENSE-MIT or
    notice.txt; names in the bundle and contents. Raises TeacherError where one is no regular file within the folder, or
    has more than 1 MiB.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        name = _NAME.match(path.name)
        if name is not None and _ENDING.fullmatch(path.name, name.end()):
            check_within(path, folder, TeacherError)
            found[f"{LICENSES}/{path.name}"] = read_bounded(path, _MOST_BYTES, TeacherError)
    return found
