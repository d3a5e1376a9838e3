// Timed loops and what they cost the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "compressor/machine.h"
#include "compressor/ort.h"

namespace compressor {

std::int64_t monotonic_ns() noexcept;
std::int64_t process_cpu_ns() noexcept;  // of all threads of this process

// One set of inputs of a session, and its outputs. From the second run on the outputs are written where the first left
// them: nothing is allocated. Where a model does not allow that, the runtime allocates them each time.
class Feed {
 public:
  Feed(const ort::Session& session, ort::Inputs inputs);
  Feed(Feed&& other) noexcept;
  Feed& operator=(Feed&&) = delete;
  ~Feed();

  // Runs twice, and finds out where outputs can lie. Throws ort::Error when an inference fails.
  void prepare();
  // One inference; throws ort::Error when it fails.
  void run() {
    void* status = session_->run_raw(inputs_, outputs_.data());
    if (status != nullptr || !keeps_) after(status);
  }
  // What the last `run` wrote; valid until the next. Where outputs are not kept, this runs once more.
  std::vector<ort::Output> outputs();
  bool keeps_outputs() const noexcept { return keeps_; }
  const ort::Session& session() const noexcept { return *session_; }

 private:
  void after(void* status);  // an error, or outputs to be released
  const ort::Session* session_;
  ort::Inputs inputs_;
  std::vector<void*> outputs_;
  bool keeps_ = true;
};

// What one block of inferences took.
struct Block {
  std::size_t inferences = 0;
  std::vector<double> wall_ns;       // of each inference, or of as many of them as are kept
  std::vector<double> corrected_ns;  // less what its threads waited for a processor; empty where that is not known
  double wall_sum_ns = 0.0, corrected_sum_ns = 0.0;  // of all inferences
  double process_cpu_ns = 0.0;       // of all of them together
  double span_ns = 0.0;              // from the first's begin to the last's end
  std::size_t sitting = 0;           // since when the sessions are open
  double at_s = 0.0;                 // when it began, since the first block of the measurement
  std::vector<double> late_ns;       // paced: how long after its time each began
  std::size_t missed = 0;            // paced: ended after the next was due
  std::size_t dropped = 0;           // paced: times that passed without an inference
};

// How the run delay is read: after every inference that may have waited, where that costs less than a hundredth of one,
// else around the block, whose delay is then taken off its longest inferences; not where the system does not tell.
class DelayMeter {
 public:
  DelayMeter(int threads, double latency_ns);
  bool available() const noexcept { return delay_.available(); }
  bool each_inference() const noexcept { return each_; }
  void read(std::vector<std::int64_t>& delays) const noexcept { delay_.read(delays.data()); }
  std::vector<std::int64_t> room() const { return std::vector<std::int64_t>(delay_.threads()); }

 private:
  RunDelay delay_;
  bool each_ = false;
};

// Runs `count` inferences back to back, the i-th on feeds[(start + i) % feed_count]. `meter` may be null. Throws
// ort::Error when an inference fails.
Block run_block(Feed* feeds, std::size_t feed_count, std::size_t start, std::size_t count, const DelayMeter* meter);

// Sums up the block's times and keeps at most `most` of them, one at random of each run of neighbours: evenly spaced
// ones would, of inputs that come round in turn, be always the same inputs'. `seed` says which.
void sum_and_thin_out(Block& block, std::size_t most, std::uint64_t seed);

// Takes `delay_ns` off the largest of the values, none below the median.
void take_off_longest(std::vector<double>& values, double delay_ns);

struct MemoryUse {
  std::int64_t resident_bytes;  // now; -1 where the system does not say
  std::int64_t peak_bytes;      // the most so far; -1 where the system does not say
};

// What is left for a process, in MiB: of the machine, or of the memory that its control group may have; -1 where the
// system does not say.
std::int64_t available_mib();

// Of this process, from /proc/self/status.
MemoryUse memory_use();

}  // namespace compressor
