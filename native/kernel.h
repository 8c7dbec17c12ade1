// The operation, as the kernels see it.
//
// For each row i with logits z, label y or soft target q, prior u, class weights w and smoothing ε:
//     c_k  = w_k ((1 - ε) q_k + ε u_k)         w outside where weight_mode is "example"
//     loss = Σ_k c_k (lse(z) - z_k)            with z shifted by its maximum first, and 0·(-inf) = 0
//     ∂loss/∂z_k = (Σ_j c_j) p_k - c_k
// Rows lie one after the other with their classes side by side (inner == 1), or the classes of `inner` rows lie
// `class_stride` apart (images with classes on axis 1).

#pragma once

#include <cstdint>
#include <vector>

#include "evaluation.h"

namespace labelsmooth {

constexpr int64_t parallel_from = 1 << 18;  // elements; below, waking a thread takes longer than the work

enum class Type : int { float32, float64, bfloat16, float16 };

// What was found wrong; the caller says it in words.
enum Fault : int {
    label_out_of_range = 1,
    no_distribution = 2,
    no_finite_logit = 4,
    masked_target = 8,
    empty_prior = 16,
};

// `Real` arrays are float64 where the logits are, else float32. Null: not given.
struct Problem {
    Type type;
    int64_t outer, classes, inner;
    const void* logits;
    int64_t outer_stride, class_stride;  // in elements; rows of one group lie side by side
    void* gradient;                      // null: only the loss is wanted
    int64_t gradient_outer_stride, gradient_class_stride;

    const void* labels;  // [outer, inner], int64 or int32
    bool labels_are_32_bit;
    int64_t ignore_index;
    const void* targets;  // Real [outer, classes], for inner == 1 only
    double target_tolerance;

    const void* weight;       // Real [classes]
    bool weight_outside;      // weight_mode "example"
    const void* prior;        // Real: [classes], or [outer, classes] where prior_rows
    bool prior_rows;          // for inner == 1 only
    double prior_tolerance;
    const void* class_prior;  // Real [classes, classes], for labels and inner == 1 only
    const uint8_t* mask;      // [outer, inner]
    const uint8_t* class_mask;
    bool class_mask_rows;  // [outer, classes], for inner == 1 only

    double smoothing;
    bool mean;          // divide by the row weights of the kept rows
    double normalizer;  // or by this, where it is not nan
    const void* upstream;  // Real [outer, inner]: each row's gradient is multiplied by it
    double upstream_scalar;

    void* losses;  // Real [outer, inner]
    void* total;   // Real: their sum (or mean); null where the losses are wanted
    int threads;
};

// What one implementation gives: the whole operation, evaluation's sums (which give the first row that has no softmax,
// or -1), and exp for its test.
struct Kernels {
    const char* name;
    int (*cross_entropy)(const Problem&);
    int64_t (*row_sums)(const RowSums&);
    int64_t (*slopes)(Slopes&);
    void (*exp32)(const float* x, float* y, int64_t count);
    void (*exp64)(const double* x, double* y, int64_t count);
};

Kernels baseline_kernels();
#if defined(__x86_64__)
Kernels avx2_kernels();
Kernels avx512_kernels();
Kernels avx512_bf16_kernels();
#endif

// Those that this machine can run, the quickest first.
std::vector<Kernels> runnable();

}  // namespace labelsmooth
