// Sixteen floats; compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl.
#define COMPRESSOR_ISA avx512
#define COMPRESSOR_LANES 16
#include "kernel-inl.h"
