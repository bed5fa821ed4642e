// Lanes of 16 bits for the tiles of the tropical product: saturated sums, and an A that is spread over them; and the sums
// and differences of every type that native.hpp does not have.

#pragma once

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
