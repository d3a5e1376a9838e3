#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <memory>

#include "compressor/harness.h"
#include "compressor/measure.h"
#include "inputs.h"

namespace compressor {
namespace {

double resident_mib() { return static_cast<double>(memory_use().resident_bytes) / (1 << 20); }

double ms_since(std::int64_t begin_ns) { return static_cast<double>(monotonic_ns() - begin_ns) / 1e6; }

double share_in_memory(int file, std::size_t bytes) {
  void* mapped = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) return 1.0;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages((bytes + page - 1) / page);
  double present = static_cast<double>(pages.size());
  if (mincore(mapped, bytes, pages.data()) == 0) {
    present = 0.0;
    for (const unsigned char state : pages) present += state & 1;
  }
  munmap(mapped, bytes);
  return present / static_cast<double>(pages.size());
}

LoadCost load_once(const Request& request, const ModelRequest& model, const Tell& tell) {
  tell({Line::kModel, model.name});
  LoadCost cost;
  cost.start_mib = resident_mib();
  std::int64_t begin = monotonic_ns();
  const auto library = std::make_shared<ort::Library>(request.library);
  cost.library_ms = ms_since(begin);
  cost.library_mib = resident_mib();
  ort::SessionSettings settings = request.session;
  settings.profile_prefix.clear();
  begin = monotonic_ns();
  const ort::Session session(library, model.path, settings);
  cost.session_ms = ms_since(begin);
  cost.session_mib = resident_mib();
  std::vector<Case> cases = cases_of(request, model, session);
  Feed feed(session, prepare(session, cases.front()));
  begin = monotonic_ns();
  feed.run();
  cost.first_inference_ms = ms_since(begin);
  cost.first_inference_mib = resident_mib();
  for (const Case& one : cases) Feed(session, prepare(session, one)).prepare();
  cost.peak_mib = static_cast<double>(memory_use().peak_bytes) / (1 << 20);
  return cost;
}

}  // namespace

std::string LoadCost::text() const {
  char line[256];
  std::snprintf(line, sizeof line, "%.9g %.9g %.9g %.9g %.9g %.9g %.9g %.9g", library_ms, session_ms,
                first_inference_ms, start_mib, library_mib, session_mib, first_inference_mib, peak_mib);
  return line;
}

LoadCost LoadCost::of(const std::string& text) {
  LoadCost cost;
  if (std::sscanf(text.c_str(), "%lg %lg %lg %lg %lg %lg %lg %lg", &cost.library_ms, &cost.session_ms,
                  &cost.first_inference_ms, &cost.start_mib, &cost.library_mib, &cost.session_mib,
                  &cost.first_inference_mib, &cost.peak_mib) != 8) {
    throw MeasureError("a loading process must tell eight numbers, got: " + text);
  }
  return cost;
}

LoadCost measure_load(const Request& request, const ModelRequest& model, const Tell& tell) {
  return naming(model.name, [&] { return load_once(request, model, tell); });
}

double drop_from_cache(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return 1.0;
  struct stat state {};
  double share = 1.0;
  if (fstat(file, &state) == 0 && state.st_size > 0) {
    fdatasync(file);  // what is not written yet cannot be dropped
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    share = share_in_memory(file, static_cast<std::size_t>(state.st_size));
  }
  close(file);
  return share;
}

}  // namespace compressor
