// Eight floats, fused multiply-add, conversion of float16; compiled with -mavx2 -mfma -mf16c.
#define COMPRESSOR_ISA avx2
#define COMPRESSOR_LANES 8
#include "kernel-inl.h"
