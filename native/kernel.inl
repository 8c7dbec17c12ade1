// The kernels, for vectors of VECTOR_BYTES. Each kernel_*.cpp includes this with other instructions to be had.
//
// Nothing here is a function of the standard library that a compiler may emit: of an inline function that several
// files emit the linker keeps one, and it could be the one for the largest machine.

#include "vector.h"
#include "storage.h"

template <class T>
constexpr int lanes = VECTOR_BYTES / sizeof(T);
template <class T>
using Lanes = Values<T, lanes<T>>;

constexpr int64_t block_columns = 512;
constexpr int64_t most_scratch = 1 << 20;  // elements kept by a thread

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline float log_of(float x) { return __builtin_logf(x); }
inline double log_of(double x) { return __builtin_log(x); }

// Memory that is not initialised, and grows on demand.
template <class T>
class Array {
public:
    Array() = default;
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    ~Array() { delete[] data_; }

    void reserve(int64_t size) {
        if (size <= size_) return;
        delete[] data_;
        data_ = nullptr;
        data_ = new T[static_cast<size_t>(size)];
        size_ = size;
    }
    void clear() {
        delete[] data_;
        data_ = nullptr;
        size_ = 0;
    }
    T* data() const { return data_; }
    int64_t size() const { return size_; }
    T& operator[](int64_t i) const { return data_[i]; }

private:
    T* data_ = nullptr;
    int64_t size_ = 0;
};

template <bool VALUE>
struct Flag {
    static constexpr bool value = VALUE;
};

// Sums are taken in T over so many vectors, then in double.
constexpr int64_t vectors_in_block = 64;

// `parallel` with a lambda.
template <class Task>
void share_out(int threads, int64_t count, const Task& task) {
    parallel(threads, count, [](const void* t, int64_t i) { (*static_cast<const Task*>(t))(i); }, &task);
}

// One row. What the targets hold of class k is c_k = coefficients[k] (or `uniform`, where null) plus `at_label` for
// the class `label` (-1: none); `sum` is Σ c_k without the label's part. Gradients are multiplied by `scale`.
template <class S, class T>
struct Row {
    const S* logits;
    const S* next;  // logits that come after them: fetched from memory meanwhile
    int64_t classes;
    const T* coefficients;
    T uniform;
    double sum;
    int64_t label;
    T at_label;
    T of_label;  // at_label + uniform, rounded once, as a soft target's is
    T scale;
    S* gradient;  // null: not wanted
    T* scratch;   // [classes], where S is narrower than T
};

// No nan is the largest.
template <class S>
inline typename Computed<S>::type largest_logit(const S* z, int64_t K) {
    using T = typename Computed<S>::type;
    using V = Lanes<T>;
    constexpr int W = lanes<T>;
    const int64_t whole = K / W * W, rest = K - whole;
    const T lowest = -static_cast<T>(__builtin_inf());
    V most[4] = {splat<T, W>(lowest), splat<T, W>(lowest), splat<T, W>(lowest), splat<T, W>(lowest)};
    int64_t k = 0;
    for (; k + 4 * W <= whole; k += 4 * W) {
        V x[4];
        load_two<S, W, false>(z + k, x);
        load_two<S, W, false>(z + k + 2 * W, x + 2);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) most[i] = maximum<T, W>(x[i], most[i]);
    }
    for (; k < whole; k += W) most[0] = maximum<T, W>(load<S, W>(z + k), most[0]);
    if (rest) most[0] = maximum<T, W>(load<S, W>(z + k, rest, lowest), most[0]);
    most[0] = maximum<T, W>(most[1], most[0]);
    most[2] = maximum<T, W>(most[3], most[2]);
    most[0] = maximum<T, W>(most[2], most[0]);
    return largest_of<T, W>(most[0]);
}

