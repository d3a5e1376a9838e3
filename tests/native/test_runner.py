"""The measuring program by itself: every scenario, odd flags, hostile files, crashes, hangs, signals, lost readers."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import needed
import numpy as np
import pytest
import runner_cases
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT
SHORT = ("--samples", "1", "--budget", "0.05", "--sittings", "1")
# What makes each scenario short.
SCENARIOS = {
    "stream": SHORT,
    "paced": (*SHORT, "--period-ms", "2"),
    "throughput": (*SHORT, "--sessions", "2", "--callers", "2"),
    "sustained": ("--duration", "0.5"),
    "cold": ("--processes", "2"),
}
SIGNAL_LIMIT_S = 60  # for what takes milliseconds on an idle machine
node = helper.make_node


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return runner_cases.samples(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def mlp(samples):
    return samples["mlp"].path


@pytest.fixture(scope="module")
def sanitized():
    """Whether the program is the one of `make sanitize`."""
    return b"__asan_init" in runner_cases.program().read_bytes()


@pytest.fixture(scope="module")
def crashes():
    """Environment in which a crash is one: AddressSanitizer would take ONNX Runtime's for ours, and report it."""
    return {"ASAN_OPTIONS": ":".join(filter(None, [os.environ.get("ASAN_OPTIONS"), "handle_segv=0"]))}


