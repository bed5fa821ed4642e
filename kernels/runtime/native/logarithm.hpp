// The natural logarithm of vectors, after FreeBSD's msun (e_log.c, e_logf.c).

#pragma once

#include "native.hpp"

namespace {

// Names of constants are those of the source.
template <class C>
struct Logarithm;

template <>
struct Logarithm<double> {
    using Word = uint64_t;
    static constexpr Word HALF_ROOT = Word(0x3fe6a09e) << 32, ONE = Word(0x3ff00000) << 32;
    static constexpr int FRACTION = 52, BIAS = 1023;
    static constexpr Word MAGIC_BITS = 0x4338000000000000;
    static constexpr double MAGIC = 0x1.8p52;  // adding k to its last bits adds k
    static constexpr double LN2_HI = 6.93147180369123816490e-01, LN2_LO = 1.90821492927058770002e-10;
};

template <>
struct Logarithm<float> {
    using Word = uint32_t;
    static constexpr Word HALF_ROOT = 0x3f3504f3, ONE = 0x3f800000;
    static constexpr int FRACTION = 23, BIAS = 127;
    static constexpr Word MAGIC_BITS = 0x4b400000;
    static constexpr float MAGIC = 0x1.8p23f;
    static constexpr float LN2_HI = 6.9313812256e-01f, LN2_LO = 9.0580006145e-06f;
};

template <class C, class V>
inline V tail_of(V z, V w) {
    if constexpr (sizeof(C) == 8)
        return w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01)) +
               z * (6.666666666666735130e-01 + w * (2.857142874366239149e-01 +
                    w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    else
        return w * (C(0.40000972152) + w * C(0.24279078841)) + z * (C(0.66666662693) + w * C(0.28498786688));
}

// Of positive normal numbers, off by less than one unit in the last place.
template <class C>
inline typename Simd<C>::Vector logarithm(typename Simd<C>::Vector x) {
    using Of = Logarithm<C>;
    using V = typename Simd<C>::Vector;
    typedef typename Of::Word Bits __attribute__((vector_size(VECTOR_BYTES)));
    const Bits from_root = bit_cast<Bits>(x) + (Of::ONE - Of::HALF_ROOT);
    const V k = bit_cast<V>((from_root >> Of::FRACTION) + (Of::MAGIC_BITS - Of::BIAS)) - Of::MAGIC;
    const Bits fraction = from_root & ((typename Of::Word(1) << Of::FRACTION) - 1);
    const V f = bit_cast<V>(fraction + Of::HALF_ROOT) - C(1);
    const V s = f / (C(2) + f), z = s * s, half = C(0.5) * f * f;
    return k * Of::LN2_HI - ((half - (s * (half + tail_of<C>(z, z * z)) + k * Of::LN2_LO)) - f);
}

}  // namespace
