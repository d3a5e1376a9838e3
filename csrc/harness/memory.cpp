#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

#include "compressor/harness.h"
#include "files.h"

namespace compressor {

MemoryUse memory_use() {
  MemoryUse use{-1, -1};
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> status(std::fopen("/proc/self/status", "r"), &std::fclose);
  if (!status) return use;
  char line[256];
  long long kib = 0;
  while (std::fgets(line, sizeof line, status.get()) != nullptr) {
    if (std::sscanf(line, "VmHWM: %lld", &kib) == 1) use.peak_bytes = kib * 1024;
    if (std::sscanf(line, "VmRSS: %lld", &kib) == 1) use.resident_bytes = kib * 1024;
  }
  return use;
}

std::int64_t available_mib() {
  const std::string text = text_of("/proc/meminfo").value_or("");
  const std::size_t line = text.find("MemAvailable:");
  if (line == std::string::npos) return -1;
  const auto kib = number_in(text.substr(line + std::strlen("MemAvailable:")));
  if (!kib) return -1;
  double bytes = *kib * 1024.0;
  // Of control groups of version 2, seen from inside; "max" is no number. What is used of it is partly cache.
  if (const auto most = number_of("/sys/fs/cgroup/memory.max")) bytes = std::min(bytes, *most);
  return static_cast<std::int64_t>(bytes / (1 << 20));
}

}  // namespace compressor
