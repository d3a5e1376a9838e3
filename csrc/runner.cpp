// The stand-alone measuring program, for boards without Python and for `compressor bench` itself: flags in, JSON out.
#include <fcntl.h>
#include <getopt.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "compressor/harness.h"
#include "compressor/json.h"
#include "compressor/machine.h"
#include "compressor/measure.h"
#include "harness/supervise.h"

namespace {

using compressor::Cold;
using compressor::ColdStarts;
using compressor::Json;
using compressor::Line;
using compressor::LoadCost;
using compressor::MeasureError;
using compressor::ModelRequest;
using compressor::Request;
using compressor::Scenario;
using compressor::Tell;

constexpr int kFailed = 1, kUsage = 2;

constexpr char kHelp[] =
    "compressor-runner: times ONNX models natively and prints JSON\n"
    "\n"
    "  --ort FILE                 libonnxruntime.so, 1.19 or later (needed)\n"
    "  --model FILE               a model; again for more, the first is the baseline (needed)\n"
    "  --name NAME                of the model before it (its file's name)\n"
    "  --cases FOLDER             inputs of the model before it, or of all: a folder with cases.tsv; else made up\n"
    "  --also-against             the model before it is one that those after it are compared with too\n"
    "  --shape NAME=SIZE          size of a dynamic dimension of made-up inputs; again for more\n"
    "  --batch N                  size of a first dimension that --shape does not name (1)\n"
    "  --scenario NAME            stream (default), paced, throughput, sustained, cold\n"
    "  --threads N                of a session (1)\n"
    "  --optimization LEVEL       none, basic, extended, all (default)\n"
    "  --spin                     idle threads wait busily\n"
    "  --provider NAME            execution provider (cpu)\n"
    "  --samples N                inferences of each model, if the budget allows (500)\n"
    "  --budget SECONDS           of the timing of all models (40)\n"
    "  --period-ms MS             paced: one inference in so many milliseconds\n"
    "  --sessions N, --callers N  throughput: open sessions, and threads that call each (1)\n"
    "  --duration SECONDS         sustained: of each model (60)\n"
    "  --processes N              cold: of each model and state of the disk cache (5)\n"
    "  --least-effect SHARE       a smaller difference is no verdict (0.02)\n"
    "  --sittings N               of a comparison: how often the sessions are opened, if quick enough (8)\n"
    "  --seed N                   of made-up inputs and of the order (0)\n"
    "  --profile PREFIX           writes ONNX Runtime's profile of each model to a file beginning so\n"
    "  --outputs FOLDER           writes each model's outputs as .npy into a folder that is there\n"
    "  --memory-limit MIB         of address space of the process that opens the models (what the machine has left)\n"
    "  --silence SECONDS          after so long without progress a model counts as hanging (120)\n"
    "  --json                     the result as JSON, one line (default: a table)\n"
    "  --events                   JSON lines: progress, partial results, the result\n"
    "  --version, --help\n";

struct Options {
  Request request;
  compressor::Limits limits;
  std::string cases;  // of models that name none
  bool json = false, events = false;
};

// Names go into lines and tables, wrong flags into errors of one line.
std::string printable(std::string name) {
  for (char& c : name) {
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  }
  return name;
}

[[noreturn]] void usage_error(const std::string& message) {
  std::fprintf(stderr, "compressor-runner: %s; see --help\n", printable(message).c_str());
  std::exit(kUsage);
}

double number(const char* flag, const char* text, double least, double most) {
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  if (end == text || *end != '\0' || !(value >= least && value <= most)) {
    char range[64];
    std::snprintf(range, sizeof range, "%g to %g", least, most);
    usage_error(std::string("--") + flag + " takes a number from " + range + ", got '" + text + "'");
  }
  return value;
}

std::int64_t whole(const char* flag, const char* text, double least, double most = 1e9) {
  const double value = number(flag, text, least, most);
  if (value != std::floor(value)) usage_error(std::string("--") + flag + " takes a whole number, got '" + text + "'");
  return static_cast<std::int64_t>(value);
}

template <class Value>
Value choice(const char* flag, const std::string& text, const std::vector<std::pair<const char*, Value>>& choices) {
  std::string names;
  for (const auto& [name, value] : choices) {
    if (text == name) return value;
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  usage_error(std::string("--") + flag + " takes one of " + names + ", got '" + text + "'");
}

std::string stem_of(const std::string& path) {
  const std::string file = path.substr(path.find_last_of('/') + 1);
  const std::size_t dot = file.rfind(".onnx");
  return dot != std::string::npos && dot > 0 && dot + 5 == file.size() ? file.substr(0, dot) : file;
}

ModelRequest& last_model(Request& request, const char* flag) {
  if (request.models.empty()) usage_error(std::string("--") + flag + " belongs after the --model that it is for");
  return request.models.back();
}

void check_names(const Request& request) {
  for (std::size_t i = 0; i < request.models.size(); ++i) {
    for (std::size_t k = 0; k < i; ++k) {
      if (request.models[i].name != request.models[k].name) continue;
      usage_error("two models are named '" + request.models[i].name + "'; give one a --name");
    }
  }
}

// Found out now, not when everything is measured.
void check_folder(const char* flag, const std::string& folder) {
  if (access((folder + "/.").c_str(), W_OK) == 0) return;
  usage_error(std::string("--") + flag + " needs a folder that can be written, got '" + folder + "' (" +
              std::strerror(errno) + ")");
}

void add_shape(Request& request, const std::string& text) {
  const std::size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0) usage_error("--shape takes NAME=SIZE, got '" + text + "'");
  request.shapes[text.substr(0, equals)] = whole("shape", text.c_str() + equals + 1, 1);
}

enum Flag : int {
  kOrt = 256, kModel, kName, kCases, kAlsoAgainst, kShape, kBatch, kScenario, kThreads, kOptimization, kSpin, kProvider,
  kSamples,  kBudget, kPeriod, kSessions, kCallers, kDuration, kProcesses, kLeastEffect, kSittings, kSeed, kProfile, kOutputs,
  kMemoryLimit, kSilence,
  kJson, kEvents, kVersion, kHelpFlag,
};

constexpr option kFlags[] = {
    {"ort", required_argument, nullptr, kOrt},
    {"model", required_argument, nullptr, kModel},
    {"name", required_argument, nullptr, kName},
    {"cases", required_argument, nullptr, kCases},
    {"also-against", no_argument, nullptr, kAlsoAgainst},
    {"shape", required_argument, nullptr, kShape},
    {"batch", required_argument, nullptr, kBatch},
    {"scenario", required_argument, nullptr, kScenario},
    {"threads", required_argument, nullptr, kThreads},
    {"optimization", required_argument, nullptr, kOptimization},
    {"spin", no_argument, nullptr, kSpin},
    {"provider", required_argument, nullptr, kProvider},
    {"samples", required_argument, nullptr, kSamples},
    {"budget", required_argument, nullptr, kBudget},
    {"period-ms", required_argument, nullptr, kPeriod},
    {"sessions", required_argument, nullptr, kSessions},
    {"callers", required_argument, nullptr, kCallers},
    {"duration", required_argument, nullptr, kDuration},
    {"processes", required_argument, nullptr, kProcesses},
    {"least-effect", required_argument, nullptr, kLeastEffect},
    {"sittings", required_argument, nullptr, kSittings},
    {"seed", required_argument, nullptr, kSeed},
    {"profile", required_argument, nullptr, kProfile},
    {"outputs", required_argument, nullptr, kOutputs},
    {"memory-limit", required_argument, nullptr, kMemoryLimit},
    {"silence", required_argument, nullptr, kSilence},
    {"json", no_argument, nullptr, kJson},
    {"events", no_argument, nullptr, kEvents},
    {"version", no_argument, nullptr, kVersion},
    {"help", no_argument, nullptr, kHelpFlag},
    {nullptr, 0, nullptr, 0},
};

void take(Options& options, int flag, const char* value) {
  Request& request = options.request;
  switch (flag) {
    case kOrt: request.library = value; break;
    case kModel: request.models.push_back({printable(stem_of(value)), value, ""}); break;
    case kName: last_model(request, "name").name = printable(value); break;
    case kCases: (request.models.empty() ? options.cases : request.models.back().cases) = value; break;
    case kAlsoAgainst:
      last_model(request, "also-against");
      request.also_against = request.models.size() - 1;
      break;
    case kShape: add_shape(request, value); break;
    case kBatch: request.batch = whole("batch", value, 1); break;
    case kScenario:
      request.scenario = choice<Scenario>("scenario", value,
                                          {{"stream", Scenario::kStream},
                                           {"paced", Scenario::kPaced},
                                           {"throughput", Scenario::kThroughput},
                                           {"sustained", Scenario::kSustained},
                                           {"cold", Scenario::kCold}});
      break;
    case kThreads: request.session.threads = static_cast<int>(whole("threads", value, 1, 1024)); break;
    case kOptimization:
      request.session.optimization_level =
          choice<int>("optimization", value, {{"none", 0}, {"basic", 1}, {"extended", 2}, {"all", 99}});
      break;
    case kSpin: request.session.spin = true; break;
    case kProvider: request.session.provider = value; break;
    case kSamples: request.min_samples = whole("samples", value, 1); break;
    case kBudget: request.budget_s = number("budget", value, 0.01, 1e6); break;
    case kPeriod: request.period_ms = number("period-ms", value, 0.01, 1e7); break;
    case kSessions: request.sessions = static_cast<int>(whole("sessions", value, 1, 256)); break;
    case kCallers: request.callers = static_cast<int>(whole("callers", value, 1, 1024)); break;
    case kDuration: request.duration_s = number("duration", value, 0.01, 1e6); break;
    case kProcesses: request.processes = static_cast<int>(whole("processes", value, 1, 1000)); break;
    case kLeastEffect: request.least_effect = number("least-effect", value, 0, 1); break;
    case kSittings: request.sittings = static_cast<int>(whole("sittings", value, 1, 1000)); break;
    case kSeed: request.seed = static_cast<std::uint64_t>(whole("seed", value, 0)); break;
    case kProfile: request.session.profile_prefix = value; break;
    case kOutputs: request.outputs = value; break;
    case kMemoryLimit: options.limits.memory_mib = whole("memory-limit", value, 1); break;
    case kSilence: options.limits.silence_s = number("silence", value, 0.1, 1e6); break;
    case kJson: options.json = true; break;
    case kEvents: options.events = true; break;
    case kVersion: std::printf("compressor-runner %s\n", COMPRESSOR_VERSION); std::exit(0);
    case kHelpFlag: std::fputs(kHelp, stdout); std::exit(0);
  }
}

// What getopt_long did not take, the last argument that it looked at.
[[noreturn]] void refuse(int found, int flag, const std::string& argument) {
  if (found == ':') usage_error("'" + argument + "' takes a value");
  if (flag >= kOrt) usage_error("'" + argument + "' takes no value");
  if (flag > 0) usage_error(std::string("flags begin with --, got '-") + static_cast<char>(flag) + "'");
  usage_error("'" + argument + "' is no flag, or the start of several");
}

Options options_of(int count, char** arguments) {
  Options options;
  int flag;
  while ((flag = getopt_long(count, arguments, ":", kFlags, nullptr)) != -1) {
    if (flag == ':' || flag == '?') refuse(flag, optopt, arguments[optind - 1]);
    take(options, flag, optarg);
  }
  if (optind < count) usage_error("models are given as --model FILE, got '" + std::string(arguments[optind]) + "'");
  Request& request = options.request;
  if (request.library.empty()) usage_error("--ort FILE is needed");
  if (request.models.empty()) usage_error("--model FILE is needed");
  check_names(request);
  if (request.scenario == Scenario::kPaced && request.period_ms == 0) usage_error("--scenario paced needs --period-ms");
  for (ModelRequest& model : request.models) {
    if (model.cases.empty()) model.cases = options.cases;
  }
  if (!request.outputs.empty()) check_folder("outputs", request.outputs);
  const std::string& profile = request.session.profile_prefix;
  const std::size_t name = profile.rfind('/') + 1;  // 0 where there is no folder
  if (!profile.empty()) check_folder("profile", name == 0 ? "." : profile.substr(0, name));
  return options;
}

// What the machine has left, and what threads only reserve: a model that asks for more cannot run here, and would take
// the machine down with it. None for other execution providers, which reserve far more than they use, and under sanitizers.
std::int64_t default_memory_mib(const Request& request) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return 0;
#endif
  constexpr std::int64_t kReservedMib = 512, kReservedByThreadMib = 128;
  const std::int64_t left = compressor::available_mib();
  if (left < 0 || request.session.provider != "cpu") return 0;
  const std::int64_t threads = std::int64_t{request.session.threads} * request.sessions + request.callers;
  return left + kReservedMib + threads * kReservedByThreadMib;
}

