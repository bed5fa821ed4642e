// What one core of this machine can do at the most: instruction mixes on registers alone, and a triad over memory.
// The mixes are those of the tropical products; one step is one (m, n, k):
//     add_max  t = a + b;          c = max(c, t)
//     fma_max  t = fma(a, 1, b);   c = max(c, t)     rounds as a + b does; gains where the multiply-add has pipes of its own
//     mul_max  t = a * b;          c = max(c, t)
#include <cstddef>

#if defined(__x86_64__) && defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
typedef __m512 Vector;
#define OPAQUE "+v"
static inline Vector splat(float x) { return _mm512_set1_ps(x); }
static inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
static inline Vector mul(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
static inline Vector fma_(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vector max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
#elif defined(__AVX__) && defined(__FMA__)
typedef __m256 Vector;
#define OPAQUE "+x"
static inline Vector splat(float x) { return _mm256_set1_ps(x); }
static inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
static inline Vector mul(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
static inline Vector fma_(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vector max(Vector a, Vector b) { return _mm256_max_ps(a, b); }
#elif defined(__aarch64__)
#include <arm_neon.h>
typedef float32x4_t Vector;
#define OPAQUE "+w"
static inline Vector splat(float x) { return vdupq_n_f32(x); }
static inline Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
static inline Vector mul(Vector a, Vector b) { return vmulq_f32(a, b); }
static inline Vector fma_(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
static inline Vector max(Vector a, Vector b) { return vmaxq_f32(a, b); }
#elif defined(__x86_64__)
#include <xmmintrin.h>
typedef __m128 Vector;
#define OPAQUE "+x"
static inline Vector splat(float x) { return _mm_set1_ps(x); }
static inline Vector add(Vector a, Vector b) { return _mm_add_ps(a, b); }
static inline Vector mul(Vector a, Vector b) { return _mm_mul_ps(a, b); }
static inline Vector max(Vector a, Vector b) { return _mm_max_ps(a, b); }
#define NO_FMA
static inline Vector fma_(Vector, Vector, Vector c) { return c; }
#else
#error "ceilings.cpp knows x86-64 and AArch64"
#endif

enum Mix { ADD_MAX = 0, FMA_MAX = 1, MUL_MAX = 2 };

// Twelve accumulators hide the latency of max on every core known to us; named, because gcc keeps arrays of vectors on the
// stack. The empty asm makes `a` a new unknown each time, so that no step is shared or dropped.
#define STEP(c)                                                                                                        \
    asm volatile("" : OPAQUE(a));                                                                                      \
    c = max(c, mix == ADD_MAX ? add(a, b) : mix == FMA_MAX ? fma_(a, one, b) : mul(a, b));

template <Mix mix>
static double run(long iterations) {
    Vector a = splat(1.5f), b = splat(0.25f), one = splat(1.0f);
    asm volatile("" : OPAQUE(one), OPAQUE(b));
    Vector c0 = a, c1 = a, c2 = a, c3 = a, c4 = a, c5 = a, c6 = a, c7 = a, c8 = a, c9 = a, c10 = a, c11 = a;
    for (long i = 0; i < iterations; ++i) {
        STEP(c0) STEP(c1) STEP(c2) STEP(c3) STEP(c4) STEP(c5)
        STEP(c6) STEP(c7) STEP(c8) STEP(c9) STEP(c10) STEP(c11)
    }
    asm volatile("" : OPAQUE(c0), OPAQUE(c1), OPAQUE(c2), OPAQUE(c3), OPAQUE(c4), OPAQUE(c5));
    asm volatile("" : OPAQUE(c6), OPAQUE(c7), OPAQUE(c8), OPAQUE(c9), OPAQUE(c10), OPAQUE(c11));
    return 12.0 * (sizeof(Vector) / sizeof(float)) * static_cast<double>(iterations);
}

extern "C" {

// Runs a mix on the calling thread; returns the number of steps made, or 0 where the machine lacks the instruction.
double tropigrad_mix(int mix, long iterations) {
    switch (mix) {
        case ADD_MAX: return run<ADD_MAX>(iterations);
        case MUL_MAX: return run<MUL_MAX>(iterations);
#ifndef NO_FMA
        case FMA_MAX: return run<FMA_MAX>(iterations);
#endif
    }
    return 0;
}

// out = x + scale * y over n floats, `passes` times; returns the bytes that had to move, each array once a pass.
double tropigrad_triad(float* __restrict out, const float* __restrict x, const float* __restrict y, long n, long passes) {
    float scale = 3.0f;
    for (long pass = 0; pass < passes; ++pass) {
        asm volatile("" : "+m"(scale) : : "memory");
        const float s = scale;
        for (long i = 0; i < n; ++i) out[i] = x[i] + s * y[i];
    }
    return 3.0 * sizeof(float) * static_cast<double>(n) * static_cast<double>(passes);
}

int tropigrad_vector_floats() { return sizeof(Vector) / sizeof(float); }
}
