// Lanes of 16 bits for the tiles of the tropical product: saturated sums, and an A that is spread over them; and the sums
// and differences of every type that native.hpp does not have.

#pragma once

#include <utility>

#include "../runtime/native/native.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

using Shorts = Simd<int16_t>::Vector;

#if defined(__AVX512BW__)
#define SATURATED(op, a, b) Shorts(_mm512_##op##s_epi16(__m512i(a), __m512i(b)))
#elif defined(__AVX2__) && !defined(__AVX512F__)
#define SATURATED(op, a, b) Shorts(_mm256_##op##s_epi16(__m256i(a), __m256i(b)))
#elif defined(__SSE2__) && !defined(__AVX__)
#define SATURATED(op, a, b) Shorts(_mm_##op##s_epi16(__m128i(a), __m128i(b)))
#elif defined(__aarch64__)
#define SATURATED(op, a, b) Shorts(vq##op##q_s16(int16x8_t(a), int16x8_t(b)))
#else
#define SATURATED(op, a, b) saturated_##op(a, b)
inline Shorts saturated_add(Shorts a, Shorts b) {
    const Shorts zero = {}, room_above = INT16_MAX - (a > zero ? a : zero), room_below = INT16_MIN - (a < zero ? a : zero);
    const Shorts raised = b > room_below ? b : room_below;
    return a + (raised < room_above ? raised : room_above);
}
inline Shorts saturated_sub(Shorts a, Shorts b) { return ~saturated_add(~a, b); }
#endif

// An element of A as the tiles read it. A broadcast of 32 bits comes from memory by itself, one of 16 takes a shuffle as well.
struct Twice {
    uint32_t both;
    operator int16_t() const { return int16_t(both); }
    operator Shorts() const {
        typedef uint32_t Pairs __attribute__((vector_size(VECTOR_BYTES)));
        return Shorts(Pairs{} + both);
    }
};

inline Shorts operator+(Twice a, Shorts b) { return Shorts(a) + b; }
inline Shorts operator*(Twice a, Shorts b) { return Shorts(a) * b; }

template <class C>
using Spread = std::conditional_t<sizeof(C) == 2, Twice, C>;

template <class C>
inline Spread<C> spread(C x) {
    if constexpr (sizeof(C) == 2)
        return {uint16_t(x) * 0x10001u};
    else
        return x;
}

// Bit i: whether lane i of x equals that of y.
template <class C>
inline uint32_t equal_lanes(typename Simd<C>::Vector x, typename Simd<C>::Vector y) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<C, float>)
        return _mm512_cmp_ps_mask(__m512(x), __m512(y), _CMP_EQ_OQ);
    else if constexpr (std::is_same_v<C, double>)
        return _mm512_cmp_pd_mask(__m512d(x), __m512d(y), _CMP_EQ_OQ);
    else if constexpr (sizeof(C) == 4)
        return _mm512_cmpeq_epi32_mask(__m512i(x), __m512i(y));
    else if constexpr (sizeof(C) == 8)
        return _mm512_cmpeq_epi64_mask(__m512i(x), __m512i(y));
#if defined(__AVX512BW__)
    else
        return _mm512_cmpeq_epi16_mask(__m512i(x), __m512i(y));
#endif
#elif defined(__AVX__)
    const auto equal = x == y;
    if constexpr (sizeof(C) == 4)
        return uint32_t(_mm256_movemask_ps(__m256(equal)));
    else if constexpr (sizeof(C) == 8)
        return uint32_t(_mm256_movemask_pd(__m256d(equal)));
    const __m128i low = _mm256_castsi256_si128(__m256i(equal)), high = _mm256_extractf128_si256(__m256i(equal), 1);
    return uint32_t(_mm_movemask_epi8(_mm_packs_epi16(low, high)));
#elif defined(__SSE2__)
    const auto equal = x == y;
    if constexpr (sizeof(C) == 4)
        return uint32_t(_mm_movemask_ps(__m128(equal)));
    else if constexpr (sizeof(C) == 8)
        return uint32_t(_mm_movemask_pd(__m128d(equal)));
    return uint32_t(_mm_movemask_epi8(_mm_packs_epi16(__m128i(equal), __m128i{})));
#endif
    const auto lanes = x == y;
    uint32_t bits = 0;
    for (int i = 0; i < Simd<C>::WIDTH; ++i) bits |= uint32_t(lanes[i] & 1) << i;
    return bits;
}

// target = here, in the lanes where x > y.
template <class C>
inline void store_where_larger(typename Simd<C>::Index* target, typename Simd<C>::IndexVector here,
                               typename Simd<C>::Vector x, typename Simd<C>::Vector y) {
#if defined(__AVX512F__)  // a store of some lanes waits for no load
    if constexpr (std::is_same_v<C, float>)
        return _mm512_mask_storeu_epi32(target, _mm512_cmp_ps_mask(__m512(x), __m512(y), _CMP_GT_OQ), __m512i(here));
    if constexpr (std::is_same_v<C, double>)
        return _mm512_mask_storeu_epi64(target, _mm512_cmp_pd_mask(__m512d(x), __m512d(y), _CMP_GT_OQ), __m512i(here));
#endif
#if defined(__AVX512BW__)
    if constexpr (std::is_same_v<C, int16_t>)
        return _mm512_mask_storeu_epi16(target, _mm512_cmpgt_epi16_mask(__m512i(x), __m512i(y)), __m512i(here));
#endif
    using IV = typename Simd<C>::IndexVector;
    const IV larger = x > y;
    store(target, larger ? here : load<IV>(target));
}

// Of two vectors the lanes that a transposition puts into the first (or second): those of a square of size H change places.
template <int H, bool SECOND, class V, std::size_t... L>
inline V exchanged(V x, V y, std::index_sequence<L...>) {
    constexpr int W = sizeof...(L);
    constexpr auto place = [](int lane) { return bool(lane & H) == SECOND ? lane + SECOND * W : (lane ^ H) + !SECOND * W; };
#if defined(__clang__)
    return __builtin_shufflevector(x, y, place(L)...);
#else
    using Places = decltype(x > y);
    return __builtin_shuffle(x, y, Places{place(L)...});
#endif
}

// Transposes the W × W numbers of W vectors.
template <class C, int H = Simd<C>::WIDTH / 2>
inline void transpose(typename Simd<C>::Vector (&x)[Simd<C>::WIDTH]) {
    constexpr int W = Simd<C>::WIDTH;
    constexpr auto lanes = std::make_index_sequence<W>{};
#pragma GCC unroll 32
    for (int i = 0; i < W; ++i) {
        if (i & H) continue;
        const auto first = exchanged<H, false>(x[i], x[i + H], lanes), second = exchanged<H, true>(x[i], x[i + H], lanes);
        x[i] = first;
        x[i + H] = second;
    }
    if constexpr (H > 1) transpose<C, H / 2>(x);
}

struct Minus {
    template <class A, class V>
    static V of(A a, V b) { return a - b; }
};

struct SaturatedPlus {
    static Shorts of(Shorts a, Shorts b) { return SATURATED(add, a, b); }
    static int16_t of(int16_t a, int16_t b) { return int16_t(std::clamp(a + b, INT16_MIN, INT16_MAX)); }
};

struct SaturatedMinus {
    static Shorts of(Shorts a, Shorts b) { return SATURATED(sub, a, b); }
    static int16_t of(int16_t a, int16_t b) { return int16_t(std::clamp(a - b, INT16_MIN, INT16_MAX)); }
};

}  // namespace