// A descriptor below 3 that is closed would become one of the pipe to the child, with what anybody prints in it. Opened
// so, writing to it still fails.
void fill_descriptors() {
  int file;
  while ((file = open("/dev/null", O_RDONLY)) >= 0 && file <= STDERR_FILENO) {
  }
  if (file >= 0) close(file);
}

bool put_line(const std::string& text) {
  return std::fprintf(stdout, "%s\n", text.c_str()) >= 0 && std::fflush(stdout) == 0;
}

// A reader that is gone, or a full disk: there is nobody to measure for.
void print_line(const std::string& text) {
  if (!put_line(text)) throw MeasureError(std::string("standard output cannot be written: ") + std::strerror(errno));
}

void print_event(const char* name, const char* key, const std::string& json) {
  print_line(Json().object().member("event", name).raw(key, json).end().text());
}

LoadCost load(const Options& options, const ModelRequest& model, const Tell& on_line) {
  LoadCost cost;
  bool told = false;
  compressor::in_child(
      options.limits,
      [&](const Tell& tell) { tell({Line::kLoad, measure_load(options.request, model, tell).text()}); },
      [&](const Line& line) {
        if (line.kind != Line::kLoad) return on_line(line);
        cost = LoadCost::of(line.text);
        told = true;
      });
  if (!told) throw MeasureError(model.name + ": the loading process said nothing");
  return cost;
}

