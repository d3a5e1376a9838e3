#include <dirent.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <memory>

#include "compressor/machine.h"
#include "files.h"

namespace compressor {
namespace {

constexpr double kColdestC = -40.0, kHottestC = 150.0;  // beyond these a sensor is broken or not there
constexpr int kProbes = 5;
constexpr int kProbeSteps = 400'000;  // about 1 ms: a step waits some 8 cycles for the one before

std::int64_t now_ns() noexcept {
  timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return static_cast<std::int64_t>(at.tv_sec) * 1'000'000'000 + at.tv_nsec;
}

std::vector<std::string> entries(const std::string& folder) {
  std::vector<std::string> names;
  const std::unique_ptr<DIR, int (*)(DIR*)> open(opendir(folder.c_str()), &closedir);
  if (!open) return names;
  while (const dirent* entry = readdir(open.get())) names.emplace_back(entry->d_name);
  return names;
}

// The number behind `prefix` where that is all there is, as in cpu7; else -1.
int number_behind(const std::string& prefix, const std::string& name) {
  if (name.size() <= prefix.size() || name.size() > prefix.size() + 9 || name.compare(0, prefix.size(), prefix) != 0) {
    return -1;
  }
  const auto digit = [](unsigned char letter) { return std::isdigit(letter) != 0; };
  return std::all_of(name.begin() + prefix.size(), name.end(), digit) ? std::atoi(name.c_str() + prefix.size()) : -1;
}

// The numbers in FOLDER/PREFIX<n>/FILE that can be read, for the n that `wanted` accepts.
template <class Wanted>
std::vector<double> numbers_of(const std::string& folder, const std::string& prefix, const std::string& file,
                               Wanted wanted) {
  std::vector<double> numbers;
  for (const std::string& name : entries(folder)) {
    const int number = number_behind(prefix, name);
    if (number < 0 || !wanted(number)) continue;
    if (const auto value = number_of(folder + "/" + name + "/" + file)) numbers.push_back(*value);
  }
  return numbers;
}

bool any(int) { return true; }

std::optional<double> pressure_us(const std::string& path) {
  const std::string text = text_of(path).value_or("");
  const std::string line = text.substr(0, text.find('\n'));
  const std::size_t total = line.find(" total=");
  if (line.compare(0, 5, "some ") != 0 || total == line.npos) return std::nullopt;
  return number_in(line.substr(total + std::strlen(" total=")));
}

// A thread's time in the queue for a processor. `ran`: how often it got one; 0 in each of them, the running one's too,
// where the kernel does not keep these figures.
struct Schedule {
  std::int64_t delay_ns, ran;
};

std::optional<Schedule> schedule_in(const char* text) noexcept {
  Schedule schedule;
  if (std::sscanf(text, "%*d %" SCNd64 " %" SCNd64, &schedule.delay_ns, &schedule.ran) != 2) return std::nullopt;
  return schedule;
}

std::optional<double> run_delay_ns(const std::string& tasks) {
  double sum = 0.0;
  bool kept = false;
  for (const std::string& name : entries(tasks)) {
    if (number_behind("", name) < 0) continue;
    const std::string text = text_of(tasks + "/" + name + "/schedstat").value_or("");
    const std::optional<Schedule> schedule = schedule_in(text.c_str());
    if (!schedule) continue;
    sum += static_cast<double>(schedule->delay_ns);
    kept = kept || schedule->ran > 0;
  }
  if (!kept) return std::nullopt;
  return sum;
}

double ns_of(const timeval& time) noexcept {
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_usec) * 1e3;
}

void read_process(Reading& reading, double& own_cpu_ns) {
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) != 0) return;
  reading.involuntary_switches = usage.ru_nivcsw;
  reading.major_faults = usage.ru_majflt;
  own_cpu_ns = ns_of(usage.ru_utime) + ns_of(usage.ru_stime);
  // Children that have ended worked for this process.
  rusage children{};
  if (getrusage(RUSAGE_CHILDREN, &children) == 0) own_cpu_ns += ns_of(children.ru_utime) + ns_of(children.ru_stime);
}

void read_processors(const std::string& root, double own_cpu_ns, Reading& reading) {
  const std::string text = text_of(root + "/proc/stat", 4096).value_or("");
  long long user, nice, system, idle, iowait, irq, softirq, steal;
  // Guest time, which follows, is in user and nice already.
  if (std::sscanf(text.c_str(), "cpu %lld %lld %lld %lld %lld %lld %lld %lld", &user, &nice, &system, &idle, &iowait,
                  &irq, &softirq, &steal) != 8) {
    return;
  }
  if (user + nice + system + idle == 0) return;  // some containers show zeros
  const double tick_ns = 1e9 / static_cast<double>(sysconf(_SC_CLK_TCK));
  reading.others_cpu_ns = static_cast<double>(user + nice + system + irq + softirq) * tick_ns - own_cpu_ns;
  reading.steal_ns = static_cast<double>(steal) * tick_ns;
}

