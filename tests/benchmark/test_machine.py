"""What the machine says of itself, below made-up roots and on the real machine, and what a measurement is worth."""

import os
import platform
import resource
import threading
import time
from pathlib import Path

import pytest

from compressor import native

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PRESSURE = "some avg10=1.50 avg60=0.75 avg300=0.10 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
ARM = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd05\n\nprocessor\t: 1\nCPU part\t: 0xd0b\n"
INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Some CPU @ 2.00GHz\nflags\t\t: fpu sse2{}\n"
ON_ARM = platform.machine() in ("aarch64", "arm64")


def make_root(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


def target_of(folder, **files):
    return native.load().describe_target(make_root(folder, {f"proc/{name}": text for name, text in files.items()}))


def reading_of(folder, files):
    return native.load().read_machine(make_root(folder, files))


# The target.


def test_the_real_target_is_what_python_says():
    target = native.load().describe_target()
    assert target["architecture"] == platform.machine()
    assert target["system"] == f"{platform.system()} {platform.release()}"
    assert target["processors"] == len(os.sched_getaffinity(0))
    assert target["online_processors"] == max(os.sysconf("SC_NPROCESSORS_ONLN"), target["processors"])
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert target["memory_mib"] == pytest.approx(pages / 2**20, rel=0.01)
    assert target["emulator"] == ""


def test_processors_are_those_that_the_process_may_use():
    usable = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(usable)})
        target = native.load().describe_target()
    finally:
        os.sched_setaffinity(0, usable)
    assert target["processors"] == 1
    assert target["online_processors"] >= len(usable)


def test_a_root_without_files_leaves_out_what_only_they_say(tmp_path):
    target = target_of(tmp_path)
    assert target["processor"] == ""
    assert target["memory_mib"] is None
    assert target["virtual_machine"] is None
    assert target["emulator"] == ""
    assert target["architecture"] == platform.machine()


@pytest.mark.parametrize(
    ("files", "processor"),
    [
        ({"cpuinfo": INTEL.format("")}, "Some CPU @ 2.00GHz"),
        ({"cpuinfo": ARM}, "implementer 0x41, part 0xd05 and 0xd0b"),
        ({"cpuinfo": ARM + "\nHardware\t: BCM2835\n"}, "BCM2835"),
        ({"cpuinfo": ARM + "\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B\n"}, "Raspberry Pi 4 Model B"),
        ({"cpuinfo": "model name\t: ARMv7 Processor", "device-tree/model": "Pine64 RockPro64\0"}, "Pine64 RockPro64"),
        ({"cpuinfo": "model name\t:\n"}, ""),
        ({"cpuinfo": "no colon here\n:\n"}, ""),
    ],
)
def test_the_processor(files, processor, tmp_path):
    assert target_of(tmp_path, **files)["processor"] == processor


def test_the_board_is_also_named_in_sysfs(tmp_path):
    root = make_root(tmp_path, {"sys/firmware/devicetree/base/model": "NVIDIA Jetson Orin Nano\0", "proc/cpuinfo": ARM})
    assert native.load().describe_target(root)["processor"] == "NVIDIA Jetson Orin Nano"


def test_memory(tmp_path):
    assert target_of(tmp_path, meminfo="MemTotal:       4096000 kB\nMemFree: 1 kB\n")["memory_mib"] == 4000.0
    assert target_of(tmp_path, meminfo="MemTotal: much\n")["memory_mib"] is None


@pytest.mark.parametrize(
    ("cpuinfo", "virtual"), [(INTEL.format(" hypervisor"), True), (INTEL.format(" hypervisors"), False), (ARM, None)]
)
def test_a_virtual_machine(cpuinfo, virtual, tmp_path):
    assert target_of(tmp_path, cpuinfo=cpuinfo)["virtual_machine"] is virtual


OWN, FOREIGN = (ARM, INTEL.format("")) if ON_ARM else (INTEL.format(""), ARM)
RELATED = ("aarch64", "armv7l", "armv8l") if ON_ARM else ("x86_64", "i686", "i386")
EMULATOR = f"an emulator of {platform.machine()}"


