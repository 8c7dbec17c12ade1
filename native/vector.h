// Vectors of W lanes, as GCC and Clang have them: the compiler maps them to whatever the target can do.
//
// Included by each kernel_*.cpp inside its own namespace, after the standard headers.

template <class T, int W>
struct Vector;

template <int W>
struct Vector<float, W> {
    typedef float values __attribute__((vector_size(4 * W)));
    typedef int32_t ints __attribute__((vector_size(4 * W)));
    typedef uint32_t bits __attribute__((vector_size(4 * W)));
    typedef uint16_t halves __attribute__((vector_size(2 * W)));
    typedef uint8_t bytes __attribute__((vector_size(W)));
};

template <int W>
struct Vector<double, W> {
    typedef double values __attribute__((vector_size(8 * W)));
    typedef int64_t ints __attribute__((vector_size(8 * W)));
    typedef uint64_t bits __attribute__((vector_size(8 * W)));
    typedef uint8_t bytes __attribute__((vector_size(W)));
};

template <class T, int W>
using Values = typename Vector<T, W>::values;

template <class T, int W>
inline Values<T, W> splat(T x) {
    return x - Values<T, W>{};
}

template <class To, class From>
inline To bit_cast(From x) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &x, sizeof to);
    return to;
}

// 2^n, for n in [-126, 127] (float) or [-1022, 1023] (double).
template <int W>
inline Values<float, W> power_of_two(typename Vector<float, W>::ints n) {
    return bit_cast<Values<float, W>>((n + 127) << 23);
}
template <int W>
inline Values<double, W> power_of_two(typename Vector<double, W>::ints n) {
    return bit_cast<Values<double, W>>((n + 1023) << 52);
}