// The runtime's version, told by a process of its own, since opening it here would spoil the others.
std::string version_of(const Options& options) {
  std::string version;
  compressor::in_child(
      options.limits,
      [&](const Tell& tell) { tell({Line::kResult, compressor::ort::Library(options.request.library).version()}); },
      [&](const Line& line) { version = line.text; });
  return version;
}

std::string cold_starts(const Options& options, const Tell& on_line) {
  const Request& request = options.request;
  Cold cold{version_of(options), std::vector<ColdStarts>(request.models.size()), compressor::read_machine(""), {}};
  std::vector<ColdStarts>& starts = cold.starts;
  for (int done = 0; done < request.processes && (!compressor::stop_asked || done == 0); ++done) {
    for (std::size_t i = 0; i < request.models.size(); ++i) {
      std::vector<std::string> files = compressor::files_of(request.models[i].path);
      files.push_back(request.library);
      for (const std::string& path : files) {
        starts[i].still_cached = std::max(starts[i].still_cached, compressor::drop_from_cache(path));
      }
      starts[i].disk_cold.push_back(load(options, request.models[i], on_line));
      starts[i].disk_warm.push_back(load(options, request.models[i], on_line));
    }
    on_line({Line::kProgress, Json().object().member("done", done + 1).member("of", request.processes).end().text()});
  }
  cold.after = compressor::read_machine("");
  for (const std::string& row : compressor::cold_table(request, cold)) on_line({Line::kTable, row});
  return compressor::cold_result(request, cold);
}

