// The sums of evaluation.h, for vectors of VECTOR_BYTES. Each kernel_*.cpp includes this after kernel.inl.

template <class T>
constexpr T lowest_of_all = -static_cast<T>(__builtin_inf());

// Calls each(vector, class, i) for all classes, the last vector filled up. i in 0..3 says which of four sums is meant, for
// an addition takes as long as several loads; `flush` is called before they become long, and in the end.
template <class T, class Each, class Flush>
inline void over_classes(const T* x, int64_t classes, T fill, const Each& each, const Flush& flush) {
    constexpr int W = lanes<T>;
    const int64_t whole = classes / W * W;
    for (int64_t k = 0; k < whole;) {
        const int64_t end = smaller(whole, k + 4 * vectors_in_block * W);
        for (; k + 4 * W <= end; k += 4 * W)
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) each(load<T, W>(x + k + i * W), k + i * W, i);
        for (; k < end; k += W) each(load<T, W>(x + k), k, 0);
        if (k < whole) flush();
    }
    if (whole < classes) each(load<T, W>(x + whole, classes - whole, fill), whole, 0);
    flush();
}

// Four sums of vectors, and what they have come to.
template <class T>
struct FourSums {
    Lanes<T> parts[4] = {};
    double value = 0;

    void flush() {
        value += sum_of<T, lanes<T>>((parts[0] + parts[1]) + (parts[2] + parts[3]));
        for (auto& part : parts) part = Lanes<T>{};
    }
};

// The first class whose logit is `value`; there is one.
template <class T>
inline int64_t first_of(const T* x, int64_t classes, T value) {
    constexpr int W = lanes<T>;
    using V = Lanes<T>;
    int64_t k = 0;
    for (; k + 8 * W <= classes; k += 8 * W) {
        V found{};
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) found = load<T, W>(x + k + i * W) == value ? splat<T, W>(1) : found;
        if (largest_of<T, W>(found) > 0) break;
    }
    while (x[k] != value) ++k;
    return k;
}

// How many classes come before class y: of equal logits the first comes first.
template <class T>
inline int64_t count_before(const T* x, int64_t classes, int64_t y) {
    using V = Lanes<T>;
    const V own = splat<T, lanes<T>>(x[y]), one = splat<T, lanes<T>>(1);
    FourSums<T> count;
    const auto flush = [&] { count.flush(); };
    over_classes(
        x, classes, lowest_of_all<T>, [&](V v, int64_t, int i) { count.parts[i] += v > own ? one : V{}; }, flush);
    const T nan = static_cast<T>(__builtin_nan(""));  // equal to nothing
    over_classes(x, y, nan, [&](V v, int64_t, int i) { count.parts[i] += v == own ? one : V{}; }, flush);
    return static_cast<int64_t>(count.value);
}

template <class T>
class RowSummer {
    static constexpr int W = lanes<T>;
    using V = Lanes<T>;

public:
    explicit RowSummer(const RowSums& sums)
        : s(sums),
          count(sums.block.classes),
          rows(sums.block.rows),
          temperatures(sums.temperatures),
          edges(static_cast<const T*>(sums.edges)) {}

    // The first row that has no softmax, or -1.
    int64_t run() {
        z_.reserve(count);
        e_.reserve(count);
        lowest_.reserve(2 * temperatures * count);
        for (int64_t k = 0; k < 2 * temperatures * count; ++k) lowest_[k] = 0;
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t y = s.block.labels[i];
            if (!shift(i, y)) return i;
            for (int64_t t = 0; t < temperatures; ++t) at_temperature(i, y, t);
        }
        for (int64_t t = 0; t < temperatures; ++t) {
            const T *const mass = lowest_.data() + 2 * t * count, *const square = mass + count;
            for (int64_t k = 0; k < count; ++k) {
                cell(t, 1)[k * s.bins] += static_cast<double>(mass[k]);
                cell(t, 2)[k * s.bins] += static_cast<double>(mass[k]) - static_cast<double>(square[k]);
            }
        }
        return -1;
    }