template <class S, class T, bool SHARED>
inline T row_loss(const Row<S, T>& row, int& faults) {
    constexpr int W = lanes<T>;
    using V = Lanes<T>;
    const int64_t K = row.classes, whole = K / W * W, rest = K - whole;
    const S* const z = row.logits;
    const T lowest = -static_cast<T>(__builtin_inf()), top = largest_logit(z, K);
    if (top == lowest) faults |= no_finite_logit;
    const T logit_of_label = row.label >= 0 ? get(z + row.label) : 0;  // now: gradients may overwrite logits

    // e_k = exp(z_k - top), kept for the gradient; Σ e_k and Σ c_k (z_k - top).
    T* const kept = sizeof(S) == sizeof(T) ? reinterpret_cast<T*>(row.gradient) : row.scratch;
    double sum = 0, towards = 0;
    const bool weigh = SHARED || row.uniform != 0;
    const auto towards_of = [&](V x, int64_t at, int64_t count) -> V {
        if constexpr (!SHARED) return x;
        const V c = count == W ? load<T, W>(row.coefficients + at) : load<T, W>(row.coefficients + at, count, 0);
        return c == 0 ? V{} : c * x;  // 0·(-inf) is 0
    };
    int64_t k = 0;
    while (k < whole) {
        V s[2] = {}, d[2] = {};
        const int64_t end = smaller(whole, k + vectors_in_block * W);
        for (; k + 2 * W <= end; k += 2 * W) {
            V x[2];
            load_two<S, W, SHARED>(z + k, x);
            x[0] -= top;
            x[1] -= top;
            __builtin_prefetch(row.next + k);
            if (2 * W * sizeof(S) > 64) __builtin_prefetch(row.next + k + W);  // a cache line
            d[0] += towards_of(x[0], k, W);
            d[1] += towards_of(x[1], k + W, W);
            exponentials<T, W, 2>(x);
            if (kept) {
                store<T, W>(kept + k, x[0]);
                store<T, W>(kept + k + W, x[1]);
            }
            s[0] += x[0];
            s[1] += x[1];
        }
        if (k < end) {
            V x = load<S, W>(z + k) - top;
            d[0] += towards_of(x, k, W);
            exponentials<T, W, 1>(&x);
            if (kept) store<T, W>(kept + k, x);
            s[0] += x;
            k += W;
        }
        sum += sum_of<T, W>(s[0] + s[1]);
        towards += sum_of<T, W>(d[0] + d[1]);
    }
    if (rest) {
        towards += sum_of<T, W>(towards_of(load<S, W>(z + k, rest, top) - top, k, rest));
        V x = load<S, W>(z + k, rest, lowest) - top;
        exponentials<T, W, 1>(&x);
        if (kept) store<T, W>(kept + k, rest, x);
        sum += sum_of<T, W>(x);
        if (top == lowest) sum += static_cast<double>(top - top);  // nan, as of any such row
    }

    const double log_sum = static_cast<double>(log_of(static_cast<T>(sum)));
    double loss = row.sum == 0 ? 0 : row.sum * log_sum;
    if (weigh) loss -= SHARED ? towards : row.uniform * towards;
    if (row.at_label != 0) loss += row.at_label * (log_sum - static_cast<double>(logit_of_label - top));
    if (!row.gradient) return static_cast<T>(loss);

    // Rounded, so that labels and the soft targets that they are smoothed to give the same: 1, most often.
    const T all = static_cast<T>(row.sum + static_cast<double>(row.at_label));
    const T scale = row.scale, factor = static_cast<T>(scale * (all / sum)), even = scale * row.uniform;
    const T* const c = row.coefficients;
    S* const gradient = row.gradient;
    const int64_t in_twos = K / (2 * W) * (2 * W);  // as they were kept
    T labelled = 0;
    if (row.label >= 0) {
        const T e = kept[row.label < in_twos ? place<S, W, SHARED>(row.label) : row.label];
        labelled = e * factor - scale * (SHARED ? c[row.label] + row.at_label : row.of_label);
    }
    const auto gradient_of = [&](int64_t at) -> V {
        const V e = load<T, W>(kept + at);
        if constexpr (SHARED) return e * factor - scale * load<T, W>(c + at);
        else return e * factor - even;
    };
    const auto store_twos = [&](auto no_nan) {
        for (k = 0; k < in_twos; k += 2 * W) {
            const V two[2] = {gradient_of(k), gradient_of(k + W)};
            store_two<S, W, SHARED, decltype(no_nan)::value>(gradient + k, two);
        }
    };
    if (!SHARED && __builtin_isfinite(factor)) store_twos(Flag<true>{});
    else store_twos(Flag<false>{});
    if (k < whole) {
        store<S, W>(gradient + k, gradient_of(k));
        k += W;
    }
    if (rest) {
        const V e = load<T, W>(kept + k, rest, 0);
        if constexpr (SHARED) store<S, W>(gradient + k, rest, e * factor - scale * load<T, W>(c + k, rest, 0));
        else store<S, W>(gradient + k, rest, e * factor - even);
    }
    if (row.label >= 0) put(gradient + row.label, labelled);
    return static_cast<T>(loss);
}

