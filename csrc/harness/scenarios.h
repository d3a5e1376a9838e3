// What the scenarios have in common: opened models, and rounds in which each of them runs a block.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "compressor/harness.h"
#include "compressor/measure.h"
#include "inputs.h"

namespace compressor {

constexpr double kConfidence = 0.95;  // of all intervals of a comparison together

// Whoever calls a session: its own inputs and outputs.
struct Caller {
  std::vector<Feed> feeds;
};

struct WarmedUp {
  std::size_t inferences = 0;
  bool settled = false;
};

// A model that is ready, and what it did so far.
struct Loaded {
  std::string name, path;
  std::vector<std::unique_ptr<ort::Session>> sessions;  // one, but for throughput
  std::vector<Caller> callers;
  std::vector<Case> cases;
  double latency_ns = 0.0;  // median of the end of the warm-up
  WarmedUp warmed_up;
  std::unique_ptr<DelayMeter> meter;
  std::vector<Block> blocks;  // in the order of time

  std::size_t inferences() const noexcept;
  ort::Session& session() noexcept { return *sessions.front(); }
};

// Opens the models, or opens them again, and makes their inputs; nothing has run then but each input twice. In every
// second sitting the order is turned round: what comes of the order is not the models'.
void open_models(const Request& request, const std::shared_ptr<ort::Library>& library, std::size_t sitting,
                 std::vector<Loaded>& models, const Tell& tell);

// Runs the model's inputs in turn until its times settle (stats.h), for `least_s` at least and `most_s` at most, and
// prepares the meter of its delays.
void warm_up(Loaded& model, const Request& request, double least_s, double most_s, const std::atomic<bool>& stop);

// How many inferences a block has: as many as the slowest model does in about `target_ns`.
std::size_t block_size(const std::vector<Loaded>& models, double target_ns);

// One block of a model of each scenario; `block` inferences, or as long as it takes.
Block paced_block(Loaded& model, const Request& request, std::size_t block, const std::atomic<bool>& stop);
Block throughput_block(Loaded& model, double seconds);

// What the rounds were.
struct Rounds {
  std::size_t done = 0, wanted = 0, block = 0;
  std::size_t sittings = 1, sitting = 0;
};

struct RoundHooks {
  std::function<void(std::size_t sitting)> reopen;  // before the first round of every sitting but the first
  std::function<void(const Rounds&)> after_block;
};

// Takes the models through the rounds of the request's scenario, in `sittings` of equal length.
Rounds run_rounds(const Request& request, std::vector<Loaded>& models, std::size_t sittings,
                  const std::atomic<bool>& stop, const RoundHooks& hooks);

}  // namespace compressor
