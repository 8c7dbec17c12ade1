// What the kernels need from outside, before any `target`.
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernel.h"
#include "threads.h"
