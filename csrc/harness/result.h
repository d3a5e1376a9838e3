// The conclusions as the JSON of docs/bench-result.md, and as a table for people.
#pragma once

#include <string>
#include <vector>

#include "conclusions.h"

namespace compressor {

inline constexpr int kResultVersion = 1;
inline constexpr char kInterrupted[] = "interrupted: this is what was measured until then";

std::string result_of(const Measured& measured, const Conclusions& conclusions);
std::vector<std::string> table_of(const Measured& measured, const Conclusions& conclusions);

}  // namespace compressor
