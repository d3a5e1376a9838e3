"""`python -m compressor.device`: the device's verbs where the rest of this package is not installed."""

from __future__ import annotations

import argparse
import signal
import sys
from types import FrameType

from compressor.device.command import add_arguments, run
from compressor.errors import (
    INTERNAL_ERROR_EXIT_CODE,
    INTERRUPTED_EXIT_CODE,
    CompressorError,
    MissingDependencyError,
    one_line,
)

_ERROR_LINE = "compressor: {}"


def main(arguments: list[str]) -> int:
    """Runs one verb and returns its exit code (errors.py lists them)."""
    parser = argparse.ArgumentParser(prog="python -m compressor.device", description="Bundles on a device.")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        run(options)
    except KeyboardInterrupt:
        return _say(
            "interrupted; what was current still is, or the next command finishes the update", INTERRUPTED_EXIT_CODE
        )
    except CompressorError as error:
        return _say(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        return _say(
            f"a device needs the package {name!r}, which is not installed; run: pip install {name}",
            MissingDependencyError.exit_code,
        )
    except Exception as error:  # the last line: whatever it is, one line
        return _say(f"internal error: {type(error).__name__}: {error}", INTERNAL_ERROR_EXIT_CODE)
    return 0


def _say(message: str, code: int) -> int:
    print(_ERROR_LINE.format(one_line(message)), file=sys.stderr)
    return code


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
