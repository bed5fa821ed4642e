// Bytes that tell yes from no, as bits and back: bit k % 8 of byte k / 8 is that of element k.

#pragma once

#include "native.hpp"

namespace {

// Eight bytes of 0 and 1 as a byte, the first the lowest bit.
inline uint8_t gathered(const uint8_t* each) {
    uint64_t eight;
    std::memcpy(&eight, each, sizeof eight);
    return uint8_t(eight * 0x0102040810204080 >> 56);
}

// Bits of `count` bytes of 0 and 1, which are followed by zeros up to a multiple of eight.
inline void to_bits(const uint8_t* each, int64_t count, uint8_t* bits) {
    for (int64_t i = 0; i < count; i += 8) bits[i / 8] = gathered(each + i);
}

// Bytes of `count` bits, up to a multiple of eight: 0, or not 0.
inline void from_bits(const uint8_t* bits, int64_t count, uint8_t* each) {
    for (int64_t i = 0; i < count; i += 8) {
        const uint64_t eight = (bits[i / 8] * 0x0101010101010101) & 0x8040201008040201;
        std::memcpy(each + i, &eight, sizeof eight);
    }
}

}  // namespace
