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
inline Halves<W> upper(Words<W> x) {
    return __builtin_convertvector(x >> 16, Halves<W>);
}
#ifdef WITH_AVX2  // which GCC puts together from halves, here and below
template <>
inline Halves<8> upper<8>(Words<8> x) {
    const __m256i up = _mm256_srli_epi32(bit_cast<__m256i>(x), 16);
    return bit_cast<Halves<8>>(_mm_packus_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1)));
}
#endif
#ifdef WITH_AVX512
template <>
inline Halves<16> upper<16>(Words<16> x) {
    return bit_cast<Halves<16>>(_mm512_cvtepi32_epi16(_mm512_srli_epi32(bit_cast<__m512i>(x), 16)));
}
#endif

// Rounded to what bfloat16 can hold, in the upper half of each word; in the lower half lies anything.
template <int W, bool NO_NAN = false>
inline Words<W> rounded(Values<float, W> x) {
    const Words<W> bits = bit_cast<Words<W>>(x);
    const Words<W> even = bits + 0x7fffu + ((bits >> 16) & 1u);
    if constexpr (NO_NAN) return even;
    return x == x ? even : bits | 0x400000u;  // rounding could carry out of a nan
}

template <int W>
inline Halves<W> narrowed(Values<float, W> x, BFloat16) {
    return upper<W>(rounded<W>(x));
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

#ifdef WITH_AVX2
template <>
inline Values<float, 8> widened<8>(Halves<8> x, BFloat16) {
    return bit_cast<Values<float, 8>>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bit_cast<__m128i>(x)), 16));
}
template <>
inline Values<float, 8> widened<8>(Halves<8> x, Float16) {
    return bit_cast<Values<float, 8>>(_mm256_cvtph_ps(bit_cast<__m128i>(x)));
}
template <>
inline Halves<8> narrowed<8>(Values<float, 8> x, Float16) {
    return bit_cast<Halves<8>>(_mm256_cvtps_ph(bit_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
}
#endif

#ifdef WITH_AVX512
template <>
inline Values<float, 16> widened<16>(Halves<16> x, BFloat16) {
    return bit_cast<Values<float, 16>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bit_cast<__m256i>(x)), 16));
}
#ifdef WITH_BF16
template <>
inline Halves<16> narrowed<16>(Values<float, 16> x, BFloat16) {  // denormals become 0
    return bit_cast<Halves<16>>(_mm512_cvtneps_pbh(bit_cast<__m512>(x)));
}
#endif
template <>
inline Values<float, 16> widened<16>(Halves<16> x, Float16) {
    return bit_cast<Values<float, 16>>(_mm512_cvtph_ps(bit_cast<__m256i>(x)));
}
template <>
inline Halves<16> narrowed<16>(Values<float, 16> x, Float16) {
    return bit_cast<Halves<16>>(_mm512_cvtps_ph(bit_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
}
#endif

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

// 2 W numbers as two vectors. Where NEED_ORDER is not set the lanes of both are in whatever order is quick, the same for
// loads and stores: `place` says where in a pair a number is. Where NO_NAN is set, none of them is.
template <class S>
constexpr bool by_turns = false;  // the first has those at even places, the second those at odd ones
#if !defined(WITH_AVX512) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
template <>
constexpr bool by_turns<BFloat16> = true;  // the halves of words
#endif

template <class S, int W, bool NEED_ORDER>
inline void load_two(const S* from, Values<typename Computed<S>::type, W>* x) {
    if constexpr (by_turns<S> && !NEED_ORDER) {
        Words<W> pairs;
        memcpy(&pairs, from, sizeof pairs);
        x[0] = bit_cast<Values<float, W>>(pairs << 16);
        x[1] = bit_cast<Values<float, W>>(pairs & 0xffff0000u);
    } else {
        x[0] = load<S, W>(from);
        x[1] = load<S, W>(from + W);
    }
}

template <class S, int W, bool NEED_ORDER, bool NO_NAN>
inline void store_two(S* to, const Values<typename Computed<S>::type, W>* x) {
    if constexpr (by_turns<S> && !NEED_ORDER) {
        const Words<W> even = rounded<W, NO_NAN>(x[0]), odd = rounded<W, NO_NAN>(x[1]);
        const Words<W> pairs = even >> 16 | (odd & 0xffff0000u);
        memcpy(to, &pairs, sizeof pairs);
    } else {
        store<S, W>(to, x[0]);
        store<S, W>(to + W, x[1]);
    }
}

template <class S, int W, bool NEED_ORDER>
inline int64_t place(int64_t k) {
    if constexpr (!by_turns<S> || NEED_ORDER) return k;
    return (k & ~int64_t{2 * W - 1}) + (k & 1) * W + (k & (2 * W - 1)) / 2;
}

// `count` numbers, fewer than 2 COUNT, in pieces of known size: a call of memcpy takes longer than a vector's work, and
// so do AMD's masked stores.
template <class S, int COUNT>
inline void copy_some(S* to, const S* from, int64_t count) {
    if (count & COUNT) {
        memcpy(to, from, COUNT * sizeof(S));
        to += COUNT;
        from += COUNT;
    }
    if constexpr (COUNT > 1) copy_some<S, COUNT / 2>(to, from, count);
}

// The first `count` of W, the others `fill`, a number that S can hold.
template <class S, int W>
inline Values<typename Computed<S>::type, W> load(const S* from, int64_t count, typename Computed<S>::type fill) {
    S part[W];
    store<S, W>(part, splat<typename Computed<S>::type, W>(fill));
    copy_some<S, W / 2>(part, from, count);
    return load<S, W>(part);
}

template <class S, int W>
inline void store(S* to, int64_t count, Values<typename Computed<S>::type, W> x) {
    S part[W];
    store<S, W>(part, x);
    copy_some<S, W / 2>(to, part, count);
}

#ifdef WITH_AVX512
template <>
inline Values<float, 16> load<BFloat16, 16>(const BFloat16* from, int64_t count, float fill) {
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    const auto filler = narrowed<16>(splat<float, 16>(fill), BFloat16{});
    return widened<16>(bit_cast<Halves<16>>(_mm256_mask_loadu_epi16(bit_cast<__m256i>(filler), mask, from)), BFloat16{});
}
template <>
inline void store<BFloat16, 16>(BFloat16* to, int64_t count, Values<float, 16> x) {
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    _mm256_mask_storeu_epi16(to, mask, bit_cast<__m256i>(narrowed<16>(x, BFloat16{})));
}
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

#ifdef WITH_AVX2
inline __m256i first_of_eight(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
template <>
inline Values<float, 8> load<float, 8>(const float* from, int64_t count, float fill) {
    const __m256i mask = first_of_eight(count);
    const __m256 some = _mm256_maskload_ps(from, mask);
    return bit_cast<Values<float, 8>>(_mm256_blendv_ps(_mm256_set1_ps(fill), some, _mm256_castsi256_ps(mask)));
}
#endif

template <class S>
inline typename Computed<S>::type get(const S* from) {
    if constexpr (sizeof(S) == 2) return widened<4>(from->bits - Halves<4>{}, S{})[0];
    else return *from;
}

template <class S>
inline void put(S* to, typename Computed<S>::type x) {
    if constexpr (sizeof(S) == 2) to->bits = narrowed<4>(splat<float, 4>(x), S{})[0];
    else *to = x;
}
