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
};

template <int W>
struct Vector<double, W> {
    typedef double values __attribute__((vector_size(8 * W)));
    typedef int64_t ints __attribute__((vector_size(8 * W)));
    typedef uint64_t bits __attribute__((vector_size(8 * W)));
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
// whole numbers, ln 2 in two parts (the first with trailing zeros), and the polynomial q of exp(r) = 1 + r + r² q(r)
// over [-ln 2 / 2, ln 2 / 2], highest power first.
template <class T>
struct Exp;
template <>
struct Exp<float> {
    static constexpr float lowest = -110.0f, highest = 100.0f;
    static constexpr float per_ln2 = 1.44269504088896341f, rounder = 12582912.0f;
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    static constexpr float q[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
};
template <>
struct Exp<double> {
    static constexpr double lowest = -760.0, highest = 720.0;
    static constexpr double per_ln2 = 1.4426950408889634074, rounder = 6755399441055744.0;
    static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
    static constexpr double q[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                                   1.0 / 362880,     1.0 / 40320,     1.0 / 5040,     1.0 / 720,
                                   1.0 / 120,        1.0 / 24,        1.0 / 6,        0.5};
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

// exp, at most 2 ulp from the true value, over the whole range; denormal results too. nan stays nan.
template <class T, int W>
inline Values<T, W> exponential(Values<T, W> x) {
    using E = Exp<T>;
    using V = Values<T, W>;
    x = x < splat<T, W>(E::lowest) ? splat<T, W>(E::lowest) : x;
    x = x > splat<T, W>(E::highest) ? splat<T, W>(E::highest) : x;
    const V n = (x * E::per_ln2 + E::rounder) - E::rounder;
    const V r = (x - n * E::ln2_high) - n * E::ln2_low;
    V q = splat<T, W>(E::q[0]);
#pragma GCC unroll 12
    for (size_t i = 1; i < sizeof(E::q) / sizeof(T); ++i) q = q * r + E::q[i];
    return times_power_of_two<T, W>((q * r) * r + r + T(1), n);
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
