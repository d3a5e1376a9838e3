// A whole measurement of one or more models: what is asked for, and what is told while it runs.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "compressor/machine.h"
#include "compressor/ort.h"

namespace compressor {

// What cannot be measured, in one line for the user.
class MeasureError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Scenario {
  kStream,      // back to back, the models in turn
  kPaced,       // one inference a period, the models in turn
  kThroughput,  // several callers at once, the models in turn
  kSustained,   // back to back for minutes, one model after the other
  kCold,        // fresh processes: loading, and the first inference
};

struct ModelRequest {
  std::string name;
  std::string path;
  std::string cases;  // a folder with cases.tsv; "": inputs are made up
};

struct Request {
  std::string library;
  std::vector<ModelRequest> models;  // the first is the baseline
  std::size_t also_against = 0;      // a later model that those after it are compared with too; 0: none
  Scenario scenario = Scenario::kStream;
  ort::SessionSettings session;
  std::map<std::string, std::int64_t> shapes;  // sizes of dynamic dimensions of made-up inputs
  std::int64_t batch = 1;                      // size of a first dimension that `shapes` does not name

  std::int64_t min_samples = 500;  // inferences of each model, if the budget allows
  double budget_s = 40.0;          // of the rounds of all models together
  int sittings = 8;                // of a comparison: how often the sessions are opened, if that is quick enough
  double warm_up_s = 0.3;          // of each model, at least
  double warm_up_cap_s = 3.0;      // at most
  std::uint64_t seed = 0;
  double least_effect = 0.02;      // smaller differences are no verdict

  double period_ms = 0.0;   // kPaced
  int sessions = 1;         // kThroughput: sessions that are open at once,
  int callers = 1;          // and threads that call each
  double duration_s = 60.0; // kSustained, each model
  int processes = 5;        // kCold, each model and state of the disk cache

  // Of models that are timed in turn.
  std::size_t comparisons() const {
    const std::size_t first = models.empty() ? 0 : models.size() - 1;
    return also_against == 0 ? first : first + models.size() - 1 - also_against;
  }

  std::string outputs;      // a folder for each model's outputs, or ""
};

// Lines for whoever waits: `kind` is one of the letters below.
struct Line {
  static constexpr char kModel = 'M';     // the name of the model that is opened or run for the first time, or ""
  static constexpr char kProgress = 'P';  // JSON: {"done": rounds, "of": rounds}
  static constexpr char kPartial = 'T';   // JSON: the result so far
  static constexpr char kResult = 'R';    // JSON: docs/bench-result.md
  static constexpr char kTable = 'S';     // a line of the result as a table for people, before the result itself
  static constexpr char kLoad = 'L';      // a LoadCost's numbers
  static constexpr char kFailed = 'F';    // why, in one line
  char kind;
  std::string text;
};
using Tell = std::function<void(const Line&)>;

// What a fresh process took to load a model and to run it once; memory is the resident set after each step.
struct LoadCost {
  double library_ms = 0.0, session_ms = 0.0, first_inference_ms = 0.0;
  double start_mib = 0.0, library_mib = 0.0, session_mib = 0.0, first_inference_mib = 0.0, peak_mib = 0.0;

  std::string text() const;
  // Throws MeasureError on another text.
  static LoadCost of(const std::string& text);
};

// Loads a model and runs it once in this process, which must have no runtime open yet. Throws MeasureError, ort::Error.
LoadCost measure_load(const Request& request, const ModelRequest& model, const Tell& tell);

// Where an ONNX file says that its tensors lie outside of it, each place once, as written: relative to its folder.
// Nothing of a file that cannot be read or is no protobuf. Does not follow what it finds.
std::vector<std::string> external_data(const std::string& model);
// The ONNX file and those.
std::vector<std::string> files_of(const std::string& model);
// Of one file; 0 where it is not there.
std::int64_t bytes_of_file(const std::string& path);
// Of the ONNX file and its external data together.
std::int64_t bytes_of(const std::string& model);

// Asks the system to forget what it keeps of the file, and returns the share of it that is still in memory, in 0..1; a
// file that cannot be read counts as 1.
double drop_from_cache(const std::string& path);

// Measures, tells on the way, a table for people in the end, and returns the result as JSON. `loads` has one cost for
// each model. Ends early when `stop` is set, with what there is. Throws MeasureError, ort::Error.
std::string measure(const Request& request, const std::vector<LoadCost>& loads, const std::atomic<bool>& stop,
                    const Tell& tell);

// What cold starts cost a model, from one process each.
struct ColdStarts {
  std::vector<LoadCost> disk_cold, disk_warm;
  double still_cached = 0.0;  // the largest share of library and model that stayed in memory
};

// All cold starts of a run, and what the machine did meanwhile.
struct Cold {
  std::string version;              // of the runtime
  std::vector<ColdStarts> starts;   // of each model
  Reading before, after;
};

// The result of Scenario::kCold as JSON, one element for each model.
std::string cold_result(const Request& request, const Cold& cold);
// The same as lines of a table.
std::vector<std::string> cold_table(const Request& request, const Cold& cold);

}  // namespace compressor