void read_sensors(const std::string& root, Reading& reading) {
  const std::string processors = root + "/sys/devices/system/cpu";
  cpu_set_t set;
  const bool known = sched_getaffinity(0, sizeof set, &set) == 0;
  const auto usable = [&](int number) { return !known || (number < CPU_SETSIZE && CPU_ISSET(number, &set)); };
  const std::vector<double> khz = numbers_of(processors, "cpu", "cpufreq/scaling_cur_freq", usable);
  if (!khz.empty()) reading.slowest_mhz = *std::min_element(khz.begin(), khz.end()) / 1e3;

  for (const double milli : numbers_of(root + "/sys/class/thermal", "thermal_zone", "temp", any)) {
    const double celsius = milli / 1e3;
    if (celsius <= kColdestC || celsius >= kHottestC) continue;
    reading.hottest_celsius = std::max(reading.hottest_celsius.value_or(celsius), celsius);
  }

  const std::vector<double> counts = numbers_of(processors, "cpu", "thermal_throttle/core_throttle_count", any);
  for (const double count : counts) reading.throttle_events = reading.throttle_events.value_or(0.0) + count;
  if (const auto bits = number_of(root + "/sys/devices/platform/soc/soc:firmware/get_throttled", 16)) {
    reading.throttle_bits = static_cast<std::int64_t>(*bits);
  }
}

// Two chains in which each step needs the one before, so that neither vectors nor wider processors shorten them.
double one_probe_ns() noexcept {
  // Volatile: the compiler neither works out the result nor takes the loop from between the two looks at the clock.
  volatile std::uint64_t whole_seed = 88172645463325252u;
  volatile double real_seed = 0.5;
  const std::int64_t begin = now_ns();
  std::uint64_t whole = whole_seed;
  double real = real_seed;
  for (int i = 0; i < kProbeSteps; ++i) {
    whole = whole * 6364136223846793005u + 1442695040888963407u;
    real = real * 0.999 + 0.25;
  }
  whole_seed = whole;
  real_seed = real;
  return static_cast<double>(now_ns() - begin);
}

int open_schedstat(const std::string& thread) {
  return open(("/proc/" + thread + "/schedstat").c_str(), O_RDONLY | O_CLOEXEC);
}

std::optional<Schedule> schedule_at(int file) noexcept {
  char text[96];
  const ssize_t got = pread(file, text, sizeof text - 1, 0);
  if (got <= 0) return std::nullopt;
  text[got] = '\0';
  return schedule_in(text);
}

}  // namespace

double probe_ns() {
  double times[kProbes];
  for (double& time : times) time = one_probe_ns();
  std::nth_element(times, times + kProbes / 2, times + kProbes);
  return times[kProbes / 2];
}

Reading read_machine(const std::string& root) {
  Reading reading;
  // First, so that the frequencies are those of a machine that works and the counters do not hold it twice.
  reading.probe_ns = probe_ns();
  read_sensors(root, reading);
  reading.at_ns = now_ns();
  reading.pressure_cpu_us = pressure_us(root + "/proc/pressure/cpu");
  reading.pressure_memory_us = pressure_us(root + "/proc/pressure/memory");
  reading.pressure_io_us = pressure_us(root + "/proc/pressure/io");
  reading.run_delay_ns = run_delay_ns(root + "/proc/self/task");
  double own_cpu_ns = 0.0;
  read_process(reading, own_cpu_ns);
  read_processors(root, own_cpu_ns, reading);
  return reading;
}

RunDelay::RunDelay(Of of) {
  int own = open_schedstat("thread-self");
  if (own < 0) own = open_schedstat("self/task/" + std::to_string(syscall(SYS_gettid)));
  if (own < 0) return;
  const std::optional<Schedule> schedule = schedule_at(own);
  const bool kept = schedule && schedule->ran > 0;
  if (kept && of == Of::kThisThread) {
    files_.push_back(own);
  } else {
    close(own);
  }
  if (kept && of == Of::kAllThreads) {
    for (const std::string& name : entries("/proc/self/task")) {
      if (number_behind("", name) < 0) continue;
      const int file = open_schedstat("self/task/" + name);
      if (file >= 0) files_.push_back(file);  // a thread may have ended since
    }
  }
  last_.resize(files_.size());
}

RunDelay::~RunDelay() {
  for (const int file : files_) close(file);
}

void RunDelay::read(std::int64_t* delays) const noexcept {
  for (std::size_t i = 0; i < files_.size(); ++i) {
    if (const std::optional<Schedule> schedule = schedule_at(files_[i])) last_[i] = schedule->delay_ns;
    delays[i] = last_[i];
  }
}

}  // namespace compressor