// What exp needs to know of a type: where it is 0 and infinite for good, 1/ln 2, the number whose addition rounds to
// whole numbers, where the exponent lies and its bias, ln 2 in two parts (the first with trailing zeros), and the polynomial q of exp(r) = 1 + r + r² q(r)
// over [-ln 2 / 2, ln 2 / 2], lowest power first: for float that of the least relative error (3e-9), for double Taylor's.
template <class T>
struct Exp;
template <>
struct Exp<float> {
    static constexpr float lowest = -110.0f, highest = 100.0f;
    static constexpr float per_ln2 = 1.44269504088896341f, rounder = 12582912.0f;
    static constexpr int mantissa = 23, bias = 127, apart = 64;
    static constexpr float apart_down = 5.42101086242752217e-20f;  // 2^-apart
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    static constexpr float q[] = {0.49999994f, 0.16666521f, 0.04166839f, 0.0083687454f, 0.0013814543f};
};
template <>
struct Exp<double> {
    static constexpr double lowest = -760.0, highest = 720.0;
    static constexpr double per_ln2 = 1.4426950408889634074, rounder = 6755399441055744.0;
    static constexpr int mantissa = 52, bias = 1023, apart = 512;
    static constexpr double apart_down = 7.45834073120020674e-155;
    static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
    static constexpr double q[] = {0.5,           1.0 / 6,        1.0 / 24,        1.0 / 120,
                                   1.0 / 720,     1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                                   1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
};

// p 2^n, where n is a whole number. In two steps: 2^n itself may be denormal, or beyond the range.
template <class T, int W>
inline Values<T, W> times_power_of_two(Values<T, W> p, Values<T, W> n) {
    using bits = typename Vector<T, W>::bits;
    using ints = typename Vector<T, W>::ints;
    const Values<T, W> rounder = splat<T, W>(Exp<T>::rounder);
    const ints whole = bit_cast<ints>(bit_cast<bits>(n + rounder) - bit_cast<bits>(rounder));
    const ints half = whole >> 1;
    return p * power_of_two<W>(half) * power_of_two<W>(whole - half);
}

#ifdef WITH_AVX512
template <>
inline Values<float, 16> times_power_of_two<float, 16>(Values<float, 16> p, Values<float, 16> n) {
    return bit_cast<Values<float, 16>>(_mm512_scalef_ps(bit_cast<__m512>(p), bit_cast<__m512>(n)));
}
template <>
inline Values<double, 8> times_power_of_two<double, 8>(Values<double, 8> p, Values<double, 8> n) {
    return bit_cast<Values<double, 8>>(_mm512_scalef_pd(bit_cast<__m512d>(p), bit_cast<__m512d>(n)));
}
#endif

// The larger of each two; y where one of them is nan.
template <class T, int W>
inline Values<T, W> maximum(Values<T, W> x, Values<T, W> y) {
    return x > y ? x : y;
}
#ifdef WITH_AVX512
template <>
inline Values<float, 16> maximum<float, 16>(Values<float, 16> x, Values<float, 16> y) {
    return bit_cast<Values<float, 16>>(_mm512_max_ps(bit_cast<__m512>(x), bit_cast<__m512>(y)));
}
template <>
inline Values<double, 8> maximum<double, 8>(Values<double, 8> x, Values<double, 8> y) {
    return bit_cast<Values<double, 8>>(_mm512_max_pd(bit_cast<__m512d>(x), bit_cast<__m512d>(y)));
}
#endif
#ifdef WITH_AVX2
template <>
inline Values<float, 8> maximum<float, 8>(Values<float, 8> x, Values<float, 8> y) {
    return bit_cast<Values<float, 8>>(_mm256_max_ps(bit_cast<__m256>(x), bit_cast<__m256>(y)));
}
template <>
inline Values<double, 4> maximum<double, 4>(Values<double, 4> x, Values<double, 4> y) {
    return bit_cast<Values<double, 4>>(_mm256_max_pd(bit_cast<__m256d>(x), bit_cast<__m256d>(y)));
}
#endif

#define EACH _Pragma("GCC unroll 4") for (int i = 0; i < N; ++i)

// Replaces each x by exp(x), at most 2 ulp from the true value, denormal results too; for x up to 0, or where
// `BEYOND_1` up to Exp<T>::highest. nan stays nan. Every step is taken for all vectors before the next: one alone would
// mostly wait for itself.
//
// Up to 0, the addition that rounds n leaves the bits of 2^(n + apart) at the number's end; the polynomial is made
// smaller by as much, so that no factor is denormal and the product alone is rounded to one.
template <class T, int W, int N, bool BEYOND_1 = false>
inline void exponentials(Values<T, W>* x) {
    using E = Exp<T>;
    using bits = typename Vector<T, W>::bits;
    constexpr int terms = sizeof(E::q) / sizeof(T);
    constexpr int last_even = (terms - 1) / 2 * 2, last_odd = terms / 2 * 2 - 1;
    constexpr T rounder = BEYOND_1 ? E::rounder : E::rounder + E::bias + E::apart;
    Values<T, W> t[N], n[N], square[N], even[N], odd[N];
    EACH x[i] = maximum<T, W>(splat<T, W>(E::lowest), x[i]);
    EACH t[i] = x[i] * E::per_ln2 + rounder;
    EACH n[i] = t[i] - rounder;
    EACH x[i] = (x[i] - n[i] * E::ln2_high) - n[i] * E::ln2_low;
    EACH square[i] = x[i] * x[i];
    EACH even[i] = splat<T, W>(E::q[last_even]);
    EACH odd[i] = splat<T, W>(E::q[last_odd]);
#pragma GCC unroll 8
    for (int k = last_even - 2; k >= 0; k -= 2) EACH even[i] = even[i] * square[i] + E::q[k];
#pragma GCC unroll 8
    for (int k = last_odd - 2; k >= 0; k -= 2) EACH odd[i] = odd[i] * square[i] + E::q[k];
    EACH even[i] = odd[i] * x[i] + even[i];
    EACH x[i] = even[i] * square[i] + x[i];
    if constexpr (BEYOND_1) {
        EACH x[i] = times_power_of_two<T, W>(x[i] + T(1), n[i]);
    } else {
        EACH x[i] = x[i] * E::apart_down + E::apart_down;
        EACH x[i] *= bit_cast<Values<T, W>>(bit_cast<bits>(t[i]) << E::mantissa);
    }
}

#ifdef WITH_AVX512
// With 2^(i/16) from a table, n in sixteenths: r is so small that exp(x) = 2^n (1 + r + r² (1/2 + r/6)).
template <int N>
inline void exponentials_by_table(Values<float, 16>* x) {
    using V = Values<float, 16>;
    static constexpr float rounder = Exp<float>::rounder / 16, ln2 = 0.693147182f, ln2_rest = -1.904654e-9f;
    const V table = {1.0f,        1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f,
                     1.29683955f, 1.35425555f, 1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
                     1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
    V t[N], n[N], p[N], square[N];
    EACH x[i] = maximum<float, 16>(splat<float, 16>(Exp<float>::lowest), x[i]);
    EACH t[i] = x[i] * Exp<float>::per_ln2 + rounder;
    EACH n[i] = t[i] - rounder;
    EACH x[i] = x[i] - n[i] * ln2;
    EACH x[i] = x[i] - n[i] * ln2_rest;
    EACH p[i] = x[i] * (1.0f / 6) + 0.5f;
    EACH square[i] = x[i] * x[i];
    EACH t[i] = bit_cast<V>(_mm512_permutexvar_ps(bit_cast<__m512i>(t[i]), bit_cast<__m512>(table)));  // its last 4 bits
    EACH p[i] = p[i] * square[i] + x[i];
    EACH p[i] = p[i] * t[i] + t[i];
    EACH x[i] = bit_cast<V>(_mm512_scalef_ps(bit_cast<__m512>(p[i]), bit_cast<__m512>(n[i])));  // rounds n down
}
template <>
inline void exponentials<float, 16, 1, true>(Values<float, 16>* x) {
    exponentials_by_table<1>(x);
}
template <>
inline void exponentials<float, 16, 1>(Values<float, 16>* x) {
    exponentials_by_table<1>(x);
}
template <>
inline void exponentials<float, 16, 2>(Values<float, 16>* x) {
    exponentials_by_table<2>(x);
}
#endif
#ifdef WITH_AVX2
// With a table, n in eighths: r is so small that exp(x) = 2^n (1 + r + r² (q0 + q1 r)), for x up to 0. The addition that
// rounds n leaves its bits at the number's end: moved up they are a power of two times 1 + i/8, and the table has what
// 2^(i/8) is of that. It is made smaller by 2^-apart, as above.
template <int N>
inline void exponentials_by_table(Values<float, 8>* x) {
    using E = Exp<float>;
    using V = Values<float, 8>;
    using bits = Vector<float, 8>::bits;
    static constexpr float rounder = E::rounder / 8 + E::bias + E::apart;
    const V table = V{1.0f, 0.9693402f, 0.9513657f, 0.94315606f,
                      0.94280905f, 0.9490528f, 0.96102446f, 0.9781377f} * E::apart_down;
    V t[N], n[N], p[N], square[N];
    EACH x[i] = maximum<float, 8>(splat<float, 8>(E::lowest), x[i]);
    EACH t[i] = x[i] * E::per_ln2 + rounder;
    EACH n[i] = t[i] - rounder;
    EACH x[i] = (x[i] - n[i] * E::ln2_high) - n[i] * E::ln2_low;
    EACH p[i] = x[i] * 0.16666858f + 0.50006455f;
    EACH square[i] = x[i] * x[i];
    EACH n[i] = bit_cast<V>(_mm256_permutevar8x32_ps(bit_cast<__m256>(table), bit_cast<__m256i>(t[i])));  // its last 3 bits
    EACH n[i] *= bit_cast<V>(bit_cast<bits>(t[i]) << (E::mantissa - 3));
    EACH p[i] = p[i] * square[i] + x[i];
    EACH x[i] = p[i] * n[i] + n[i];
}
template <>
inline void exponentials<float, 8, 1>(Values<float, 8>* x) {
    exponentials_by_table<1>(x);
}
template <>
inline void exponentials<float, 8, 2>(Values<float, 8>* x) {
    exponentials_by_table<2>(x);
}
#endif
#undef EACH

// exp of any x.
template <class T, int W>
inline Values<T, W> exponential(Values<T, W> x) {
    x = x > splat<T, W>(Exp<T>::highest) ? splat<T, W>(Exp<T>::highest) : x;
    exponentials<T, W, 1, true>(&x);
    return x;
}

// The sum of all lanes, in double.
template <class T, int W>
inline double sum_of(Values<T, W> x) {
    if constexpr (W == 1) {
        return static_cast<double>(x[0]);
    } else if constexpr (sizeof(T) == 4) {
        return sum_of<double, W>(__builtin_convertvector(x, Values<double, W>));
    } else {
        Values<T, W / 2> low, high;
        memcpy(&low, &x, sizeof low);
        memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
        return sum_of<T, W / 2>(low + high);
    }
}

#ifdef WITH_AVX2  // which GCC puts together from words, here and below
template <>
inline double sum_of<double, 4>(Values<double, 4> x) {
    const __m256d all = bit_cast<__m256d>(x);
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(all), _mm256_extractf128_pd(all, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
template <>
inline double sum_of<float, 8>(Values<float, 8> x) {
    const __m256 all = bit_cast<__m256>(x);
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(all));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(all, 1));
    return sum_of<double, 4>(bit_cast<Values<double, 4>>(_mm256_add_pd(low, high)));
}
#endif

template <class T, int W>
inline T largest_of(Values<T, W> x) {
    if constexpr (W == 1) {
        return x[0];
    } else {
        Values<T, W / 2> low, high;
        memcpy(&low, &x, sizeof low);
        memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
        return largest_of<T, W / 2>(high > low ? high : low);
    }
}
#ifdef WITH_AVX2
template <>
inline float largest_of<float, 8>(Values<float, 8> x) {
    const __m256 all = bit_cast<__m256>(x);
    __m128 four = _mm_max_ps(_mm256_extractf128_ps(all, 1), _mm256_castps256_ps128(all));
    four = _mm_max_ps(_mm_movehl_ps(four, four), four);
    return _mm_cvtss_f32(_mm_max_ss(_mm_movehdup_ps(four), four));
}
#endif