# Results.


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_gives_a_result(scenario, samples, mlp):
    models = ("--model", mlp, "--model", samples["mlp-int8"].path)
    found = runner_cases.result("--scenario", scenario, *SCENARIOS[scenario], *models)
    assert (found["scenario"], found["complete"]) == (scenario, True)
    assert [model["name"] for model in found["models"]] == ["mlp", "mlp-int8"]
    for model in found["models"]:
        assert model["load"]["session_ms"] > 0
        if scenario == "cold":
            assert model["disk_warm"]["processes"] == 2
        else:
            assert model["inferences"] > 0
            assert model["throughput_per_s"] > 0
            assert model["latency"]["samples"] > 0
    compared = [(comparison["model"], comparison["baseline"]) for comparison in found.get("comparisons", [])]
    assert compared == ([] if scenario in ("sustained", "cold") else [("mlp-int8", "mlp")])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_json_events_and_table_name_the_same_models(scenario, samples, mlp):
    names = ["first one", "cnn", "mlp-int8"]
    models = ("--model", mlp, "--name", names[0], "--model", samples["cnn"].path, "--model", samples["mlp-int8"].path)
    arguments = ("--scenario", scenario, *SCENARIOS[scenario], *models)
    assert [model["name"] for model in runner_cases.result(*arguments)["models"]] == names

    ended = runner_cases.call(*arguments, "--events")
    assert (ended.returncode, ended.stderr) == (0, "")
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [event["event"] for event in events].count("result") == 1
    assert events[-1]["event"] == "result"
    assert {event["event"] for event in events} <= {"model", "progress", "partial", "result"}
    assert [model["name"] for model in events[-1]["result"]["models"]] == names
    opened = [event["model"] for event in events if event["event"] == "model"]
    assert set(opened) - {""} == set(names)

    ended = runner_cases.call(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    head, *rows = ended.stdout.splitlines()
    assert head.startswith("model ")
    rows = [row for row in rows if not row.startswith(("INVALID: ", "warning: "))]
    kinds = len(rows) // len(names)  # cold: a row for each state of the disk cache
    assert len(rows) == kinds * len(names)
    assert [row.startswith(names[i // kinds] + "  ") for i, row in enumerate(rows)] == [True] * len(rows)


def test_json_and_events_together_are_events(mlp):
    ended = runner_cases.call("--model", mlp, *SHORT, "--json", "--events")
    assert [json.loads(line)["event"] for line in ended.stdout.splitlines()][-1] == "result"


@pytest.mark.parametrize("name", ["mlp", "mlp-int8", "cnn", "cnn-int8", "integers"])
@pytest.mark.parametrize("flags", [(), ("--threads", "2", "--spin"), ("--optimization", "none")], ids=" ".join)
def test_outputs_are_those_of_python(name, flags, samples, tmp_path):
    sample = samples[name]
    cases = runner_cases.write_cases(tmp_path / "cases", sample.feeds)
    arguments = ("--model", sample.path, "--cases", cases, "--outputs", tmp_path, *SHORT, *flags)
    assert runner_cases.result(*arguments)["complete"]
    for case, wanted in enumerate(runner_cases.python_answers(sample)):
        for output, want in enumerate(wanted):
            got = np.load(tmp_path / f"0-{case}-{output}.npy")
            runner_cases.assert_same(got, want, exact=sample.exact, tolerance=1e-5)


def test_cases_before_a_model_are_for_all_and_after_one_for_it_alone(samples, mlp, tmp_path):
    feeds = samples["mlp"].feeds
    everyones = runner_cases.write_cases(tmp_path / "all", feeds)
    own = runner_cases.write_cases(tmp_path / "own", feeds[:1])
    models = ("--model", mlp, "--model", samples["mlp-int8"].path, "--cases", own)
    found = runner_cases.result("--cases", everyones, *models, "--outputs", tmp_path, *SHORT)
    assert sorted(file.name for file in tmp_path.glob("*.npy")) == ["0-0-0.npy", "0-1-0.npy", "1-0-0.npy"]
    assert found["models"][1]["answers_unknown"] == "its inputs are not the baseline's"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ('quo"te\\back', 'quo"te\\back'),
        ("zwölf 模型 🦊", "zwölf 模型 🦊"),
        ("two\nlines\tand\x1b[31mred", "two lines and [31mred"),
        ("%s%n%d", "%s%n%d"),
        ("--json", "--json"),
        ("x" * 5000, "x" * 5000),
        (b"not \xff utf-8", "not � utf-8"),
    ],
    ids=["quotes", "unicode", "control", "format", "flag", "long", "bytes"],
)
def test_odd_names(name, told, mlp, tmp_path):
    text = os.fsdecode(name)
    found = runner_cases.result("--model", mlp, "--name", text, *SHORT)
    assert [model["name"] for model in found["models"]] == [told]
    line = runner_cases.command("--model", mlp, "--name", text, *SHORT)
    table = subprocess.run(line, capture_output=True, check=True).stdout
    assert table.splitlines()[1].startswith(name if isinstance(name, bytes) else os.fsencode(told))
    # The same as the name of a file.
    if len(text) < 200:
        path = tmp_path / (text.replace("/", "") + ".onnx")
        path.write_bytes(mlp.read_bytes())
        found = runner_cases.result("--model", path, *SHORT)
        assert [model["name"] for model in found["models"]] == [told]


def test_version_and_help_need_nothing_else():
    for flag, word in (("--version", "compressor-runner "), ("--help", "--scenario NAME")):
        ended = subprocess.run([runner_cases.program(), flag], capture_output=True, text=True, check=True)
        assert word in ended.stdout
        assert ended.stderr == ""


# Flags.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense"], "'--nonsense' is no flag, or the start of several"),
        (["--s", "1"], "'--s' is no flag, or the start of several"),
        (["-x"], "flags begin with --, got '-x'"),
        (["--two\nlines"], "'--two lines' is no flag, or the start of several"),
        (["--json=yes"], "'--json=yes' takes no value"),
        (["--samples"], "'--samples' takes a value"),
        (["model.onnx"], "models are given as --model FILE, got 'model.onnx'"),
        (["--samples", "0"], "--samples takes a number from 1 to 1e+09, got '0'"),
        (["--samples", "1.5"], "--samples takes a whole number, got '1.5'"),
        (["--samples", "many"], "--samples takes a number from 1 to 1e+09, got 'many'"),
        (["--samples", ""], "--samples takes a number from 1 to 1e+09, got ''"),
        (["--samples", "1e99"], "--samples takes a number from 1 to 1e+09, got '1e99'"),
        (["--samples", "nan"], "--samples takes a number from 1 to 1e+09, got 'nan'"),
        (["--budget", "-1"], "--budget takes a number from 0.01 to 1e+06, got '-1'"),
        (["--budget", "inf"], "--budget takes a number from 0.01 to 1e+06, got 'inf'"),
        (["--threads", "1025"], "--threads takes a number from 1 to 1024, got '1025'"),
        (["--sessions", "0"], "--sessions takes a number from 1 to 256, got '0'"),
        (["--callers", "1e5"], "--callers takes a number from 1 to 1024, got '1e5'"),
        (["--batch", "0"], "--batch takes a number from 1 to 1e+09, got '0'"),
        (["--processes", "1001"], "--processes takes a number from 1 to 1000, got '1001'"),
        (["--duration", "0"], "--duration takes a number from 0.01 to 1e+06, got '0'"),
        (["--period-ms", "0"], "--period-ms takes a number from 0.01 to 1e+07, got '0'"),
        (["--least-effect", "2"], "--least-effect takes a number from 0 to 1, got '2'"),
        (["--seed", "-1"], "--seed takes a number from 0 to 1e+09, got '-1'"),
        (["--sittings", "0"], "--sittings takes a number from 1 to 1000, got '0'"),
        (["--silence", "0"], "--silence takes a number from 0.1 to 1e+06, got '0'"),
        (["--memory-limit", "0"], "--memory-limit takes a number from 1 to 1e+09, got '0'"),
        (["--scenario", "fast"], "--scenario takes one of stream, paced, throughput, sustained, cold, got 'fast'"),
        (["--optimization", ""], "--optimization takes one of none, basic, extended, all, got ''"),
        (["--shape", "batch"], "--shape takes NAME=SIZE, got 'batch'"),
        (["--shape", "=3"], "--shape takes NAME=SIZE, got '=3'"),
        (["--shape", "batch=0"], "--shape takes a number from 1 to 1e+09, got '0'"),
        (["--scenario", "paced"], "--scenario paced needs --period-ms"),
        (["--outputs", "/nowhere/at/all"], "--outputs needs a folder that can be written, got '/nowhere/at/all'"),
        (["--profile", "/nowhere/p"], "--profile needs a folder that can be written, got '/nowhere/'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_that_are_refused(arguments, message, mlp):
    assert runner_cases.failure("--model", mlp, *arguments, code=2).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--ort FILE is needed"),
        (["--ort", "lib.so"], "--model FILE is needed"),
        (["--ort", "lib.so", "--name", "x"], "--name belongs after the --model that it is for"),
        (
            ["--ort", "lib.so", "--model", "a/m.onnx", "--model", "b/m.onnx"],
            "two models are named 'm'; give one a --name",
        ),
    ],
    ids=["nothing", "no model", "no model before", "twice"],
)
def test_what_is_needed(arguments, message):
    ended = subprocess.run([runner_cases.program(), *arguments], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"compressor-runner: {message}; see --help\n"


def test_no_argument_list_at_all():
    """A program may be started without even its own name."""
    ended = subprocess.run([], executable=runner_cases.program(), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "compressor-runner: --ort FILE is needed; see --help\n")


# Files that are absent or no good.


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF nothing", "folder"], ids=str)
def test_what_is_no_runtime(content, mlp, tmp_path):
    path = tmp_path / "libonnxruntime.so"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    assert path.name in runner_cases.failure("--model", mlp, runtime=path)


def test_a_library_that_is_another_is_no_runtime(mlp, tmp_path):
    source, path = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text("int nothing;\n")
    subprocess.run([needed.require("cc", "gcc"), "-shared", "-fPIC", source, "-o", path], check=True)
    assert path.name in runner_cases.failure("--model", mlp, runtime=path)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("content", [None, b"", b"no model", "folder"], ids=str)
def test_what_is_no_model(content, scenario, mlp, tmp_path):
    path = tmp_path / "broken.onnx"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    arguments = ("--scenario", scenario, *SCENARIOS[scenario], "--model", mlp, "--model", path)
    assert runner_cases.failure(*arguments).startswith("broken: ")


def test_events_tell_the_failure_too(tmp_path):
    ended = runner_cases.call("--model", tmp_path / "none.onnx", *SHORT, "--events")
    last = json.loads(ended.stdout.splitlines()[-1])
    assert ended.returncode == 1
    assert last["event"] == "failed"
    assert ended.stderr == f"compressor-runner: {last['message']}\n"


GOOD = "0\tinput\tx\tx.npy\n"
WORDS = "expected a case number, input or expected, a name and a file, tabs between them"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must name one case or more, got none"),
        ("\n\n", "must name one case or more, got none"),
        (None, "cases.tsv cannot be read; --cases takes a folder with that file"),
        ("0 input x x.npy\n", f"line 1: {WORDS}"),
        (GOOD + "\n-1\tinput\tx\tx.npy\n", f"line 3: {WORDS}"),
        ("9999999\tinput\tx\tx.npy\n", f"line 1: {WORDS}"),
        ("1\tinput\tx\tx.npy\n", "cases must be numbered from 0 on without a gap"),
        ("0\tinput\tz\tx.npy\n", "the model has no 'z'"),
        ("0\toutput\ty\tx.npy\n", f"line 1: {WORDS}"),
        ("0\texpected\ty\tx.npy\n", "case 0: input 'x' is missing"),
        ("0\tinput\tx\tnone.npy\n", "none.npy"),
        ("0\tinput\tx\t\n", ""),
        ("0\tinput\tx\tx.npy\0\n", None),  # the system's own end of a name
        ("0\tinput\tx\t" + "../" * 2000 + "x.npy\n", "File name too long"),
        (GOOD + "0\texpected\ty\tx.npy\n", None),  # an expectation of another shape is no failure
        ("0\tinput\tx\tfloat64.npy\n", "input 'x' must be float32, got float64"),
        ("0\tinput\tx\twide.npy\n", "invalid dimensions"),
        ("0\tinput\tx\tshort.npy\n", "short.npy"),
        ("0\tinput\tx\tempty.npy\n", "empty.npy"),
        ("0\tinput\tx\thuge.npy\n", "huge.npy"),
        ("0\tinput\tx\tscalar.npy\n", "Invalid rank"),
        ("0\tinput\tx\tnone-of-them.npy\n", None),  # a batch of no rows
    ],
)
def test_cases_that_are_no_good(text, message, mlp, tmp_path):
    if text is not None:
        (tmp_path / "cases.tsv").write_text(text)
    np.save(tmp_path / "x.npy", np.ones((1, 32), np.float32))
    np.save(tmp_path / "float64.npy", np.ones((1, 32)))
    np.save(tmp_path / "wide.npy", np.ones((1, 33), np.float32))
    np.save(tmp_path / "scalar.npy", np.float32(1))
    np.save(tmp_path / "none-of-them.npy", np.ones((0, 32), np.float32))
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(whole[:-4])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "huge.npy").write_bytes(whole.replace(b"(1, 32)", b"(9" + b"9" * 15 + b", 32)"))
    arguments = ("--model", mlp, "--cases", tmp_path, *SHORT)
    if message is None:
        assert runner_cases.result(*arguments)["complete"]
    else:
        said = runner_cases.failure(*arguments)
        assert said.startswith("mlp: ")
        assert message in said


