#include "kernel.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace labelsmooth {

#if defined(__x86_64__)
static bool has_f16c() {  // which older compilers' __builtin_cpu_supports does not know
    unsigned int a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

std::vector<Kernels> runnable() {
    std::vector<Kernels> all;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        if (__builtin_cpu_supports("avx512bf16")) all.push_back(avx512_bf16_kernels());
        all.push_back(avx512_kernels());
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) all.push_back(avx2_kernels());
#endif
    all.push_back(baseline_kernels());
    return all;
}

}  // namespace labelsmooth
