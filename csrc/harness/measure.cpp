#include "compressor/measure.h"

#include <algorithm>
#include <memory>

#include "compressor/json.h"
#include "result.h"
#include "scenarios.h"

namespace compressor {
namespace {

constexpr double kProgressEveryS = 0.5;  // each line wakes whoever reads it, on a machine that is measuring
constexpr double kPartialEveryS = 5.0;
constexpr double kWarmAgainS = 0.1;      // of a model that was opened again
constexpr double kReopeningShare = 0.5;  // of the budget
constexpr double kFewestSittings = 3.0;  // of a comparison, also where opening takes longer than that

std::vector<Array> outputs_of(Feed& feed) {
  std::vector<Array> arrays;
  for (const ort::Output& output : feed.outputs()) arrays.push_back(copy_of(output));
  return arrays;
}

// What the timed session gave for each case: [cases][outputs].
std::vector<std::vector<Array>> answers_of(Loaded& model) {
  std::vector<std::vector<Array>> answers;
  for (Feed& feed : model.callers.front().feeds) answers.push_back(outputs_of(feed));
  return answers;
}

bool same_names(const ort::Session& one, const ort::Session& other) {
  const auto& a = one.outputs();
  const auto& b = other.outputs();
  return a.size() == b.size() &&
         std::equal(a.begin(), a.end(), b.begin(), [](const auto& x, const auto& y) { return x.name == y.name; });
}

bool same_inputs(const Case& one, const Case& other) {
  return one.inputs.size() == other.inputs.size() &&
         std::equal(one.inputs.begin(), one.inputs.end(), other.inputs.begin(), [](const Array& a, const Array& b) {
           return a.type == b.type && a.shape == b.shape && a.storage == b.storage;
         });
}

// The first output whose elements are not looked into, as "output 'y' is a string"; "" where there is none.
std::string opaque_output(const ort::Session& session) {
  for (const ort::TensorInfo& output : session.outputs()) {
    if (ort::element_size(output.type) > 0) continue;
    return "its output '" + output.name + "' is " + ort::element_name(output.type) + ", which is not compared";
  }
  return "";
}

bool all_finite(const std::vector<std::vector<Array>>& answers) {
  return std::all_of(answers.begin(), answers.end(), [](const std::vector<Array>& outputs) {
    return std::all_of(outputs.begin(), outputs.end(), [](const Array& output) { return finite(output); });
  });
}

Answers not_compared(const std::string& reason) { return {"", reason, {}, std::nullopt}; }

Answers compared_with_expected(Loaded& model, const std::vector<std::vector<Array>>& got) {
  Answers answers{"expected", "", {}, std::nullopt};
  for (std::size_t row = 0; row < got.size(); ++row) {
    const std::vector<Array>& expected = model.cases[row].expected;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      if (!expected[i].storage.empty()) compare(got[row][i], expected[i], answers.agreement);
    }
    answers.agreement.cases += !expected.empty();
  }
  if (!answers.agreement.comparable) return not_compared("an output's shape is not the expected one's");
  return answers;
}

Answers compared_with_baseline(Loaded& baseline, Loaded& model, const std::vector<std::vector<Array>>& wanted,
                               const std::vector<std::vector<Array>>& got) {
  if (!same_names(baseline.session(), model.session())) {
    return not_compared("its outputs have other names than the baseline's");
  }
  const bool same = baseline.cases.size() == model.cases.size() &&
                    std::equal(baseline.cases.begin(), baseline.cases.end(), model.cases.begin(), same_inputs);
  if (!same) return not_compared("its inputs are not the baseline's");
  Answers answers{baseline.name, "", {}, std::nullopt};
  for (std::size_t row = 0; row < got.size(); ++row) {
    for (std::size_t i = 0; i < got[row].size(); ++i) compare(got[row][i], wanted[row][i], answers.agreement);
    ++answers.agreement.cases;
  }
  if (!answers.agreement.comparable) return not_compared("its outputs have other shapes than the baseline's");
  return answers;
}

void save_answers(const std::string& folder, std::size_t model, const std::vector<std::vector<Array>>& got) {
  for (std::size_t row = 0; row < got.size(); ++row) {
    for (std::size_t i = 0; i < got[row].size(); ++i) {
      const std::string name = std::to_string(model) + "-" + std::to_string(row) + "-" + std::to_string(i) + ".npy";
      write_npy(folder + "/" + name, got[row][i].type, got[row][i].shape, got[row][i].data());
    }
  }
}

// Of every model: against the expected outputs where there are any, else against the baseline's.
std::vector<Answers> check_answers(const Request& request, std::vector<Loaded>& models) {
  std::vector<Answers> all;
  std::vector<std::vector<Array>> of_baseline;
  for (std::size_t i = 0; i < models.size(); ++i) {
    Loaded& model = models[i];
    const std::string opaque = opaque_output(model.session());
    if (!opaque.empty()) {
      all.push_back(not_compared(opaque));
      continue;
    }
    std::vector<std::vector<Array>> got = answers_of(model);
    if (!request.outputs.empty()) save_answers(request.outputs, i, got);
    const bool expected = std::any_of(model.cases.begin(), model.cases.end(),
                                      [](const Case& one) { return !one.expected.empty(); });
    if (expected) {
      all.push_back(compared_with_expected(model, got));
    } else if (i > 0 && of_baseline.empty()) {
      all.push_back(not_compared("the baseline's outputs are of a type that is not compared"));
    } else if (i > 0) {
      all.push_back(compared_with_baseline(models[0], model, of_baseline, got));
    } else {
      all.push_back(not_compared("it is the baseline, and nothing says what its outputs should be"));
    }
    all.back().finite = all_finite(got);
    if (i == 0) of_baseline = std::move(got);
  }
  return all;
}

// As many sittings as are asked for, while opening the models again takes no more than a part of the budget.
std::size_t sittings_of(const Request& request, const std::vector<LoadCost>& loads) {
  const bool compared = request.models.size() > 1 && request.scenario != Scenario::kSustained;
  if (!compared || !request.session.profile_prefix.empty()) return 1;
  double again_s = 0.0;
  for (const LoadCost& load : loads) again_s += load.session_ms / 1e3 + kWarmAgainS;
  const double times = kReopeningShare * request.budget_s / again_s;
  const double sittings = std::max(1.0 + times, kFewestSittings);
  return static_cast<std::size_t>(std::min(sittings, static_cast<double>(request.sittings)));
}

std::string progress_of(const Rounds& rounds) {
  return Json().object().member("done", rounds.done).member("of", rounds.wanted).end().text();
}

}  // namespace

