// Whether c = max(c, fma(a, 1, b)) is made faster than c = max(c, a + b) on this processor, in registers alone.
#if defined(__FMA__) && defined(__AVX__)
#define ADD_BY_FMA
#include "native.hpp"

#include <algorithm>
#include <chrono>

namespace {

using V = Simd<float>::Vector;

struct Sum {
    static V of(V a, V b) { return a + b; }
};

// Twelve maxima hide their own latency; the empty asm makes `a` a new unknown, so that no step is shared or dropped.
template <class Op>
double seconds() {
    V a = V{} + 1.5f, b = V{} + 0.25f, c[12] = {};
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 4096; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; ++j) {
            asm volatile("" : "+v"(a));
            c[j] = larger(Op::of(a, b), c[j]);
        }
    }
    const auto end = std::chrono::steady_clock::now();
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) asm volatile("" : : "v"(c[j]));
    return std::chrono::duration<double>(end - start).count();
}

}  // namespace

extern "C" int fma_adds_faster() {
    double sum = 1, fused = 1;
    for (int i = 0; i < 15; ++i) {
        sum = std::min(sum, seconds<Sum>());
        fused = std::min(fused, seconds<Plus>());
    }
    return fused < 0.9 * sum;
}
extern "C" int processor_fuses() { return 1; }
#else
extern "C" int fma_adds_faster() { return 0; }
extern "C" int processor_fuses() { return 0; }
#endif