// Calls step(k, count) for vectors from class k on, all of W classes but the last.
template <int W, class Step>
void by_vectors(int64_t classes, const Step& step) {
    int64_t k = 0;
    for (; k + W <= classes; k += W) step(k, W);
    if (k < classes) step(k, static_cast<int>(classes - k));
}

// The first `count` of W numbers, with 0 for the others.
template <int W, class S>
Values<typename Computed<S>::type, W> take(const S* from, int64_t count) {
    return count == W ? load<S, W>(from) : load<S, W>(from, count, 0);
}
template <int W, class S>
void give(S* to, int64_t count, Values<typename Computed<S>::type, W> x) {
    if (count == W) store<S, W>(to, x);
    else store<S, W>(to, count, x);
}

// All bits set where the byte is not 0.
template <class T, int W>
typename Vector<T, W>::ints where(const uint8_t* flags, int count) {
    typename Vector<T, W>::bytes x = {};
    if (count == W) memcpy(&x, flags, sizeof x);
    else memcpy(&x, flags, static_cast<size_t>(count));
    return __builtin_convertvector(x, typename Vector<T, W>::ints) != 0;
}
#ifdef WITH_AVX512
template <>
Vector<float, 16>::ints where<float, 16>(const uint8_t* flags, int count) {
    const __m128i x = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << count) - 1), flags);
    return bit_cast<Vector<float, 16>::ints>(_mm512_movm_epi32(_mm_test_epi8_mask(x, x)));
}
#endif

// A sum in T over so many vectors, then in double.
template <class T>
class Sum {
public:
    void operator+=(Lanes<T> x) {
        part_ += x;
        if (++vectors_ % vectors_in_block == 0) whole_ += sum_of<T, lanes<T>>(part_), part_ = Lanes<T>{};
    }
    double value() const { return whole_ + sum_of<T, lanes<T>>(part_); }

private:
    Lanes<T> part_ = {};
    double whole_ = 0;
    int vectors_ = 0;
};

template <class T>
bool is_distribution(const T* x, int64_t classes, double tolerance) {
    constexpr int W = lanes<T>;
    Sum<T> sum;
    Lanes<T> wrong = {};
    by_vectors<W>(classes, [&](int64_t k, int count) {
        const Lanes<T> some = take<W>(x + k, count);
        sum += some;
        wrong = some >= 0 ? wrong : splat<T, W>(1);  // nan too
    });
    return largest_of<T, W>(wrong) == 0 && __builtin_fabs(sum.value() - 1) <= tolerance;
}

// Σ x_k y_k.
template <class T>
double product(const T* x, const T* y, int64_t classes) {
    constexpr int W = lanes<T>;
    Sum<T> sum;
    by_vectors<W>(classes, [&](int64_t k, int count) { sum += take<W>(x + k, count) * take<W>(y + k, count); });
    return sum.value();
}

// The whole operation for logits stored as S.
template <class S>
class Operation {
    using T = typename Computed<S>::type;
    static constexpr int W = lanes<T>;
    using V = Lanes<T>;

public:
    explicit Operation(const Problem& problem) : p(problem), count(p.outer * p.inner) {}