std::string timed(const Options& options, const Tell& on_line) {
  std::vector<LoadCost> loads;
  for (const ModelRequest& model : options.request.models) loads.push_back(load(options, model, on_line));
  std::string result;
  compressor::in_child(
      options.limits,
      [&](const Tell& tell) {
        tell({Line::kResult, measure(options.request, loads, compressor::stop_asked, tell)});
      },
      [&](const Line& line) { line.kind == Line::kResult ? void(result = line.text) : on_line(line); });
  return result;
}

void show(const Options& options, const Line& line) {
  if (line.kind == Line::kTable && !options.events && !options.json) print_line(line.text);
  if (!options.events) return;
  if (line.kind == Line::kModel) {
    print_line(Json().object().member("event", "model").member("model", line.text).end().text());
  }
  if (line.kind == Line::kProgress) print_event("progress", "progress", line.text);
  if (line.kind == Line::kPartial) print_event("partial", "result", line.text);
}

}  // namespace

int main(int count, char** arguments) {
  fill_descriptors();
  Options options = options_of(count, arguments);
  if (options.limits.memory_mib == 0) options.limits.memory_mib = default_memory_mib(options.request);
  compressor::catch_signals();
  const Tell on_line = [&](const Line& line) { show(options, line); };
  try {
    const std::string result =
        options.request.scenario == Scenario::kCold ? cold_starts(options, on_line) : timed(options, on_line);
    if (options.events) print_event("result", "result", result);
    if (options.json && !options.events) print_line(result);
    return 0;
  } catch (const std::exception& error) {
    if (options.events) {
      put_line(Json().object().member("event", "failed").member("message", error.what()).end().text());
    }
    std::fprintf(stderr, "compressor-runner: %s\n", error.what());
    return kFailed;
  }
}
