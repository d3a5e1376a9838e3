#include "scenarios.h"

#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include "compressor/stats.h"

namespace compressor {
namespace {

constexpr std::size_t kLeastRounds = 50;          // fewer and a step of some percent goes unseen
constexpr double kBudgetOverrun = 3.0;        // times the budget, then what there is must do
constexpr double kAlmostAll = 0.999;
constexpr std::size_t kLongestFailure = 400;  // of what a thread says that failed
constexpr double kStreamBlockNs = 5e6;        // short against the machine's moods, long against the change of models
constexpr double kPacedBlockNs = 1e9;
constexpr double kSustainedBlockNs = 0.5e9;
constexpr double kThroughputBlockS = 0.25;
constexpr std::size_t kSmallestBlock = 10, kLargestBlock = 1000;
constexpr double kLongestBlockNs = 0.5e9;     // of a slow model, whose block may have fewer inferences
constexpr std::size_t kKeptOfBlock = 1000;    // times of a block; more tell nothing and fill the memory

double since_s(std::int64_t begin) noexcept { return static_cast<double>(monotonic_ns() - begin) / 1e9; }

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return quantile(values.data(), values.size(), 0.5);
}

void open_sessions(const Request& request, Loaded& model, const std::shared_ptr<ort::Library>& library,
                   std::size_t number) {
  const bool many = request.scenario == Scenario::kThroughput;
  ort::SessionSettings settings = request.session;
  if (!settings.profile_prefix.empty()) settings.profile_prefix += "-" + std::to_string(number);
  for (int i = 0; i < (many ? request.sessions : 1); ++i) {
    model.sessions.push_back(std::make_unique<ort::Session>(library, model.path, settings));
  }
}

void make_feeds(const Request& request, const ModelRequest& model, Loaded& loaded) {
  const int callers = request.scenario == Scenario::kThroughput ? request.callers : 1;
  loaded.cases = cases_of(request, model, loaded.session());
  for (const auto& session : loaded.sessions) {
    for (int i = 0; i < callers; ++i) {
      loaded.callers.emplace_back();
      for (const Case& one : loaded.cases) {
        loaded.callers.back().feeds.emplace_back(*session, prepare(*session, one));
        loaded.callers.back().feeds.back().prepare();
      }
    }
  }
}

// The order of the models in each round: shuffled, and every second round the mirror of the one before, so that a slow
// drift of the machine cancels.
class Orders {
 public:
  Orders(std::size_t count, std::uint64_t seed) : order_(count), generator_(seed) {
    for (std::size_t i = 0; i < count; ++i) order_[i] = i;
  }
  const std::vector<std::size_t>& of(std::size_t round) {
    if (round % 2 == 1) {
      std::reverse(order_.begin(), order_.end());
    } else {
      std::shuffle(order_.begin(), order_.end(), generator_);
    }
    return order_;
  }

 private:
  std::vector<std::size_t> order_;
  std::mt19937_64 generator_;
};

Block one_block(const Request& request, Loaded& model, const Rounds& rounds, const std::atomic<bool>& stop) {
  if (request.scenario == Scenario::kThroughput) return throughput_block(model, kThroughputBlockS);
  if (request.scenario == Scenario::kPaced) return paced_block(model, request, rounds.block, stop);
  std::vector<Feed>& feeds = model.callers.front().feeds;
  const std::size_t start = rounds.done * rounds.block;
  // One before it pays for the caches that others took.
  if (request.scenario == Scenario::kStream) run_block(feeds.data(), feeds.size(), start, 1, nullptr);
  return run_block(feeds.data(), feeds.size(), start, rounds.block, model.meter.get());
}

void add_block(const Request& request, Loaded& model, const Rounds& rounds, std::int64_t begin,
               const std::atomic<bool>& stop) {
  const double at_s = since_s(begin);
  Block block = naming(model.name, [&] { return one_block(request, model, rounds, stop); });
  block.at_s = at_s;
  block.sitting = rounds.sitting;
  sum_and_thin_out(block, kKeptOfBlock, request.seed + model.blocks.size());
  if (block.inferences > 0) model.blocks.push_back(std::move(block));
}

Rounds in_turn(const Request& request, std::vector<Loaded>& models, Rounds rounds, const std::atomic<bool>& stop,
               const RoundHooks& hooks) {
  Orders orders(models.size(), request.seed);
  // So many give the median an interval: it lies beyond all of n values with 2 * 0.5^n.
  const std::size_t fewest = samples_for(0.5, (1.0 + each_confidence(kConfidence, request.comparisons())) / 2.0);
  const std::int64_t begin = monotonic_ns();
  while (rounds.done < rounds.wanted && !stop) {
    const double spent_s = since_s(begin);
    if (spent_s >= request.budget_s && rounds.done >= fewest) break;
    if (spent_s >= kBudgetOverrun * request.budget_s && rounds.done > 0) break;
    // By what ends the run: its rounds, or its budget.
    const double share = std::max(static_cast<double>(rounds.done) / static_cast<double>(rounds.wanted),
                                  std::min(spent_s / request.budget_s, kAlmostAll));
    const auto due = static_cast<std::size_t>(share * static_cast<double>(rounds.sittings));
    if (due > rounds.sitting) hooks.reopen(rounds.sitting += 1);
    for (const std::size_t index : orders.of(rounds.done)) {
      if (stop) return rounds;
      add_block(request, models[index], rounds, begin, stop);
      if (stop && models[index].blocks.size() <= rounds.done) return rounds;  // it did not come to an inference
      hooks.after_block(rounds);
    }
    ++rounds.done;
  }
  return rounds;
}

Rounds one_after_the_other(const Request& request, std::vector<Loaded>& models, Rounds rounds,
                           const std::atomic<bool>& stop, const RoundHooks& hooks) {
  const std::int64_t begin = monotonic_ns();
  const double total_s = request.duration_s * static_cast<double>(models.size());
  for (std::size_t index = 0; index < models.size(); ++index) {
    const std::int64_t own_begin = monotonic_ns();
    while (!stop && since_s(own_begin) < request.duration_s) {
      add_block(request, models[index], rounds, begin, stop);
      ++rounds.done;
      const double share = std::min(since_s(begin) / total_s, 1.0);
      rounds.wanted = std::max(rounds.done, static_cast<std::size_t>(static_cast<double>(rounds.done) / share));
      hooks.after_block(rounds);
    }
  }
  return rounds;
}

}  // namespace