    int run() {
        if (p.labels && !check_labels()) return label_out_of_range;
        if (p.targets) keep_targets();
        share();
        const double divisor = p.mean ? (__builtin_isnan(p.normalizer) ? row_weights() : p.normalizer) : 1;
        scale_ = divisor == 0 ? 0 : 1 / divisor;

        Array<T> rows;
        losses_ = static_cast<T*>(p.losses);
        if (p.total) {
            rows.reserve(count);
            losses_ = rows.data();
        }
        if (p.inner == 1 && p.class_stride == 1) by_rows();
        else by_columns();
        if (p.total) {
            double sum = 0;
            for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(losses_[i]);
            *static_cast<T*>(p.total) = static_cast<T>(divisor == 0 ? 0 : sum / divisor);
        }
        return faults_;
    }

private:
    int threads() const { return count * p.classes < parallel_from ? 1 : p.threads; }
    int64_t label(int64_t i) const {
        return p.labels_are_32_bit ? static_cast<const int32_t*>(p.labels)[i]
                                   : static_cast<const int64_t*>(p.labels)[i];
    }
    bool is_kept(int64_t i) const {
        return !(p.mask && !p.mask[i]) && !(p.labels && label(i) == p.ignore_index);
    }
    const T* real(const void* array, int64_t offset = 0) const {
        return array ? static_cast<const T*>(array) + offset : nullptr;
    }
    const T* targets(int64_t i) const { return real(p.targets, i * p.classes); }

    bool check_labels() const {
        for (int64_t i = 0; i < count; ++i)
            if (is_kept(i) && !(label(i) >= 0 && label(i) < p.classes)) return false;
        return true;
    }

    // ŵ of a kept row: Σ_k w_k q_k of the targets as they were given.
    double row_weight(int64_t i) const {
        const T* const w = real(p.weight);
        if (!w) return 1;
        if (p.labels) return static_cast<double>(w[label(i)]);
        return product(targets(i), w, p.classes);
    }
    double row_weights() const {
        if (p.targets && p.weight) {
            double sum = 0;
            for (int64_t i = 0; i < count; ++i) sum += is_kept(i) ? row_weight_[i] : 0;
            return sum;
        }
        double sum = 0;
        for (int64_t i = 0; i < count; ++i)
            if (is_kept(i)) sum += row_weight(i);
        return sum;
    }
    void keep_targets() {
        if (!p.weight) return;
        row_weight_.reserve(count);
        share_out(threads(), count, [&](int64_t i) {
            if (is_kept(i)) row_weight_[i] = row_weight(i);
        });
    }

    // What the targets hold beside the label, where it is the same for every row: ε w_k u_k.
    void share() {
        uniform_ = static_cast<T>(p.smoothing / static_cast<double>(p.classes));
        sum_ = p.smoothing;
        const T* const w = p.weight_outside ? nullptr : real(p.weight);
        const bool same = !p.targets && !p.prior_rows && !p.class_prior && !p.class_mask_rows;
        if (!same || !(p.prior || w || p.class_mask)) return;
        shared_.reserve(p.classes);
        fill(shared_.data(), nullptr, real(p.prior), p.class_mask, -1, sum_);
    }

    // c_k of a row without its label's part, and their sum.
    void fill(T* c, const T* q, const T* u, const uint8_t* valid, int64_t y, double& sum) {
        const T* const w = p.weight_outside ? nullptr : real(p.weight);
        const int64_t K = p.classes;
        double mass = 1;
        if (valid) {
            Sum<T> of_valid;
            by_vectors<W>(K, [&](int64_t k, int part) {
                const V one = u ? take<W>(u + k, part) : splat<T, W>(1);
                of_valid += where<T, W>(valid + k, part) ? one : V{};
            });
            mass = u ? of_valid.value() : of_valid.value() / static_cast<double>(K);
            if (mass == 0) fault(empty_prior);
            if (y >= 0 && !valid[y]) fault(masked_target);
        }
        const double smoothing = mass == 0 ? 0 : p.smoothing / mass;
        const T of_prior = static_cast<T>(smoothing), even = static_cast<T>(smoothing / static_cast<double>(K));
        const T of_target = static_cast<T>(1 - p.smoothing);
        Sum<T> all;
        V outside = {};
        by_vectors<W>(K, [&](int64_t k, int part) {
            V x = u ? of_prior * take<W>(u + k, part) : splat<T, W>(even);
            const V target = q ? take<W>(q + k, part) : V{};
            if (valid) {
                const auto in = where<T, W>(valid + k, part);
                x = in ? x : V{};
                outside = (~in & (target > 0)) ? splat<T, W>(1) : outside;
            }
            if (q) x += of_target * target;
            if (w) x = x != 0 ? x * take<W>(w + k, part) : x;  // a class that does not occur may weigh nan
            give<W>(c + k, part, x);
            all += part == W ? x : take<W>(c + k, part);
        });
        sum = all.value();
        if (largest_of<T, W>(outside) > 0) fault(masked_target);
    }