std::string measure(const Request& request, const std::vector<LoadCost>& loads, const std::atomic<bool>& stop,
                    const Tell& tell) {
  const auto library = std::make_shared<ort::Library>(request.library);
  std::vector<Loaded> models;
  open_models(request, library, 0, models, tell);
  // A profile has an event for each node of each inference: of many they take longer to read than to run.
  const bool profiled = !request.session.profile_prefix.empty();
  const double least_s = profiled ? 0.0 : request.warm_up_s, most_s = profiled ? 0.0 : request.warm_up_cap_s;
  for (Loaded& model : models) warm_up(model, request, least_s, most_s, stop);
  Measured measured{request, library->version(), describe_target(""), loads, models, {}, {}, {}, {}, {}, false};
  measured.before = read_machine("");
  std::int64_t told = monotonic_ns(), told_all = told;
  const auto reopen = [&](std::size_t sitting) {
    open_models(request, library, sitting, models, tell);
    for (Loaded& model : models) warm_up(model, request, kWarmAgainS, kWarmAgainS, stop);
  };
  const auto after_block = [&](const Rounds& rounds) {
    const std::int64_t now = monotonic_ns();
    if (static_cast<double>(now - told) < kProgressEveryS * 1e9) return;
    told = now;
    if (rounds.done == 0) {
      tell({Line::kModel, ""});  // a sign of life: there is nothing yet that an interruption would keep
      return;
    }
    tell({Line::kProgress, progress_of(rounds)});
    if (static_cast<double>(now - told_all) < kPartialEveryS * 1e9) return;
    told_all = now;
    measured.rounds = rounds;
    tell({Line::kPartial, result_of(measured, conclude(measured))});
  };
  measured.rounds = run_rounds(request, models, sittings_of(request, loads), stop, {reopen, after_block});
  measured.after = read_machine("");
  measured.interrupted = stop;
  if (measured.rounds.done == 0) throw MeasureError("interrupted before anything was measured");
  measured.answers = check_answers(request, models);
  if (profiled) {
    for (Loaded& model : models) measured.profiles.push_back(model.session().end_profile());
  }
  const Conclusions conclusions = conclude(measured);
  for (const std::string& line : table_of(measured, conclusions)) tell({Line::kTable, line});
  return result_of(measured, conclusions);
}

}  // namespace compressor
