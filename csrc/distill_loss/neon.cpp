// Four floats and fused multiply-add on 64-bit Arm, where every processor has them.
#define COMPRESSOR_ISA neon
#define COMPRESSOR_LANES 4
#define COMPRESSOR_NEON 1
#include "kernel-inl.h"