def test_made_up_inputs_that_are_too_large_are_refused(mlp):
    assert "more than 2^30 elements" in runner_cases.failure("--model", mlp, "--batch", "1e9")
    said = runner_cases.failure("--model", mlp, "--shape", "width=3")
    assert said == "no model has a dynamic dimension 'width'; there are: batch"


def mutated(content, seed):
    """Some bytes changed, dropped, doubled or the end cut off."""
    draw = random.Random(seed)
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data)) if data else 0
        length = draw.randint(1, 8)
        change = draw.randrange(5)
        if change == 0:
            del data[at:]
        elif change == 1:
            del data[at : at + length]
        elif change == 2:
            data[at:at] = data[at : at + length]
        elif change == 3:
            data[at : at + length] = bytes(draw.choice((0, 0x7F, 0x80, 0xFF)) for _ in range(length))
        else:
            data[at : at + 1] = bytes([draw.randrange(256)])
    return bytes(data)


def assert_ends_well(*arguments, **how):
    """A result, or a failure in one line."""
    ended = runner_cases.call(*arguments, "--json", **how)
    if ended.returncode == 0:
        assert ended.stderr == ""
        assert json.loads(ended.stdout)["models"]
        return True
    assert ended.returncode == 1, (ended.returncode, ended.stderr)
    assert ended.stdout == ""
    assert ended.stderr.startswith("compressor-runner: "), ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    return False


