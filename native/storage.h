// How logits and gradients lie in memory, and vectors of them: float32, float64, bfloat16 and float16.
//
// Included by each kernel_*.cpp inside its own namespace, after vector.h.

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

template <class S>
struct Computed {
    using type = S;
};
template <>
struct Computed<BFloat16> {
    using type = float;
};
template <>
struct Computed<Float16> {
    using type = float;
};

template <int W>
using Halves = typename Vector<float, W>::halves;
template <int W>
using Words = typename Vector<float, W>::bits;

template <int W>
inline Values<float, W> widened(Halves<W> x, BFloat16) {
    return bit_cast<Values<float, W>>(__builtin_convertvector(x, Words<W>) << 16);
}

template <int W>
inline Halves<W> narrowed(Values<float, W> x, BFloat16) {
    const Words<W> bits = bit_cast<Words<W>>(x);
    const Words<W> even = bits + 0x7fffu + ((bits >> 16) & 1u);
    const Words<W> rounded = x == x ? even : bits | 0x400000u;  // rounding could carry out of a nan
    return __builtin_convertvector(rounded >> 16, Halves<W>);
}

template <int W>
inline Values<float, W> widened(Halves<W> x, Float16) {
    const Words<W> half = __builtin_convertvector(x, Words<W>);
    const Words<W> sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
    const Words<W> moved = rest << 13;
    // The exponents differ by 112; the product is exact for denormals too.
    const Values<float, W> scaled = bit_cast<Values<float, W>>(moved) * 5.192296858534828e33f;  // 2^112
    const Words<W> finite = bit_cast<Words<W>>(scaled);
    return bit_cast<Values<float, W>>((rest >= 0x7c00u ? moved | 0x7f800000u : finite) | sign);
}

template <int W>
inline Halves<W> narrowed(Values<float, W> x, Float16) {
    const Words<W> bits = bit_cast<Words<W>>(x);
    const Words<W> sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
    const Words<W> normal = (rest - (112u << 23) + 0xfffu + ((rest >> 13) & 1u)) >> 13;
    // Adding 1/2 rounds to multiples of 2^-24, float16's smallest number.
    const Words<W> denormal = bit_cast<Words<W>>(bit_cast<Values<float, W>>(rest) + 0.5f) - 0x3f000000u;
    Words<W> half = rest < 0x38800000u ? denormal : normal;
    half = rest >= 0x477ff000u ? 0x7c00u - Words<W>{} : half;  // from 65520 on
    half = rest > 0x7f800000u ? 0x7e00u - Words<W>{} : half;
    return __builtin_convertvector(half | sign, Halves<W>);
}

template <class S, int W>
inline Values<typename Computed<S>::type, W> load(const S* from) {
    if constexpr (sizeof(S) == 2) {
        Halves<W> x;
        memcpy(&x, from, sizeof x);
        return widened<W>(x, S{});
    } else {
        Values<S, W> x;
        memcpy(&x, from, sizeof x);
        return x;
    }
}

template <class S, int W>
inline void store(S* to, Values<typename Computed<S>::type, W> x) {
    if constexpr (sizeof(S) == 2) {
        const Halves<W> half = narrowed<W>(x, S{});
        memcpy(to, &half, sizeof half);
    } else {
        memcpy(to, &x, sizeof x);
    }
}

// The first `count` of W, the others `fill`.
template <class S, int W>
inline Values<typename Computed<S>::type, W> load(const S* from, int64_t count, typename Computed<S>::type fill) {
    using T = typename Computed<S>::type;
    S part[W] = {};
    memcpy(part, from, static_cast<size_t>(count) * sizeof(S));
    Values<T, W> x = load<S, W>(part);
    for (int64_t i = count; i < W; ++i) x[i] = fill;
    return x;
}

template <class S, int W>
inline void store(S* to, int64_t count, Values<typename Computed<S>::type, W> x) {
    S part[W];
    store<S, W>(part, x);
    memcpy(to, part, static_cast<size_t>(count) * sizeof(S));
}

#ifdef WITH_AVX512
template <>
inline Values<float, 16> load<float, 16>(const float* from, int64_t count, float fill) {
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    return bit_cast<Values<float, 16>>(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), mask, from));
}
template <>
inline void store<float, 16>(float* to, int64_t count, Values<float, 16> x) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), bit_cast<__m512>(x));
}
template <>
inline Values<double, 8> load<double, 8>(const double* from, int64_t count, double fill) {
    const auto mask = static_cast<__mmask8>((1u << count) - 1);
    return bit_cast<Values<double, 8>>(_mm512_mask_loadu_pd(_mm512_set1_pd(fill), mask, from));
}
template <>
inline void store<double, 8>(double* to, int64_t count, Values<double, 8> x) {
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), bit_cast<__m512d>(x));
}
#endif

template <class S>
inline typename Computed<S>::type get(const S* from) {
    return load<S, 4>(from, 1, 0)[0];
}

template <class S>
inline void put(S* to, typename Computed<S>::type x) {
    store<S, 4>(to, 1, x - Values<typename Computed<S>::type, 4>{});
}
