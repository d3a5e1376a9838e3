// Positions in ONNX Runtime's C function table. The table only ever grows at its end, so these hold for every
// version from 1.19 on; tests run each of them against the installed version.
#pragma once

namespace compressor::ort {

enum Slot : int {
  kGetErrorMessage = 2,
  kCreateEnv = 3,
  kCreateSession = 7,
  kRun = 9,
  kCreateSessionOptions = 10,
  kEnableProfiling = 14,
  kSetGraphOptimizationLevel = 23,
  kSetIntraOpThreads = 24,
  kSetInterOpThreads = 25,
  kSessionInputCount = 30,
  kSessionOutputCount = 31,
  kSessionInputType = 33,
  kSessionOutputType = 34,
  kSessionInputName = 36,
  kSessionOutputName = 37,
  kCreateTensorWithData = 49,
  kTensorData = 51,
  kCastToTensorInfo = 55,
  kTensorElementType = 60,
  kDimensionCount = 61,
  kDimensions = 62,
  kSymbolicDimensions = 63,
  kTensorInfoOfValue = 65,
  kCreateCpuMemoryInfo = 69,
  kAllocatorFree = 76,
  kDefaultAllocator = 78,
  kReleaseEnv = 92,
  kReleaseStatus = 93,
  kReleaseMemoryInfo = 94,
  kReleaseSession = 95,
  kReleaseValue = 96,
  kReleaseTypeInfo = 98,
  kReleaseTensorInfo = 99,
  kReleaseSessionOptions = 100,
  kEndProfiling = 110,
  kAvailableProviders = 125,
  kReleaseAvailableProviders = 126,
  kAddSessionConfigEntry = 130,
  kAppendExecutionProvider = 216,
};

}  // namespace compressor::ort