@pytest.mark.parametrize(
    ("files", "emulator"),
    [
        ({"self/comm": "qemu-aarch64\n"}, "qemu-aarch64"),
        ({"self/status": "Name:\tqemu-aarch64-st\nUmask:\t0022\n"}, "qemu-aarch64-st"),
        ({"self/comm": "python\n", "self/status": "Name:\tqemu\n"}, ""),
        ({"self/comm": "my-qemu-test\n"}, ""),
        ({"sys/kernel/arch": "s390x\n"}, EMULATOR),
        ({"sys/kernel/arch": "x86_64\n" if ON_ARM else "aarch64\n", "cpuinfo": OWN}, EMULATOR),
        ({"cpuinfo": FOREIGN}, EMULATOR),
        ({"cpuinfo": FOREIGN, "sys/kernel/arch": f"{RELATED[0]}\n"}, EMULATOR),
        ({"cpuinfo": OWN}, ""),
        *(({"cpuinfo": OWN, "sys/kernel/arch": f"{name}\n", "self/comm": "python\n"}, "") for name in RELATED),
    ],
)
def test_emulation(files, emulator, tmp_path):
    assert target_of(tmp_path, **files)["emulator"] == emulator


# Readings.


def test_a_root_without_files_has_only_what_the_process_knows(tmp_path):
    reading = reading_of(tmp_path, {})
    known = {"at_ns", "probe_ns", "involuntary_switches", "major_faults"}
    assert {name for name, value in reading.items() if value is not None} == known
    assert reading["probe_ns"] > 0


def test_pressures(tmp_path):
    files = {f"proc/pressure/{name}": PRESSURE.format(i) for i, name in enumerate(("cpu", "memory", "io"), 5)}
    reading = reading_of(tmp_path, files)
    assert [reading[f"pressure_{name}_us"] for name in ("cpu", "memory", "io")] == [5.0, 6.0, 7.0]


@pytest.mark.parametrize("text", ["", "some avg10=1.50\n", "full total=9\n", "some total=\n", "some total=many\n"])
def test_a_pressure_that_says_nothing(text, tmp_path):
    assert reading_of(tmp_path, {"proc/pressure/cpu": text})["pressure_cpu_us"] is None


def test_the_run_delay_is_that_of_all_threads(tmp_path):
    files = {"7": "1000 250 3\n", "11": "0 40 0\n", "12": "99 8 1\n", "13": "", "x": "1 1000000 1\n"}
    files = {f"proc/self/task/{name}/schedstat": text for name, text in files.items()}
    assert reading_of(tmp_path, files)["run_delay_ns"] == 298.0


def test_a_run_delay_that_the_kernel_does_not_keep_is_not_zero(tmp_path):
    files = {f"proc/self/task/{i}/schedstat": "0 0 0\n" for i in (7, 11)}
    assert reading_of(tmp_path, files)["run_delay_ns"] is None


def own_cpu_ns():
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used) * 1e9


def test_others_cpu_is_without_idle_steal_guests_and_this_process(tmp_path):
    least = own_cpu_ns()
    reading = reading_of(tmp_path, {"proc/stat": "cpu  1000000 200 30 4444 555 6 7 80 99 99\ncpu0 1 1 1 1\n"})
    most = own_cpu_ns()
    busy_ns = (1000000 + 200 + 30 + 6 + 7) / TICKS_PER_S * 1e9
    assert busy_ns - most - 1 <= reading["others_cpu_ns"] <= busy_ns - least + 1
    assert reading["steal_ns"] == 80 / TICKS_PER_S * 1e9


@pytest.mark.parametrize("text", ["cpu  0 0 0 0 0 0 0 0 0 0\n", "cpu  1 2 3\n", "intr 5\n", "cpu  a b c\n"])
def test_processor_times_that_say_nothing(text, tmp_path):
    reading = reading_of(tmp_path, {"proc/stat": text})
    assert reading["others_cpu_ns"] is None
    assert reading["steal_ns"] is None


def test_the_slowest_frequency_is_that_of_a_processor_that_may_be_used(tmp_path):
    usable = sorted(os.sched_getaffinity(0))
    frequencies = {name: 1_500_000 + 1000 * name for name in usable}
    frequencies[max(usable) + 1] = 300_000
    files = {f"cpu{number}/cpufreq/scaling_cur_freq": f"{khz}\n" for number, khz in frequencies.items()}
    files |= {"cpufreq/scaling_cur_freq": "1\n", "cpuidle/cpufreq/scaling_cur_freq": "1\n"}
    reading = reading_of(tmp_path, {f"sys/devices/system/cpu/{name}": text for name, text in files.items()})
    assert reading["slowest_mhz"] == 1500.0 + min(usable)


