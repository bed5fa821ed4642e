// e^x of scalars and vectors: the same bits in every form of the library, as no product is fused into a sum.

#pragma once

#include "native.hpp"

#include <iterator>

namespace {

template <class C>
struct Exponent;

template <>
struct Exponent<float> {
    static constexpr int MANTISSA = 23;
    static constexpr float LEAST = -88.1f, MOST = 88;
    // x + MAGIC is rounded to an integer n, and its low bits hold n + 127, the exponent of 2^n: 0 at LEAST, so that 2^n is 0
    static constexpr float MAGIC = 0x1.8p23f + 127;
    static constexpr float HIGH = 0.693359375f, LOW = -2.12194440e-4f;  // ln 2; n · HIGH is exact
    // Cephes' polynomial of (e^r − 1 − r) / r², |r| ≤ ln 2 / 2
    static constexpr float TERMS[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                      4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
};

template <>
struct Exponent<double> {
    static constexpr int MANTISSA = 52;
    static constexpr double LEAST = -709.2, MOST = 709;
    static constexpr double MAGIC = 0x1.8p52 + 1023;
    static constexpr double HIGH = 6.93145751953125e-1, LOW = 1.42860682030941723212e-6;
    // of Taylor's series, whose next term is below 2^-58
    static constexpr double TERMS[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                                       1.0 / 362880,     1.0 / 40320,     1.0 / 5040,     1.0 / 720,
                                       1.0 / 120,        1.0 / 24,        1.0 / 6,        1.0 / 2};
};

// e^x of each x ≤ MOST. 0 from LEAST down, 1 of 0, NaN of NaN; else within 2 units in the last place, where that is a normal
// number. Step by step for all of them: one after the other, the steps of one would wait for each other longer than a
// processor looks ahead.
template <class C, class X, std::size_t COUNT>
inline void exponentials(X (&x)[COUNT]) {
    using E = Exponent<C>;
    using I = std::conditional_t<std::is_same_v<X, C>, typename Simd<C>::Index, typename Simd<C>::IndexVector>;
    X shifted[COUNT], r[COUNT], y[COUNT];
    const auto each = [](const auto& step) {
#pragma GCC unroll 8
        for (std::size_t i = 0; i < COUNT; ++i) step(i);
    };
    each([&](std::size_t i) { x[i] = larger(X{} + E::LEAST, x[i]); });
    each([&](std::size_t i) { shifted[i] = x[i] * C(1.4426950408889634) + E::MAGIC; });
    each([&](std::size_t i) { r[i] = shifted[i] - E::MAGIC; });
    each([&](std::size_t i) { r[i] = (x[i] - r[i] * E::HIGH) - r[i] * E::LOW; });
    each([&](std::size_t i) { y[i] = X{} + E::TERMS[0]; });
#pragma GCC unroll 16
    for (int term = 1; term < int(std::size(E::TERMS)); ++term)
        each([&](std::size_t i) { y[i] = y[i] * r[i] + E::TERMS[term]; });
    each([&](std::size_t i) { y[i] = (y[i] * (r[i] * r[i]) + r[i]) + C(1); });
    each([&](std::size_t i) { x[i] = y[i] * bit_cast<X>(bit_cast<I>(shifted[i]) << E::MANTISSA); });
}

template <class C, class X>
inline X exponential(X x) {
    X one[] = {x};
    exponentials<C>(one);
    return one[0];
}

}  // namespace
