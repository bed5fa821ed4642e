// Answers what libraries.py asks about the processor and about a form of the kernels: whether c = max(c, fma(a, 1, b)) is
// faster than c = max(c, a + b), in registers alone; how wide vectors are; the processor's level of the x86-64 ABI.
#if defined(__FMA__)
#define ADD_BY_FMA
#endif
#include "native.hpp"

#include <algorithm>
#include <chrono>

namespace {

#ifdef ADD_BY_FMA

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

#endif

}  // namespace

extern "C" {

int vector_bytes() { return VECTOR_BYTES; }

int fma_adds_faster() {
#ifdef ADD_BY_FMA
    double sum = 1, fused = 1;
    for (int i = 0; i < 15; ++i) {
        sum = std::min(sum, seconds<Sum>());
        fused = std::min(fused, seconds<Plus>());
    }
    return fused < 0.9 * sum;
#else
    return 0;
#endif
}

int fuses() {
#ifdef ADD_BY_FMA
    return 1;
#else
    return 0;
#endif
}

// 1 to 4; on another architecture 0.
int x86_64_level() {
#ifdef __x86_64__
    __builtin_cpu_init();
    const auto has = [](auto... features) { return (... && features); };
    if (!has(__builtin_cpu_supports("sse4.2"), __builtin_cpu_supports("ssse3"), __builtin_cpu_supports("popcnt")))
        return 1;
    if (!has(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"), __builtin_cpu_supports("bmi"),
             __builtin_cpu_supports("bmi2")))
        return 2;
    if (!has(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"), __builtin_cpu_supports("avx512cd"),
             __builtin_cpu_supports("avx512dq"), __builtin_cpu_supports("avx512vl")))
        return 3;
    return 4;
#else
    return 0;
#endif
}

}  // extern "C"