    void fault(int what) { __atomic_fetch_or(&faults_, what, __ATOMIC_RELAXED); }

    T upstream(int64_t i) const {
        const T* const each = real(p.upstream);
        return static_cast<T>(p.upstream_scalar) * (each ? each[i] : T(1));
    }

    // Rows with their classes side by side.
    void by_rows() {
        const int64_t K = p.classes;
        const int64_t at_once = larger(1, smaller(4096, (int64_t{1} << 14) / K));
        const int64_t tasks = (count + at_once - 1) / at_once;
        share_out(threads(), tasks, [&](int64_t task) {
            static thread_local Array<T> scratch;  // kept from one task to the next
            scratch.reserve(K * (sizeof(S) < sizeof(T) ? 3 : 2));
            int faults = 0;
            for (int64_t i = task * at_once; i < smaller(count, (task + 1) * at_once); ++i)
                losses_[i] = one_row(i, scratch.data(), faults);
            if (faults) fault(faults);
            if (scratch.size() > most_scratch) scratch.clear();
        });
    }

    T one_row(int64_t i, T* scratch, int& faults) {
        const int64_t K = p.classes;
        S* const gradient = p.gradient ? static_cast<S*>(p.gradient) + i * p.gradient_outer_stride : nullptr;
        const double outside = p.weight_outside && p.weight ? given_weight(i) : 1;
        const bool counts = is_kept(i) && outside != 0;
        if (!counts && gradient) memset(gradient, 0, static_cast<size_t>(K) * sizeof(S));
        if (!is_kept(i)) return 0;
        const int64_t y = p.labels ? label(i) : -1;
        const uint8_t* const valid =
            p.class_mask ? p.class_mask + (p.class_mask_rows ? i * K : 0) : nullptr;
        T* const own = scratch;      // c_k, where each row has its own
        T* const values = scratch + K;
        Row<S, T> row;
        row.classes = K;
        row.coefficients = !shared_.size() ? nullptr : shared_.data();
        row.uniform = uniform_;
        row.sum = sum_;
        row.label = y;
        row.at_label = row.of_label = 0;
        if (y >= 0) {
            const T* const w = p.weight_outside ? nullptr : real(p.weight);
            const double at = (1 - p.smoothing) * (w ? static_cast<double>(w[y]) : 1.0);
            row.at_label = static_cast<T>(at);
            row.of_label = static_cast<T>(at + p.smoothing / static_cast<double>(K));
            if (valid && !valid[y]) faults |= masked_target;
        }
        row.scale = static_cast<T>(scale_ * outside) * upstream(i);
        row.gradient = counts ? gradient : nullptr;
        row.scratch = values + (sizeof(S) < sizeof(T) ? K : 0);
        if (p.targets || p.prior_rows || p.class_prior || p.class_mask_rows) {
            const T* u = real(p.prior, p.prior_rows ? i * K : 0);
            if (p.class_prior) u = real(p.class_prior, y * K);
            if (p.targets && !is_distribution(targets(i), K, p.target_tolerance)) faults |= no_distribution;
            if (p.prior_rows && !is_distribution(u, K, p.prior_tolerance)) faults |= no_distribution;
            fill(own, targets(i), u, valid, y, row.sum);
            row.coefficients = own;
        }
        double loss;
        if (valid) {
            const S* const z = static_cast<const S*>(p.logits) + i * p.outer_stride;
            by_vectors<W>(K, [&](int64_t k, int part) {
                const V lowest = splat<T, W>(-static_cast<T>(__builtin_inf()));
                give<W>(values + k, part, where<T, W>(valid + k, part) ? take<W>(z + k, part) : lowest);
            });
            loss = masked_row(row, values, faults);
        } else {
            row.logits = static_cast<const S*>(p.logits) + i * p.outer_stride;
            row.next = row.logits + (i + 1 < count ? p.outer_stride : 0);
            loss = row.coefficients ? row_loss<S, T, true>(row, faults) : row_loss<S, T, false>(row, faults);
        }
        return counts ? static_cast<T>(loss * outside) : 0;  // a row that weighs 0 is looked at for what is wrong
    }