def test_a_frequency_that_is_no_number(tmp_path):
    name = f"sys/devices/system/cpu/cpu{min(os.sched_getaffinity(0))}/cpufreq/scaling_cur_freq"
    assert reading_of(tmp_path, {name: "<unsupported>\n"})["slowest_mhz"] is None


@pytest.mark.parametrize(
    ("zones", "celsius"),
    [
        (["45000", "52500", "-274000", "200000", "", "none"], 52.5),
        (["-3000"], -3.0),
        (["-274000", "999999999999999999999999"], None),
    ],
)
def test_the_hottest_zone(zones, celsius, tmp_path):
    files = {f"sys/class/thermal/thermal_zone{i}/temp": f"{text}\n" for i, text in enumerate(zones)}
    files["sys/class/thermal/cooling_device0/temp"] = "90000\n"
    assert reading_of(tmp_path, files)["hottest_celsius"] == celsius


def test_throttling(tmp_path):
    files = {f"sys/devices/system/cpu/cpu{i}/thermal_throttle/core_throttle_count": f"{i + 3}\n" for i in range(3)}
    files["sys/devices/platform/soc/soc:firmware/get_throttled"] = "50005\n"
    reading = reading_of(tmp_path, files)
    assert reading["throttle_events"] == 12.0
    assert reading["throttle_bits"] == 0x50005


def kernels_pressure(kind):
    return float(Path(f"/proc/pressure/{kind}").read_text().splitlines()[0].rpartition("=")[2])


@pytest.mark.parametrize("kind", ["cpu", "memory", "io"])
def test_a_real_pressure_lies_between_what_the_file_says_before_and_after(kind):
    try:
        before = kernels_pressure(kind)
    except OSError:
        pytest.skip(f"/proc/pressure/{kind} cannot be read here")
    assert before <= native.load().read_machine()[f"pressure_{kind}_us"] <= kernels_pressure(kind)


def test_real_counters_of_the_process_lie_between_what_python_says_before_and_after():
    least = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.monotonic_ns()
    reading = native.load().read_machine()
    most = resource.getrusage(resource.RUSAGE_SELF)
    assert begin <= reading["at_ns"] <= time.monotonic_ns()
    assert least.ru_nivcsw <= reading["involuntary_switches"] <= most.ru_nivcsw
    assert least.ru_majflt <= reading["major_faults"] <= most.ru_majflt


def waited_ns(thread):
    """What the kernel says; skips where it keeps no such figures."""
    try:
        _, delay, times = Path("/proc", thread, "schedstat").read_text().split()
    except OSError:
        pytest.skip("this kernel has no /proc/self/task/*/schedstat")
    if times == "0":
        pytest.skip("this kernel keeps no run delays (CONFIG_SCHEDSTATS)")
    return int(delay)


def test_the_run_delay_of_the_calling_thread():
    module, found = native.load(), []

    def look():
        for _ in range(100):
            os.sched_yield()
        found.extend([waited_ns("thread-self"), *module.run_delay(all_threads=False), waited_ns("thread-self")])

    waited_ns("thread-self")
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    least, between, most = found
    assert least <= between <= most


def test_two_threads_on_one_processor_wait_for_each_other():
    waited_ns("thread-self")
    module, processor, ended = native.load(), min(os.sched_getaffinity(0)), threading.Event()

    def spin():
        os.sched_setaffinity(0, {processor})  # of this thread
        while not ended.is_set():
            module.probe_ns()

    spinning = [threading.Thread(target=spin) for _ in range(2)]
    before = module.read_machine()
    enough_ns = before["run_delay_ns"] + 20e6
    for thread in spinning:
        thread.start()
    try:
        give_up = time.monotonic() + 10  # some 50 ms are enough
        while sum(module.run_delay(all_threads=True)) < enough_ns and time.monotonic() < give_up:
            time.sleep(0.01)
        delays = module.run_delay(all_threads=True)
        after = module.read_machine()
        threads = len(list(Path("/proc/self/task").iterdir()))
    finally:
        ended.set()
        for thread in spinning:
            thread.join()
    assert len(delays) == threads
    assert enough_ns <= sum(delays) <= after["run_delay_ns"]
    reasons = module.judge(before, after, module.describe_target(), {"run_delay_share": 0.0})[1]
    assert any(reason.startswith("this process's threads waited for a processor") for reason in reasons)


