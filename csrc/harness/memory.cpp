#include <cstdio>
#include <memory>

#include "compressor/harness.h"

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

}  // namespace compressor