    // The row's logits, -inf where a class is taken out, are T already.
    T masked_row(const Row<S, T>& row, const T* values, int& faults) {
        Row<T, T> copy{values,    values,       row.classes,  row.coefficients, row.uniform, row.sum,
                       row.label, row.at_label, row.of_label, row.scale,        nullptr,     nullptr};
        if constexpr (sizeof(S) == sizeof(T)) {
            copy.gradient = row.gradient;
            return row_loss<T, T, true>(copy, faults);
        } else {
            if (row.gradient) copy.gradient = row.scratch;
            const T loss = row_loss<T, T, true>(copy, faults);
            if (row.gradient)
                by_vectors<W>(row.classes, [&](int64_t k, int part) {
                    give<W>(row.gradient + k, part, take<W>(row.scratch + k, part));
                });
            return loss;
        }
    }

    double given_weight(int64_t i) const {
        if (!is_kept(i)) return 0;
        return !row_weight_.size() ? row_weight(i) : row_weight_[i];
    }

    // Groups of rows whose classes lie apart: vectors go along the rows. Labels, and what all rows share.
    void by_columns() {
        const int64_t K = p.classes;
        const int64_t at_once = larger(W, smaller(block_columns, (int64_t{1} << 16) / K / W * W));
        const int64_t blocks = (p.inner + at_once - 1) / at_once;
        share_out(threads(), p.outer * blocks, [&](int64_t task) {
            static thread_local Array<T> scratch;
            if (sizeof(S) < sizeof(T)) scratch.reserve(K * at_once);
            const int64_t first = task % blocks * at_once;
            columns(task / blocks, first, smaller(at_once, p.inner - first), scratch.data());
        });
    }