@pytest.mark.parametrize("part", range(4))
def test_no_change_of_a_cases_folder_is_fatal(part, samples, mlp, tmp_path):
    folder = runner_cases.write_cases(tmp_path / "cases", samples["mlp"].feeds)
    files = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    for seed in range(15 * part, 15 * part + 15):
        for number, (path, content) in enumerate(files.items()):
            # The head of an array is where its faults are; of numbers any bytes will do.
            head = content[:128] if path.suffix == ".npy" else content
            path.write_bytes(
                mutated(head, 10 * seed + number) + content[len(head) :] if number == seed % 3 else content
            )
        assert_ends_well("--model", mlp, "--cases", folder, *SHORT)


@pytest.mark.parametrize("part", range(4))
def test_no_change_of_a_model_is_fatal(part, samples, tmp_path, crashes):
    """Not to the supervising process: whether ONNX Runtime stands it is its own affair."""
    for seed in range(15 * part, 15 * part + 15):
        content = samples["mlp-int8" if seed % 2 else "cnn"].path.read_bytes()
        path = tmp_path / "changed.onnx"
        path.write_bytes(mutated(content, seed))
        limits = ("--silence", "30")
        assert_ends_well("--model", path, *SHORT, *limits, environment=crashes)


# Models that crash, hang or ask for too much.


