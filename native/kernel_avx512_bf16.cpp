#if defined(__x86_64__)
#include "headers.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif

namespace labelsmooth {
namespace {
#define VECTOR_BYTES 64
#define WITH_AVX512
#define WITH_BF16
#include "kernel.inl"
#include "evaluation.inl"
}  // namespace

Kernels avx512_bf16_kernels() {
    return {"AVX-512 with bfloat16", cross_entropy, row_sums, slopes, exp_all<float>, exp_all<double>};
}

}  // namespace labelsmooth
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
