"""The command's entry: one line and an exit code for every expected failure, a traceback only with --debug."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType

from compressor.cli import parse, run
from compressor.errors import (
    INTERNAL_ERROR_EXIT_CODE,
    INTERRUPTED_EXIT_CODE,
    CompressorError,
    missing_extra,
    one_line,
    storage_error,
)

_ERROR_LINE = "compressor: {}"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code (errors.py lists them). One of several processes ends with it."""
    exit_code = _run(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from compressor.distill import team

        team.leave(exit_code)
    return exit_code


def _run(arguments: list[str] | None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    # Torch's threads spin while they wait for each other. Beside any other busy process that spins the time away:
    # a training step took two to five times as long. It is read when torch loads, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    interruption = _Interruption()
    signal.signal(signal.SIGINT, interruption)
    signal.signal(signal.SIGTERM, interruption)
    try:
        run(options)
    except KeyboardInterrupt as interrupt:
        return _say_interrupted(str(interrupt))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left; there is nobody to tell
        return INTERNAL_ERROR_EXIT_CODE
    except Exception as error:
        if interruption.seen:  # native code swallowed it and failed of something else
            return _say_interrupted()
        known = _known(error)
        if options.debug:
            traceback.print_exc()
        _say(
            str(known)
            if known
            else f"internal error: {type(error).__name__}: {error}; run with --debug for the traceback"
        )
        return known.exit_code if known else INTERNAL_ERROR_EXIT_CODE
    return 0


def _known(error: BaseException) -> CompressorError | None:
    """The error itself when it is the user's; what a failing file system or a missing package means to them."""
    if isinstance(error, CompressorError):
        return error
    if isinstance(error, OSError):
        return storage_error(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("compressor"):
        return missing_extra(error.name)
    return None


def _say(message: str) -> None:
    print(_ERROR_LINE.format(one_line(message)), file=sys.stderr)


def _say_interrupted(kept: str = "") -> int:
    # Pressed again, it ends the process at once; an exception out of the interpreter's own end would be a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(INTERRUPTED_EXIT_CODE))
    _say(f"interrupted; {kept or 'finished work is kept, and the same command continues from it'}")
    return INTERRUPTED_EXIT_CODE


class _Interruption:
    """Ctrl-C and a polite kill: raises KeyboardInterrupt, and remembers that it did."""

    seen = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