std::size_t Loaded::inferences() const noexcept {
  std::size_t count = 0;
  for (const Block& block : blocks) count += block.inferences;
  return count;
}

void open_models(const Request& request, const std::shared_ptr<ort::Library>& library, std::size_t sitting,
                 std::vector<Loaded>& models, const Tell& tell) {
  models.resize(request.models.size());
  for (Loaded& model : models) {
    model.callers.clear();
    model.sessions.clear();
  }
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < models.size(); ++i) order.push_back(sitting % 2 == 0 ? i : models.size() - 1 - i);
  std::vector<const ort::Session*> sessions;
  for (const std::size_t i : order) {
    Loaded& model = models[i];
    model.name = request.models[i].name;
    model.path = request.models[i].path;
    tell({Line::kModel, model.name});
    naming(model.name, [&] { open_sessions(request, model, library, i); });
    sessions.push_back(&model.session());
  }
  check_shapes(request, sessions);
  for (const std::size_t i : order) {
    tell({Line::kModel, models[i].name});
    naming(models[i].name, [&] { make_feeds(request, request.models[i], models[i]); });
  }
  tell({Line::kModel, ""});
}

void warm_up(Loaded& model, const Request& request, double least_s, double most_s, const std::atomic<bool>& stop) {
  std::vector<Feed>& feeds = model.callers.front().feeds;
  WarmUp averages;
  std::vector<double> last;
  const std::int64_t begin = monotonic_ns();
  for (int passes = 0; !stop; ++passes) {
    // One pass over the inputs is one time: inputs of different length must not look like a change.
    const auto pass = [&] { return run_block(feeds.data(), feeds.size(), 0, feeds.size(), nullptr); };
    const Block block = naming(model.name, pass);
    model.warmed_up.inferences += feeds.size();
    model.warmed_up.settled = averages.settled(block.span_ns) || model.warmed_up.settled;
    last = block.wall_ns;
    const double spent_s = since_s(begin);
    if (passes > 0 && spent_s >= least_s && (model.warmed_up.settled || spent_s >= most_s)) break;
  }
  model.latency_ns = last.empty() ? 1.0 : std::max(median_of(last), 1.0);
  if (request.scenario == Scenario::kThroughput) return;  // which of many threads waited for what is not told
  model.meter = std::make_unique<DelayMeter>(request.session.threads, model.latency_ns);
}

std::size_t block_size(const std::vector<Loaded>& models, double target_ns) {
  double slowest_ns = 1.0;
  for (const Loaded& model : models) slowest_ns = std::max(slowest_ns, model.latency_ns);
  const double count = std::clamp(target_ns / slowest_ns, 1.0, 1e6);
  return static_cast<std::size_t>(count);
}

