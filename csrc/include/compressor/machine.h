// What the machine says of itself, and whether a measurement on it was disturbed. Everything is optional: what cannot
// be read is named, not guessed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace compressor {

// What does not change while a measurement runs.
struct Target {
  std::string architecture;             // uname's machine, such as x86_64
  std::string processor;                // from /proc/cpuinfo or the device tree; "" where it does not say
  std::string system;                   // uname's name and release
  int processors = 0;                   // that this process may use
  int online_processors = 0;            // of the whole machine
  std::optional<double> memory_mib;
  std::optional<bool> virtual_machine;  // the processor's flags name a hypervisor
  std::string emulator;                 // qemu-user's name, or "an emulator of ARCHITECTURE"; "": none was noticed
};

// Paths are looked up below `root` ("" on a real machine; tests give a folder), so that every reading can be tested.
Target describe_target(const std::string& root);

// One look at the counters and sensors. Times are since boot or since the process began; absent: not readable.
struct Reading {
  std::int64_t at_ns = 0;                           // CLOCK_MONOTONIC
  std::optional<double> pressure_cpu_us;            // /proc/pressure/cpu, "some ... total="
  std::optional<double> pressure_memory_us;         // /proc/pressure/memory
  std::optional<double> pressure_io_us;             // /proc/pressure/io
  std::optional<double> run_delay_ns;               // all threads of this process: waited for a processor
  std::optional<double> others_cpu_ns;              // time that processors spent busy, less this process's
  std::optional<double> steal_ns;                   // taken by the hypervisor, all processors
  std::optional<std::int64_t> involuntary_switches; // getrusage
  std::optional<std::int64_t> major_faults;         // getrusage
  std::optional<double> slowest_mhz;                // of the processors that this process may use, now
  std::optional<double> hottest_celsius;            // of the thermal zones
  std::optional<double> throttle_events;            // x86: core_throttle_count, summed
  std::optional<std::int64_t> throttle_bits;        // Raspberry Pi: get_throttled
  double probe_ns = 0.0;                            // of `probe_ns`
};

Reading read_machine(const std::string& root);

// Nanoseconds of a fixed computation in registers, the median of several: nothing but the processor's speed and its
// being shared moves it.
double probe_ns();

// The run delay of this process's threads, in nanoseconds, kept open for reading between inferences.
class RunDelay {
 public:
  // Of the calling thread alone, or of all threads that exist now.
  enum class Of { kThisThread, kAllThreads };
  explicit RunDelay(Of of);
  ~RunDelay();
  RunDelay(const RunDelay&) = delete;
  RunDelay& operator=(const RunDelay&) = delete;

  bool available() const noexcept { return !files_.empty(); }
  std::size_t threads() const noexcept { return files_.size(); }
  // Writes each thread's nanoseconds into `delays` [threads()]; a thread that has ended keeps its last value.
  void read(std::int64_t* delays) const noexcept;

 private:
  std::vector<int> files_;
  mutable std::vector<std::int64_t> last_;  // [threads()]
};

// Bounds beyond which a measurement does not count.
struct ValidityBounds {
  double run_delay_share = 0.02;   // of the measured time, all threads together
  double pressure_share = 0.10;    // some task of the machine waited for a processor
  double memory_pressure_share = 0.01;
  double io_pressure_share = 0.10;
  double others_processors = 0.30; // busy with something else, on average
  double steal_share = 0.01;       // of all processors' time
  double probe_ratio = 1.10;       // after / before, and before / after
  double frequency_ratio = 0.90;   // after / before
  std::int64_t major_faults = 0;
};

struct Validity {
  bool valid;
  std::vector<std::string> reasons;      // one line each, with the figure and the bound
  std::vector<std::string> unavailable;  // names of what could not be read
};

// Shares are of the time between the two readings.
Validity judge(const Reading& before, const Reading& after, const Target& target, const ValidityBounds& bounds);

}  // namespace compressor