private:
    double& number(int64_t which, int64_t i) const { return s.numbers[which * rows + i]; }
    double* cell(int64_t t, int64_t which) const { return s.cells + (3 * t + which) * count * s.bins; }

    // z of row i, the label's set to -inf, and what no temperature changes; false where there is no softmax.
    bool shift(int64_t i, int64_t y) {
        const T* const x = static_cast<const T*>(s.block.logits) + i * s.block.row_stride;
        const T top = largest_logit(x, count);
        if (top - top != 0) return false;
        const int64_t predicted = first_of(x, count, top);
        s.ids[i] = predicted;
        s.ids[rows + i] = predicted == y ? 0 : count_before(x, count, y);

        FourSums<T> sum, square;
        T* const z = z_.data();
        over_classes(
            x, count, top,  // a z of 0, which no sum notices
            [&](V v, int64_t k, int j) {
                const V shifted = v - top;
                if (k + W <= count) store<T, W>(z + k, shifted);
                else store<T, W>(z + k, count - k, shifted);
                sum.parts[j] += shifted;
                square.parts[j] += shifted * shifted;
            },
            [&] { sum.flush(), square.flush(); });
        if (sum.value != sum.value) return false;  // a nan; -inf makes none
        own_ = z[y];
        z[y] = lowest_of_all<T>;
        number(0, i) = static_cast<double>(own_);
        number(1, i) = predicted == y ? static_cast<double>(largest_logit(z, count)) : 0;
        number(2, i) = sum.value;
        number(3, i) = square.value;
        return true;
    }

    void at_temperature(int64_t i, int64_t y, int64_t t) {
        const T beta = static_cast<T>(s.inverse[t]);
        const T own = exponential<T, W>(splat<T, W>(own_ * beta))[0];
        FourSums<T> others, square;
        T* const e = e_.data();
        over_classes(
            z_.data(), count, lowest_of_all<T>,
            [&](V v, int64_t k, int j) {
                const V x = exponential<T, W>(v * beta);
                if (k + W <= count) store<T, W>(e + k, x);
                else store<T, W>(e + k, count - k, x);
                others.parts[j] += x;
                square.parts[j] += x * x;
            },
            [&] { others.flush(), square.flush(); });
        e[y] = own;
        const T scale = static_cast<T>(1 / (others.value + static_cast<double>(own)));
        number(4 + 4 * t, i) = others.value;
        number(5 + 4 * t, i) = square.value;
        number(6 + 4 * t, i) = static_cast<double>(own);
        number(7 + 4 * t, i) = static_cast<double>(own * scale);
        add_to_cells(t, scale);
    }

    // Few p lie above the lowest bin; those below are summed for each class without a look at their bin.
    void add_to_cells(int64_t t, T scale) {
        T *const e = e_.data(), *const mass = lowest_.data() + 2 * t * count, *const square = mass + count;
        int64_t k = 0;
        for (; k + 4 * W <= count; k += 4 * W) {
            V p[4], most{};
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                p[j] = load<T, W>(e + k + j * W) * scale;
                most = p[j] > most ? p[j] : most;
            }
            const bool low = largest_of<T, W>(most) <= edges[1];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const int64_t at = k + j * W;
                if (low || largest_of<T, W>(p[j]) <= edges[1]) {
                    store<T, W>(mass + at, load<T, W>(mass + at) + p[j]);
                    store<T, W>(square + at, load<T, W>(square + at) + p[j] * p[j]);
                } else {
                    for (int i = 0; i < W; ++i) add(t, at + i, p[j][i]);
                }
            }
        }
        for (; k < count; ++k) add(t, k, e[k] * scale);
    }

    void add(int64_t t, int64_t k, T p) {
        if (!(p > edges[1])) {  // whatever happens, a nan is no index
            lowest_[2 * t * count + k] += p;
            lowest_[(2 * t + 1) * count + k] += p * p;
            return;
        }
        int64_t bin = smaller(static_cast<int64_t>(p * static_cast<T>(s.bins)), s.bins - 1);
        while (p <= edges[bin]) --bin;
        while (bin + 1 < s.bins && p > edges[bin + 1]) ++bin;
        const double value = static_cast<double>(p);
        cell(t, 0)[k * s.bins + bin] += 1;
        cell(t, 1)[k * s.bins + bin] += value;
        cell(t, 2)[k * s.bins + bin] += value * (1 - value);
    }

    const RowSums& s;
    const int64_t count, rows, temperatures;
    const T* const edges;
    T own_ = 0;
    Array<T> z_, e_, lowest_;
};

int64_t row_sums(const RowSums& sums) {
    return sums.block.wide ? RowSummer<double>(sums).run() : RowSummer<float>(sums).run();
}

template <class T>
int64_t slopes_of(Slopes& s) {
    constexpr int W = lanes<T>;
    using V = Lanes<T>;
    const T beta = static_cast<T>(s.beta), floor = Exp<T>::lowest / beta;  // where e is 0
    for (int64_t i = 0; i < s.block.rows; ++i) {
        const T* const x = static_cast<const T*>(s.block.logits) + i * s.block.row_stride;
        const T top = largest_logit(x, s.block.classes);
        if (top - top != 0) return i;
        FourSums<T> totals, means, squares;
        over_classes(
            x, s.block.classes, lowest_of_all<T>,
            [&](V v, int64_t, int j) {
                const V far = v - top, z = far < floor ? splat<T, W>(floor) : far;  // 0·(-inf) would be nan
                const V e = exponential<T, W>(z * beta);
                totals.parts[j] += e;
                means.parts[j] += e * z;
                squares.parts[j] += e * z * z;
            },
            [&] { totals.flush(), means.flush(), squares.flush(); });
        if (totals.value != totals.value) return i;  // a nan
        const double mean = means.value / totals.value;
        const T own = x[s.block.labels[i]] - top;
        if (own == lowest_of_all<T>) continue;  // infinite at every T
        s.sums[0] += mean - static_cast<double>(own);
        s.sums[1] += squares.value / totals.value - mean * mean;
    }
    return -1;
}

int64_t slopes(Slopes& s) { return s.block.wide ? slopes_of<double>(s) : slopes_of<float>(s); }
