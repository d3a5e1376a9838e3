// Four floats in the compiler's own vector type: SSE2 on x86-64, something on every other processor.
#define COMPRESSOR_ISA baseline
#define COMPRESSOR_LANES 4
#include "kernel-inl.h"