# What a measurement between two readings is worth.

TARGET = {"processors": 2, "online_processors": 2}
BEFORE = {
    "at_ns": 5_000_000_000,
    "pressure_cpu_us": 1e6,
    "pressure_memory_us": 2e6,
    "pressure_io_us": 3e6,
    "run_delay_ns": 4e6,
    "others_cpu_ns": 5e12,
    "steal_ns": 6e9,
    "involuntary_switches": 7,
    "major_faults": 8,
    "slowest_mhz": 2000.0,
    "hottest_celsius": 50.0,
    "throttle_events": 9.0,
    "throttle_bits": 0,
    "probe_ns": 1e6,
}
QUIET = BEFORE | {"at_ns": 7_000_000_000}  # two seconds later


def judged(bounds=None, target=TARGET, before=BEFORE, **after):
    return native.load().judge(before, QUIET | after, target, bounds or {})


def test_a_quiet_measurement_is_valid():
    assert judged() == (True, [], [])


# Name, growth within the bound, growth beyond it, and what is then said; another bound that allows for it.
BOUNDS = [
    (
        "run_delay_ns",
        0.03e9,
        0.1e9,
        "this process's threads waited for a processor 5.00% of the time (bound 2.00%)",
        {"run_delay_share": 0.06},
    ),
    (
        "pressure_cpu_us",
        0.19e6,
        0.25e6,
        "some task, this process's own included, waited for a processor 12.50% of the time (bound 10.00%)",
        {"pressure_share": 0.13},
    ),
    (
        "pressure_memory_us",
        0.019e6,
        0.03e6,
        "some task waited for memory 1.50% of the time (bound 1.00%)",
        {"memory_pressure_share": 0.02},
    ),
    (
        "pressure_io_us",
        0.19e6,
        1.0e6,
        "some task waited for a disk 50.00% of the time (bound 10.00%)",
        {"io_pressure_share": 0.51},
    ),
    (
        "others_cpu_ns",
        0.59e9,
        1.9e9,
        "other work used 0.95 processors on average (bound 0.30)",
        {"others_processors": 1.0},
    ),
    (
        "steal_ns",
        0.039e9,
        0.06e9,
        "the hypervisor took 1.50% of all processors' time (bound 1.00%)",
        {"steal_share": 0.02},
    ),
    ("major_faults", 0, 3, "this process waited 3 times for a page from a disk (bound 0)", {"major_faults": 3}),
    (
        "slowest_mhz",
        -190.0,
        -600.0,
        "the slowest processor's frequency went from 2000 to 1400 MHz, to 0.70 of it (bound 0.90)",
        {"frequency_ratio": 0.69},
    ),
    (
        "probe_ns",
        0.09e6,
        0.5e6,
        "the same computation took 1.00 ms before and 1.50 ms after, a ratio of 1.50 (bound 1.10)",
        {"probe_ratio": 1.6},
    ),
    (
        "probe_ns",
        -0.08e6,
        -0.2e6,
        "the same computation took 1.00 ms before and 0.80 ms after, a ratio of 1.25 (bound 1.10)",
        {"probe_ratio": 1.3},
    ),
    ("throttle_events", 0.0, 4.0, "processors were throttled for heat 4 times (bound 0)", None),
]


@pytest.mark.parametrize(("name", "within", "beyond", "reason", "bounds"), BOUNDS)
def test_each_bound(name, within, beyond, reason, bounds):
    assert judged(**{name: BEFORE[name] + within}) == (True, [], [])
    assert judged(**{name: BEFORE[name] + beyond}) == (False, [reason], [])
    if bounds is not None:
        assert judged(bounds, **{name: BEFORE[name] + beyond}) == (True, [], [])


def test_all_that_disturbs_is_said():
    beyond = {name: BEFORE[name] + growth for name, _, growth, _, _ in BOUNDS}
    valid, reasons, unavailable = judged(**beyond)
    assert not valid
    assert set(reasons) == {reason for name, _, growth, reason, _ in BOUNDS if beyond[name] == BEFORE[name] + growth}
    assert unavailable == []


