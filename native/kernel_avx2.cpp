#if defined(__x86_64__)
#include "headers.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

namespace labelsmooth {
namespace {
#define VECTOR_BYTES 32
#define WITH_AVX2
#include "kernel.inl"
#include "evaluation.inl"
}  // namespace

Kernels avx2_kernels() { return {"AVX2", cross_entropy, row_sums, slopes, exp_all<float>, exp_all<double>}; }

}  // namespace labelsmooth
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