@pytest.fixture(scope="module")
def crashing(tmp_path_factory):
    """Valid, but ONNX Runtime follows the absent optional bias into a null pointer."""
    return runner_cases.save(
        tmp_path_factory.mktemp("crash") / "crash.onnx",
        [node("LayerNormalization", ["x", "scale", ""], ["y"])],
        [("x", FLOAT, [2, 4]), ("scale", FLOAT, [4])],
        [("y", FLOAT, [2, 4])],
    )


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A loop whose condition stays true, and whose trip count is not reached in a lifetime."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["go_in"], ["go_out"]), node("Identity", ["v_in"], ["v_out"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go_in", TensorProto.BOOL, []), value("v_in", FLOAT, [1])],
        [value("go_out", TensorProto.BOOL, []), value("v_out", FLOAT, [1])],
    )
    return runner_cases.save(
        tmp_path_factory.mktemp("endless") / "endless.onnx",
        [node("Loop", ["count", "go", "x"], ["y"], body=body)],
        [("x", FLOAT, [1])],
        [("y", FLOAT, [1])],
        [("count", np.array(2**62)), ("go", np.array(True))],
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_model_that_crashes_the_runtime_is_one_line(scenario, mlp, crashing, crashes):
    arguments = ("--scenario", scenario, *SCENARIOS[scenario], "--model", mlp, "--model", crashing, "--name", "bad one")
    said = runner_cases.failure(*arguments, environment=crashes)
    assert said == "bad one: the measuring process was ended by SIGSEGV; ONNX Runtime cannot run this model here"


def test_a_model_that_hangs_is_ended(mlp, endless):
    said = runner_cases.failure("--model", mlp, "--model", endless, *SHORT, "--silence", "1")
    assert said.startswith("endless: no answer for 1 s; ")


def test_a_memory_limit_is_one_line(sanitized, tmp_path):
    if sanitized:
        pytest.skip("AddressSanitizer needs more address space than any limit leaves it")
    greedy = runner_cases.save(
        tmp_path / "greedy.onnx",
        [node("Expand", ["x", "shape"], ["y"])],
        [("x", FLOAT, [1])],
        [("y", FLOAT, ["n"])],
        [("shape", np.array([2**31]))],
    )
    said = runner_cases.failure("--model", greedy, *SHORT, "--memory-limit", "2000")
    assert said.startswith("greedy: ")
    said = runner_cases.failure("--model", greedy, *SHORT, "--memory-limit", "1")
    assert said.startswith("greedy: ")


# Signals, and readers that are gone.


def children_of(process):
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def ended(process):
    """Gone, or a zombie that nobody has waited for."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


def wait_until(condition):
    until = time.monotonic() + SIGNAL_LIMIT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


class Started:
    """A long measurement with its first events read."""

    def __init__(self, *arguments, until):
        command = runner_cases.command(*arguments, "--events")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if json.loads(line)["event"] == until:
                break
        self.children = children_of(self.process.pid)

    def __enter__(self):
        assert len(self.children) <= 1  # cold starts have none for moments
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        wait_until(lambda: all(map(ended, self.children)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("scenario", ["sustained", "paced", "throughput", "stream"])
def test_an_interrupt_keeps_what_was_measured(number, scenario, samples, mlp):
    long = {
        "sustained": ("--duration", "600"),
        "paced": ("--budget", "600", "--samples", "1e6", "--period-ms", "5"),
        "throughput": ("--budget", "600", "--callers", "2"),
        "stream": ("--budget", "600", "--samples", "1e9"),
    }
    models = ("--model", mlp, "--model", samples["cnn"].path)
    with Started("--scenario", scenario, *long[scenario], "--sittings", "1", *models, until="progress") as run:
        run.process.send_signal(number)
        said, complaint = run.process.communicate(timeout=SIGNAL_LIMIT_S)
        assert (run.process.returncode, complaint) == (0, "")
        result = json.loads(said.splitlines()[-1])["result"]
        assert result["complete"] is False
        assert result["models"][0]["inferences"] > 0


def test_an_interrupt_of_cold_starts_keeps_them(mlp):
    with Started("--scenario", "cold", "--processes", "1000", "--model", mlp, until="progress") as run:
        run.process.send_signal(signal.SIGINT)
        said, complaint = run.process.communicate(timeout=SIGNAL_LIMIT_S)
        # A start that is interrupted itself may be lost; what was started before is kept.
        assert (run.process.returncode, complaint) == (0, "")
        result = json.loads(said.splitlines()[-1])["result"]
        assert result["complete"] is False
        assert 0 < result["models"][0]["disk_warm"]["processes"] < 1000


def test_a_second_interrupt_ends_a_model_that_hangs(endless):
    command = runner_cases.command("--model", endless, "--silence", "600", "--events")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline()) == {"event": "model", "model": "endless"}
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=SIGNAL_LIMIT_S)
        assert process.returncode == 1
        assert complaint == "compressor-runner: interrupted before anything was measured\n"


@pytest.mark.parametrize("model", ["mlp", "endless"])
def test_no_child_outlives_the_supervising_process(model, mlp, endless):
    """Not even one that hangs in ONNX Runtime and looks at nothing."""
    path, until = (mlp, "progress") if model == "mlp" else (endless, "model")
    arguments = ("--scenario", "sustained", "--duration", "600", "--silence", "600", "--model", path)
    with Started(*arguments, until=until) as run:
        (child,) = run.children
        assert not ended(child)
        run.process.kill()
        run.process.wait()
        wait_until(lambda: ended(child))


def test_a_reader_that_is_gone_ends_it(mlp):
    with Started("--scenario", "sustained", "--duration", "600", "--model", mlp, until="progress") as run:
        run.process.stdout.close()
        run.process.wait(timeout=SIGNAL_LIMIT_S)
        assert run.process.returncode != 0
        run.process.stdout = None  # there is nothing left to read


@pytest.mark.parametrize("redirection", ["1>&-", "1>/dev/full", "0<&- 1>&-", "0<&- 1>&- 2>&-"])
def test_output_that_cannot_be_written_is_a_failure(redirection, mlp, tmp_path):
    (tmp_path / "out").mkdir()
    command = runner_cases.command("--model", mlp, *SHORT, "--json", "--outputs", tmp_path / "out")
    text = f'exec "$@" {redirection}'
    ended = subprocess.run(["sh", "-c", text, "sh", *command], stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    if "2>&-" not in redirection:
        assert ended.stderr.startswith("compressor-runner: standard output cannot be written: ")
        assert ended.stderr.count("\n") == 1
    # What was written elsewhere is whole: no message of the child got into it.
    assert np.load(tmp_path / "out" / "0-0-0.npy").shape == (1, 10)