UNAVAILABLE = {
    "pressure_cpu_us": "pressure_cpu",
    "pressure_memory_us": "pressure_memory",
    "pressure_io_us": "pressure_io",
    "run_delay_ns": "run_delay",
    "others_cpu_ns": "others_cpu",
    "steal_ns": "steal",
    "involuntary_switches": "involuntary_switches",
    "major_faults": "major_faults",
    "slowest_mhz": "frequency",
    "hottest_celsius": "temperature",
}


@pytest.mark.parametrize(("member", "name"), UNAVAILABLE.items())
def test_what_is_absent_in_either_is_named_and_not_judged(member, name):
    huge = 1e15 if member != "slowest_mhz" else 1.0
    assert judged(**{member: None}) == (True, [], [name])
    assert native.load().judge(BEFORE | {member: None}, QUIET | {member: int(huge)}, TARGET) == (True, [], [name])


def test_nothing_available():
    valid, reasons, unavailable = native.load().judge({"at_ns": 1}, {"at_ns": 2}, TARGET)
    assert (valid, reasons) == (True, [])
    assert sorted(unavailable) == sorted([*UNAVAILABLE.values(), "throttling", "probe"])


def test_either_sign_of_throttling_is_enough():
    assert judged(throttle_events=None) == (True, [], [])
    assert judged(throttle_bits=None) == (True, [], [])
    assert judged(throttle_events=None, throttle_bits=None) == (True, [], ["throttling"])


@pytest.mark.parametrize(
    ("before", "after", "valid"),
    [
        (0, 0, True),
        (0x50000, 0x50000, True),  # some time before
        (0x50000, 0, True),
        (0x4, 0x4, False),  # all the time, so that nothing is new
        (0x4, 0, False),
        (0, 0x8, False),
        (0, 0x40000, False),  # between the readings
        (0x50000, 0xA0000, False),  # as many bits, but others
    ],
)
def test_a_boards_throttling(before, after, valid):
    said = judged(before=BEFORE | {"throttle_bits": before}, throttle_bits=after)
    reasons = [] if valid else [f"the board throttled: get_throttled was 0x{before:x} before and 0x{after:x} after"]
    assert said == (valid, reasons, [])


def test_counters_that_shrink_disturb_nothing():
    """Threads that end take their run delay along, processors that are switched off their times."""
    counters = [name for name in UNAVAILABLE if name not in ("slowest_mhz", "hottest_celsius")]
    assert judged(**dict.fromkeys(counters, 0), throttle_events=0.0) == (True, [], [])


def test_a_faster_clock_and_more_switches_disturb_nothing():
    assert judged(slowest_mhz=4000.0, hottest_celsius=90.0, involuntary_switches=10**6) == (True, [], [])


def test_steal_is_of_all_processors_also_where_one_may_be_used():
    pinned = {"processors": 1, "online_processors": 4}
    assert judged(target=pinned, steal_ns=6e9 + 0.07e9)[0]
    assert not judged(target=pinned, steal_ns=6e9 + 0.09e9)[0]


def test_emulated_times_are_not_valid():
    said = judged(target=TARGET | {"emulator": "qemu-aarch64"})
    assert said == (False, ["instructions are emulated (qemu-aarch64): times say nothing of a processor"], [])


@pytest.mark.parametrize("at_ns", [5_000_000_000, 4_000_000_000])
def test_readings_of_no_time(at_ns):
    assert judged(at_ns=at_ns) == (False, ["no time passed between the two readings"], [])


def test_members_that_do_not_exist_are_refused():
    judge = native.load().judge
    with pytest.raises(ValueError, match="run_delay_share"):
        judge(BEFORE, QUIET, TARGET, {"run_delay": 1.0})
    with pytest.raises(ValueError, match="online_processors"):
        judge(BEFORE, QUIET, {"cpus": 2})
    with pytest.raises(ValueError, match="throttle_bits"):
        judge(BEFORE | {"stolen_ns": 1.0}, QUIET, TARGET)


def test_a_whole_judgement_of_the_real_machine():
    module = native.load()
    before, after = module.read_machine(), module.read_machine()
    valid, reasons, unavailable = module.judge(before, after, module.describe_target())
    assert valid == (not reasons)
    missing = {UNAVAILABLE[name] for name in UNAVAILABLE if before[name] is None or after[name] is None}
    assert missing <= set(unavailable)
