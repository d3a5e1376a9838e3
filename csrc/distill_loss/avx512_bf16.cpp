// As avx512, and rounding to bfloat16 in one instruction; compiled with -mavx512bf16 besides.
#define COMPRESSOR_ISA avx512_bf16
#define COMPRESSOR_LANES 16
#include "kernel-inl.h"