    void columns(int64_t group, int64_t first, int64_t width, T* scratch) {
        const int64_t K = p.classes;
        const int64_t step = (width + W - 1) / W;  // vectors
        const S* const z = static_cast<const S*>(p.logits) + group * p.outer_stride + first;
        S* const gradient = p.gradient ? static_cast<S*>(p.gradient) + group * p.gradient_outer_stride + first : nullptr;
        const auto part = [&](int64_t v) { return smaller(W, width - v * W); };
        const auto kept = [&](int64_t k) -> T* {
            if constexpr (sizeof(S) == sizeof(T)) return reinterpret_cast<T*>(gradient) + k * p.gradient_class_stride;
            else return scratch + k * width;
        };
        const auto coefficient = [&](int64_t k) { return !shared_.size() ? uniform_ : shared_[k]; };
        const auto valid = [&](int64_t k) { return !p.class_mask || p.class_mask[k]; };

        T top[block_columns], s[block_columns], d[block_columns];
        double totals[block_columns] = {}, towards[block_columns] = {};
        const T lowest = -static_cast<T>(__builtin_inf());
        for (int64_t j = 0; j < step * W; ++j) top[j] = lowest, s[j] = 0, d[j] = 0;
        for (int64_t k = 0; k < K; ++k) {
            if (!valid(k)) continue;
            for (int64_t v = 0; v < step; ++v) {
                const V x = take<W>(z + k * p.class_stride + v * W, part(v)), m = load<T, W>(top + v * W);
                store<T, W>(top + v * W, maximum<T, W>(x, m));
            }
        }
        T at_labels[block_columns];  // the logits of the labels: now, since gradients may overwrite logits
        for (int64_t j = 0; j < width; ++j) {
            const int64_t i = group * p.inner + first + j;
            at_labels[j] = is_kept(i) ? get(z + label(i) * p.class_stride + j) : 0;
        }
        for (int64_t k = 0; k < K; ++k) {
            const T c = coefficient(k);
            if (valid(k)) {
                for (int64_t v = 0; v < step; ++v) {
                    const V x = take<W>(z + k * p.class_stride + v * W, part(v)) - load<T, W>(top + v * W);
                    V e = x;
                    exponentials<T, W, 1>(&e);
                    if (gradient) give<W>(kept(k) + v * W, part(v), e);
                    store<T, W>(s + v * W, load<T, W>(s + v * W) + e);
                    if (c != 0) store<T, W>(d + v * W, load<T, W>(d + v * W) + c * x);
                }
            } else if (gradient) {
                for (int64_t v = 0; v < step; ++v) give<W>(kept(k) + v * W, part(v), V{});
            }
            if (k % vectors_in_block == vectors_in_block - 1 || k == K - 1)
                for (int64_t j = 0; j < width; ++j) {
                    totals[j] += static_cast<double>(s[j]), s[j] = 0;
                    towards[j] += static_cast<double>(d[j]), d[j] = 0;
                }
        }

        // From here s holds what e is multiplied by, d what c is, at_labels the label's own part of c, and top the
        // gradient at the label.
        const T* const w = real(p.weight);
        for (int64_t j = 0; j < step * W; ++j) {
            const int64_t i = group * p.inner + first + j;
            const bool is_in = j < width && is_kept(i);
            const double outside = is_in && p.weight_outside && w ? row_weight(i) : 1;
            const int64_t y = is_in ? label(i) : 0;
            if (is_in && top[j] == lowest) fault(no_finite_logit);
            if (is_in && !valid(y)) fault(masked_target);
            if (!is_in || outside == 0) {
                if (j < width) losses_[i] = 0;
                s[j] = d[j] = at_labels[j] = 0;
                continue;
            }
            const double at = (1 - p.smoothing) * (w && !p.weight_outside ? static_cast<double>(w[y]) : 1.0);
            const double log_sum = static_cast<double>(log_of(static_cast<T>(totals[j])));
            double loss = sum_ == 0 ? 0 : sum_ * log_sum - towards[j];
            if (at != 0) loss += at * (log_sum - static_cast<double>(at_labels[j] - top[j]));
            losses_[i] = static_cast<T>(loss * outside);
            const T scale = static_cast<T>(scale_ * outside) * upstream(i);
            s[j] = static_cast<T>(scale * ((sum_ + at) / totals[j]));
            d[j] = scale;
            at_labels[j] = static_cast<T>(at);
        }
        if (!gradient) return;
        for (int64_t j = 0; j < width; ++j) {
            const int64_t i = group * p.inner + first + j;
            if (d[j] == 0) continue;
            const int64_t y = label(i);
            top[j] = kept(y)[j] * s[j] - d[j] * (coefficient(y) + at_labels[j]);
        }
        for (int64_t k = 0; k < K; ++k) {
            const T c = coefficient(k);
            for (int64_t v = 0; v < step; ++v) {
                const V scale = load<T, W>(d + v * W);
                const V g = take<W>(kept(k) + v * W, part(v)) * load<T, W>(s + v * W) - scale * c;
                // Of a row that does not count 0, whatever its logits hold.
                give<W>(gradient + k * p.gradient_class_stride + v * W, part(v), scale == 0 ? V{} : g);
            }
        }
        for (int64_t j = 0; j < width; ++j)
            if (d[j] != 0) put(gradient + label(group * p.inner + first + j) * p.gradient_class_stride + j, top[j]);
    }

    const Problem& p;
    const int64_t count;
    double scale_ = 1, sum_ = 0;
    T uniform_ = 0;
    T* losses_ = nullptr;
    Array<T> shared_;
    Array<double> row_weight_;
    int faults_ = 0;
};

inline int cross_entropy(const Problem& problem) {
    switch (problem.type) {
        case Type::float32: return Operation<float>(problem).run();
        case Type::float64: return Operation<double>(problem).run();
        case Type::bfloat16: return Operation<BFloat16>(problem).run();
        case Type::float16: return Operation<Float16>(problem).run();
    }
    return 0;
}

template <class T>
void exp_all(const T* x, T* y, int64_t count) {
    constexpr int W = lanes<T>;
    by_vectors<W>(count, [&](int64_t i, int some) {
        Lanes<T> z = take<W>(x + i, some);
        if (largest_of<T, W>(z) <= 0) exponentials<T, W, 1>(&z);  // as in a row
        else z = exponential<T, W>(z);
        give<W>(y + i, some, z);
    });
}
