#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

#include "compressor/ort.h"
#include "slots.h"

namespace compressor::ort {
namespace {

constexpr unsigned kOldestMinorVersion = 19;
constexpr int kLogFatalOnly = 4;  // errors come back as statuses; the runtime must not print them as well
constexpr int kArenaAllocator = 1;
constexpr int kDefaultMemory = 0;

struct ApiBase {
  const void* const* (*table)(std::uint32_t version);
  const char* (*version)();
};

}  // namespace

Library::Library(const std::string& path) {
  // From 1.31 on the runtime tells its maker of its use unless told not to. Whoever wants that sets the variable to 0.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  void* opened = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) throw Error("cannot open the ONNX Runtime library: " + std::string(dlerror()));
  auto* base_of = reinterpret_cast<const ApiBase* (*)()>(dlsym(opened, "OrtGetApiBase"));
  if (base_of == nullptr) throw Error(path + " is not an ONNX Runtime library: it lacks OrtGetApiBase");
  const ApiBase* base = base_of();
  version_ = base->version();
  // The table's version is the minor version of the library. Asking for more prints a message, so ask for just that.
  unsigned major = 0, minor = 0;
  if (std::sscanf(version_.c_str(), "%u.%u", &major, &minor) != 2 || major != 1 || minor < kOldestMinorVersion) {
    throw Error("ONNX Runtime 1.19 or a later 1.x is needed, got " + version_);
  }
  table_ = base->table(minor);
  if (table_ == nullptr) throw Error("ONNX Runtime " + version_ + " gives no function table of its own version");
  call(kCreateEnv, kLogFatalOnly, "compressor", &environment_);
  call(kCreateCpuMemoryInfo, kArenaAllocator, kDefaultMemory, &memory_info_);
}

Library::~Library() {
  release(kReleaseMemoryInfo, memory_info_);
  release(kReleaseEnv, environment_);
}

std::vector<std::string> Library::providers() const {
  char** names = nullptr;
  int count = 0;
  call(kAvailableProviders, &names, &count);
  const std::vector<std::string> found(names, names + count);
  call(kReleaseAvailableProviders, names, count);
  return found;
}

void Library::discard(void* status) const noexcept { release(kReleaseStatus, status); }

void Library::check(void* status) const {
  if (status == nullptr) return;
  const std::string message = reinterpret_cast<const char* (*)(const void*)>(table_[kGetErrorMessage])(status);
  release(kReleaseStatus, status);
  throw Error(message);
}

}  // namespace compressor::ort
