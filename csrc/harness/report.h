// From what was measured to the JSON of docs/bench-result.md.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "compressor/machine.h"
#include "compressor/measure.h"
#include "scenarios.h"

namespace compressor {

constexpr int kResultVersion = 1;

// How a model's outputs compare, and with what; `against` is "" where they do not.
struct Answers {
  std::string against;  // "expected", or the baseline's name
  std::string reason;   // why they are not compared
  Agreement agreement;
};

struct Measured {
  const Request& request;
  std::string version;  // of the runtime
  Target target;
  std::vector<LoadCost> loads;
  const std::vector<Loaded>& models;
  Rounds rounds;
  Reading before;
  std::optional<Reading> after;     // none while the rounds still run
  std::vector<Answers> answers;     // of each model; empty while the rounds still run
  std::vector<std::string> profiles;
  bool interrupted = false;
};

std::string result_of(const Measured& measured);
// The same as lines of a table for people.
std::vector<std::string> table_of(const Measured& measured);

}  // namespace compressor
