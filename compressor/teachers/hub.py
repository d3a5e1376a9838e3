"""A teacher on the Hugging Face hub: its safetensors and text files, fetched into huggingface_hub's own cache."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from compressor.errors import TeacherError, first_line
from compressor.recipe_teacher import HubTeacher

# Never a pickle; code only where it was asked for.
_DATA = ["*.safetensors", "*.json", "*.txt", "*.md", "*.model", "LICEN?E*", "UNLICENSE", "NOTICE*", "COPYING*"]
_ELSEWHERE = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]


def hub_folder(teacher: HubTeacher) -> Path:
    """The repository as a folder in huggingface_hub's cache, fetched where it is not there yet.

    HF_HUB_OFFLINE=1, HF_HOME and HF_TOKEN mean what they mean to huggingface_hub. Raises TeacherError.
    """
    return _snapshot(teacher.hub, teacher.revision, teacher.trust_remote_code)


def hub_commit(teacher: HubTeacher) -> str:
    """The commit that `revision` stands for, fetched or in the cache. Raises TeacherError."""
    return hub_folder(teacher).name


def hub_card(teacher: HubTeacher) -> Path | None:
    """The repository's model card, fetched alone; None where there is none. Raises TeacherError."""
    try:
        return Path(hf_hub_download(teacher.hub, "README.md", revision=teacher.revision))
    except LocalEntryNotFoundError as error:  # offline, and not in the cache
        raise _unreachable(teacher.hub, teacher.revision, error) from None
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, RepositoryNotFoundError, OSError, ValueError) as error:
        raise _unreachable(teacher.hub, teacher.revision, error) from None


@lru_cache
def _snapshot(repository: str, revision: str | None, code: bool) -> Path:
    # Once a process: with a branch, the hub would be asked anew at every call, and could answer otherwise.
    patterns = [*_DATA, *(["*.py"] if code else [])]
    try:
        found = snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=_ELSEWHERE)
    except (HfHubHTTPError, RepositoryNotFoundError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _unreachable(repository, revision, error) from None
    return Path(found)


def _unreachable(repository: str, revision: str | None, error: Exception) -> TeacherError:
    reason = first_line(error)
    return TeacherError(
        f"teacher.hub: {repository}{f' at {revision}' if revision else ''} cannot be fetched: {reason[:300]};"
        " check the name and the network, or download the folder and set teacher.path"
    )
