// Eight answers as the bits of a byte and back, the first the lowest bit.

#pragma once

#include "native.hpp"

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace {

template <class C>
struct Eight {
    using Index = typename Simd<C>::Index;
    typedef C Vector __attribute__((vector_size(8 * sizeof(C))));
    typedef Index IndexVector __attribute__((vector_size(8 * sizeof(C))));
};

// Eight bytes of 0 and 1 as a byte.
inline uint8_t gathered(const uint8_t* each) {
    uint64_t eight;
    std::memcpy(&eight, each, sizeof eight);
    return uint8_t(eight * 0x0102040810204080 >> 56);
}

// Eight elements at `yes`, each 0 or −1, as a byte.
template <class I>
inline uint8_t as_byte(const I* yes) {
#if defined(__AVX__)
    if constexpr (sizeof(I) == 4) return uint8_t(_mm256_movemask_ps(load<__m256>(yes)));
    if constexpr (sizeof(I) == 8)
        return uint8_t(_mm256_movemask_pd(load<__m256d>(yes)) | _mm256_movemask_pd(load<__m256d>(yes + 4)) << 4);
#elif defined(__SSE2__)
    if constexpr (sizeof(I) == 4)
        return uint8_t(_mm_movemask_ps(load<__m128>(yes)) | _mm_movemask_ps(load<__m128>(yes + 4)) << 4);
#endif
    uint8_t each[8];
    for (int i = 0; i < 8; ++i) each[i] = yes[i] & 1;
    return gathered(each);
}

// A byte as eight elements, each 0 or −1.
template <class C>
inline typename Eight<C>::IndexVector from_byte(uint8_t byte) {
    using V = typename Eight<C>::IndexVector;
    constexpr V bit = {1, 2, 4, 8, 16, 32, 64, 128};
    return ((V{} + typename Eight<C>::Index(byte)) & bit) != 0;
}

}  // namespace