Block paced_block(Loaded& model, const Request& request, std::size_t count, const std::atomic<bool>& stop) {
  std::vector<Feed>& feeds = model.callers.front().feeds;
  const auto period_ns = static_cast<std::int64_t>(request.period_ms * 1e6);
  Block block;
  const std::int64_t cpu_begin = process_cpu_ns(), span_begin = monotonic_ns();
  std::int64_t due = span_begin + period_ns;
  for (std::size_t i = 0; i < count && !stop; ++i) {
    const timespec until{due / 1'000'000'000, due % 1'000'000'000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) != 0 && !stop) {
    }
    if (stop) break;
    block.late_ns.push_back(static_cast<double>(monotonic_ns() - due));
    const Block one = run_block(feeds.data(), feeds.size(), model.inferences() + i, 1, model.meter.get());
    ++block.inferences;
    block.wall_ns.push_back(one.wall_ns.front());
    if (!one.corrected_ns.empty()) block.corrected_ns.push_back(one.corrected_ns.front());
    const std::int64_t end = monotonic_ns();
    due += period_ns;
    if (end > due) {
      ++block.missed;
      const std::int64_t passed = (end - due) / period_ns;
      block.dropped += static_cast<std::size_t>(passed);
      due += passed * period_ns;
    }
  }
  block.span_ns = static_cast<double>(monotonic_ns() - span_begin);
  block.process_cpu_ns = static_cast<double>(process_cpu_ns() - cpu_begin);
  return block;
}

Block throughput_block(Loaded& model, double seconds) {
  const auto count = model.callers.size();
  std::vector<std::vector<double>> walls(count);
  std::vector<std::string> failures(count);
  std::vector<std::thread> threads;
  std::string not_started;
  const std::int64_t cpu_begin = process_cpu_ns(), begin = monotonic_ns();
  const auto end = begin + static_cast<std::int64_t>(seconds * 1e9);
  const auto call = [&](std::size_t i) {
    std::vector<Feed>& feeds = model.callers[i].feeds;
    try {
      for (std::size_t k = 0; monotonic_ns() < end; ++k) {
        const std::int64_t start = monotonic_ns();
        feeds[k % feeds.size()].run();
        walls[i].push_back(static_cast<double>(monotonic_ns() - start));
      }
    } catch (const std::exception& error) {  // which must not leave the thread, and there may be no memory left
      failures[i].assign(error.what(), std::min(std::strlen(error.what()), failures[i].capacity()));
    }
  };
  for (std::string& failure : failures) failure.reserve(kLongestFailure);
  threads.reserve(count);
  try {
    for (std::size_t i = 0; i < count; ++i) threads.emplace_back(call, i);
  } catch (const std::exception& error) {
    not_started = error.what();  // those that run must end before it is told
  }
  for (std::thread& thread : threads) thread.join();
  if (!not_started.empty()) {
    throw MeasureError("only " + std::to_string(threads.size()) + " of " + std::to_string(count) +
                       " threads could be started (" + not_started + "); ask for fewer sessions or callers");
  }
  Block block;
  block.span_ns = static_cast<double>(monotonic_ns() - begin);
  block.process_cpu_ns = static_cast<double>(process_cpu_ns() - cpu_begin);
  for (std::size_t i = 0; i < count; ++i) {
    if (!failures[i].empty()) throw ort::Error(failures[i]);
    block.wall_ns.insert(block.wall_ns.end(), walls[i].begin(), walls[i].end());
    block.inferences += walls[i].size();
  }
  return block;
}

Rounds run_rounds(const Request& request, std::vector<Loaded>& models, std::size_t sittings,
                  const std::atomic<bool>& stop, const RoundHooks& hooks) {
  Rounds rounds;
  rounds.sittings = sittings;
  if (request.scenario == Scenario::kSustained) {
    rounds.block = block_size(models, kSustainedBlockNs);
    return one_after_the_other(request, models, rounds, stop, hooks);
  }
  if (request.scenario == Scenario::kThroughput) {
    const double rounds_in_budget = request.budget_s / (kThroughputBlockS * static_cast<double>(models.size()));
    rounds.wanted = std::max(kLeastRounds, static_cast<std::size_t>(rounds_in_budget));
    return in_turn(request, models, rounds, stop, hooks);
  }
  if (request.scenario == Scenario::kPaced) {
    const auto in_time = static_cast<std::size_t>(kPacedBlockNs / (request.period_ms * 1e6));
    rounds.block = std::max<std::size_t>(1, std::min(in_time, block_size(models, kPacedBlockNs)));
  } else {
    const std::size_t smallest = std::min(kSmallestBlock, block_size(models, kLongestBlockNs));
    const std::size_t largest = request.session.profile_prefix.empty() ? kLargestBlock : kSmallestBlock;
    rounds.block = std::clamp(block_size(models, kStreamBlockNs), smallest, largest);
  }
  const auto least = static_cast<double>(request.min_samples) / static_cast<double>(rounds.block);
  rounds.wanted = std::max(kLeastRounds, static_cast<std::size_t>(std::ceil(least)));
  return in_turn(request, models, rounds, stop, hooks);
}

}  // namespace compressor
