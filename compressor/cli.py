"""The command line: verbs and flags, each verb one function of `commands`. No logic here, and no heavy import."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from compressor import __version__
from compressor.artifacts import STAGES, TASKS

_RELEASE_VERBS = ("keys", "sign", "pack", "unpack", "ship", "device")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of one command. Exits with 2 on a command line that does not exist, with 0 after --help."""
    return _parser().parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Calls the verb's function. Raises what it raises."""
    from compressor import commands, release_commands

    home = release_commands if options.verb in _RELEASE_VERBS else commands
    verb: Callable[[argparse.Namespace], None] = getattr(home, options.verb)
    verb(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compressor", description="Distil, export, quantize, verify, benchmark, bundle."
    )
    parser.add_argument("--version", action="version", version=f"compressor {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _init(verbs)
    _compress(verbs)
    _quantize(verbs)
    _inspect(verbs)
    _verify(verbs)
    _bench(verbs)
    _report(verbs)
    _keys(verbs)
    _sign(verbs)
    _pack(verbs)
    _unpack(verbs)
    _ship(verbs)
    _device(verbs)
    return parser


if TYPE_CHECKING:
    _Verbs = argparse._SubParsersAction[argparse.ArgumentParser]  # argparse gives it no public name


def _verb(verbs: _Verbs, name: str, summary: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    parser.add_argument("--quiet", action="store_true", help="no progress and no logs")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _init(verbs: _Verbs) -> None:
    parser = _verb(verbs, "init", "print a commented recipe")
    parser.add_argument("--task", required=True, choices=TASKS)


def _compress(verbs: _Verbs) -> None:
    parser = _verb(verbs, "compress", "run a recipe from teacher to bundle")
    parser.add_argument("recipe", nargs="?", help="a recipe (YAML); or give --teacher, --task, --data, --eval")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, such as distill.epochs=3"
    )
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--teacher", metavar="PATH", help="the teacher's folder")
    parser.add_argument("--license", metavar="SPDX", help="licence of the teacher's weights, such as Apache-2.0")
    parser.add_argument("--own-model", action="store_true", help="the teacher is your own model")
    parser.add_argument("--data", metavar="FILE", help="training data")
    parser.add_argument("--eval", metavar="FILE", help="held-out data")
    parser.add_argument("--max-drop", metavar="SHARE", help="largest permitted loss of the metric, such as 2%%")
    parser.add_argument(
        "--max-mb", type=float, metavar="MB", help="search precisions: what the shipped model may weigh"
    )
    parser.add_argument(
        "--max-ms", type=float, metavar="MS", help="search precisions: what its inference may take here"
    )
    parser.add_argument("--hours", type=float, help="search precisions: for so long at most")
    parser.add_argument("--out", metavar="FOLDER", help="run folder")
    parser.add_argument("--cache", metavar="FOLDER", help="where run folders share what was recorded of their teachers")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print the plan, train nothing")
    reuse = parser.add_mutually_exclusive_group()
    reuse.add_argument("--resume", action="store_true", help="keep what earlier runs finished (the default)")
    reuse.add_argument("--fresh", action="store_true", help="run every stage again")
    parser.add_argument(
        "--from",
        dest="rerun_from",
        metavar="STAGE",
        choices=STAGES,
        help="run this stage again, and what depends on it",
    )
    parser.add_argument("--json", action="store_true", help="print the result (or the plan) as JSON")


def _quantize(verbs: _Verbs) -> None:
    parser = _verb(verbs, "quantize", "an ONNX file in fewer bits, where that is faster here and answers alike")
    parser.add_argument("model", metavar="MODEL", help="a float32 .onnx file")
    parser.add_argument(
        "--inputs", required=True, metavar="FILE", help="an .npz with an array for each input, [examples, ...]"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where model.onnx and quantization.json go")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of quantize, such as block=64"
    )
    parser.add_argument("--min-agreement", type=float, default=0.99, metavar="COSINE", help="with float32 (0.99)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of a session (1)")
    parser.add_argument("--json", action="store_true", help="print the evidence as JSON")


def _inspect(verbs: _Verbs) -> None:
    parser = _verb(verbs, "inspect", "show what a model or a bundle is made of, or what a recipe's student will be")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("path", nargs="?", metavar="MODEL_OR_BUNDLE")
    what.add_argument(
        "--plan", metavar="RECIPE", help="parameters and predicted ONNX bytes of its student and of others like it"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override in the recipe, such as student.ffn=512",
    )
    parser.add_argument(
        "--against",
        metavar="FLOAT32",
        help="the float32 .onnx file that it was made of: which layers err, and what mends most",
    )
    parser.add_argument(
        "--inputs", metavar="FILE", help="with --against: an .npz with an array for each input, [examples, ...]"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _verify(verbs: _Verbs) -> None:
    parser = _verb(verbs, "verify", "check a bundle: signature, hashes, then its golden cases")
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder or a .tar.zst file")
    parser.add_argument("--public-key", metavar="FILE", help="whose signature it must have")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _bench(verbs: _Verbs) -> None:
    parser = _verb(verbs, "bench", "time models natively, interleaved in one run, here or on a device")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="an .onnx file or a bundle")
    parser.add_argument("--baseline", metavar="MODEL", help="what the others are compared with (default: the first)")
    parser.add_argument(
        "--scenario",
        default="stream",
        choices=("stream", "paced", "throughput", "sustained", "cold"),
        help="stream: back to back; paced: one in each period; throughput: several callers; sustained: minutes; "
        "cold: fresh processes",
    )
    axes = parser.add_argument_group("axes", "several values with commas between them are measured in turn")
    axes.add_argument("--threads", default="1", metavar="N[,N]", help="threads of a session")
    axes.add_argument("--optimization", default="all", metavar="LEVEL[,..]", help="none, basic, extended or all")
    axes.add_argument("--spin", default="off", metavar="off|on|off,on", help="whether idle threads wait busily")
    axes.add_argument("--provider", default="cpu", metavar="NAME[,..]", help="execution provider")
    axes.add_argument(
        "--shape", action="append", default=[], metavar="NAME=SIZE[,..]", help="size of a dynamic dimension"
    )
    amount = parser.add_argument_group("how much")
    amount.add_argument(
        "--samples", type=int, default=500, metavar="N", help="timed inferences per model; 459 support a p99"
    )
    amount.add_argument(
        "--budget", default="40s", metavar="TIME", help="time for the whole comparison, such as 60s or 2m"
    )
    amount.add_argument("--period-ms", type=float, metavar="MS", help="of paced: one inference in each")
    amount.add_argument("--sessions", type=int, metavar="N", help="of throughput: sessions open at once (default: 1)")
    amount.add_argument(
        "--callers", type=int, metavar="N", help="of throughput: threads that call each session (default: 1)"
    )
    amount.add_argument("--duration", metavar="TIME", help="of sustained: of each model (default: 60s)")
    amount.add_argument(
        "--processes", type=int, metavar="N", help="of cold: starts in each state of the disk (default: 5)"
    )
    amount.add_argument("--min-effect", default="2%", metavar="SHARE", help="a smaller difference is no verdict")
    where = parser.add_argument_group("where")
    where.add_argument("--device", metavar="ssh://[USER@]HOST[:PORT]", help="measure there, and bring the result back")
    where.add_argument("--ort", metavar="FILE", help="a libonnxruntime.so other than the installed package's")
    where.add_argument("--runner", metavar="FILE", help="a compressor-runner other than the installed one")
    where.add_argument("--memory-limit", type=int, metavar="MIB", help="of address space for the models' process")
    where.add_argument("--silence", default="120s", metavar="TIME", help="without progress for so long a model hangs")
    parser.add_argument("--profile", action="store_true", help="also the time of each operator (slows the run)")
    parser.add_argument("--strict", action="store_true", help="fail where the machine disturbed the measurement")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to FILE")


def _report(verbs: _Verbs) -> None:
    parser = _verb(verbs, "report", "draw report.html of a run again, and print its table")
    parser.add_argument("run", metavar="RUN", help="a run folder, or its result.json")
    parser.add_argument(
        "--out", metavar="FILE", help="where to write the page (default: report.html in the run folder)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _keys(verbs: _Verbs) -> None:
    parser = _verb(verbs, "keys", "make a key pair to sign bundles with: NAME.key, which is secret, and NAME.pub")
    parser.add_argument("name", metavar="NAME")


def _sign(verbs: _Verbs) -> None:
    parser = _verb(verbs, "sign", "sign a bundle as a release")
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder")
    parser.add_argument("--key", required=True, metavar="FILE", help="a private key that `compressor keys` made")
    parser.add_argument(
        "--version",
        dest="release",
        type=int,
        metavar="N",
        help="a number above that of every earlier release (default: the seconds since 1970)",
    )
    parser.add_argument("--product", metavar="NAME", help="a device takes bundles of one product (default: the task)")
    parser.add_argument("--expires-days", type=float, metavar="DAYS", help="no device installs it later than that")


def _pack(verbs: _Verbs) -> None:
    parser = _verb(verbs, "pack", "a bundle as one file; the same bundle gives the same bytes")
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder")
    parser.add_argument("--out", required=True, metavar="FILE", help="a .tar.zst or .tar file")


def _unpack(verbs: _Verbs) -> None:
    parser = _verb(verbs, "unpack", "the folder of a packed bundle, every file checked")
    parser.add_argument("file", metavar="FILE", help="a .tar.zst or .tar file")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new folder")


def _ship(verbs: _Verbs) -> None:
    parser = _verb(verbs, "ship", "bring a signed bundle to devices: install it there, the old one serving until then")
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder or a .tar.zst file")
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="TARGET",
        help="ssh://[USER@]HOST[:PORT]/FOLDER, a FOLDER here, oci:FOLDER[:TAG] or oci://HOST/NAME[:TAG]; one by one",
    )
    parser.add_argument("--public-key", metavar="FILE", help="for devices that trust no key yet")
    parser.add_argument("--python", default="python3", metavar="PROGRAM", help="Python on the devices (python3)")
    parser.add_argument("--base", metavar="BUNDLE", help="what devices may have: they get the difference, if small")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _device(verbs: _Verbs) -> None:
    from compressor.device.command import add_arguments

    add_arguments(_verb(verbs, "device", "install bundles on this device, look at them, go back"))
