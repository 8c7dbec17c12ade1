// What evaluation wants to know of rows of logits, as the kernels see it: sums over classes, of which Python makes
// its figures. One thread works on one block of rows; Python has a thread per core.

#pragma once

#include <cstdint>

namespace labelsmooth {

// float32 or float64, [rows, classes]: a row's classes lie side by side, rows `row_stride` elements apart.
struct Block {
    bool wide;  // float64; in which everything is then computed
    int64_t rows, classes, row_stride;
    const void* logits;
    const int64_t* labels;  // [rows], in 0..classes-1
};

// With z a row's logits less their largest, y its label, e = exp(z / T) and p = e / Σ e, at each temperature T.
struct RowSums {
    Block block;
    int64_t temperatures;
    const double* inverse;  // [temperatures], 1 / T
    int64_t bins;
    const void* edges;  // [bins + 1], of the logits' type

    int64_t* ids;     // [2, rows]: the first class of the largest logit; how many classes come before the label
    double* numbers;  // [4 + 4 temperatures, rows]: z_y; the largest other z; Σ z; Σ z²; at each T, without the label in
                      // the sums: Σ e; Σ e²; then e_y; p_y
    double* cells;    // [temperatures, 3, classes * bins], added to: how many p, Σ p and Σ p (1 - p) of each class lie in
                      // each bin (lo, hi]; those in the lowest are not counted
};

// Added to: of the NLL summed over rows, the first and the second derivative in β = 1/T.
struct Slopes {
    Block block;
    double beta;
    double sums[2];
};

}  // namespace labelsmooth
