// Vectors, torch's element types and their rounding, NaN and threads: shared by all C++ kernels.
//
// Everything is in an unnamed namespace, since each library is one translation unit with symbols of its own.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

#ifdef ADD_BY_FMA
#ifndef __FMA__
#error "ADD_BY_FMA needs a processor with a fused multiply-add of vectors"
#endif
#include <immintrin.h>
#endif

// ------------------------------------------------------------------------------------------------ vectors

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr std::size_t CACHE_LINE = 64;

template <class C>
struct Simd {
    using Index = std::conditional_t<sizeof(C) == 8, int64_t, std::conditional_t<sizeof(C) == 2, int16_t, int32_t>>;
    typedef C Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef Index IndexVector __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int WIDTH = VECTOR_BYTES / sizeof(C);
};

template <class V, class T>
inline V load(const T* source) {
    V v;
    std::memcpy(&v, source, sizeof v);
    return v;
}

template <class V, class T>
inline void store(T* target, V v) {
    std::memcpy(target, &v, sizeof v);
}

template <class To, class From>
inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// The larger of two; `best` where either is NaN, as in the x86 instruction. So a NaN in `best` stays.
template <class V>
inline V larger(V x, V best) {
    return x > best ? x : best;
}

// The largest of LANES numbers C.
template <class C, int LANES, class V>
inline C largest_lane(V x) {
    if constexpr (LANES == 2) {
        return larger(x[1], x[0]);
    } else {
        typedef C Half __attribute__((vector_size(LANES / 2 * sizeof(C))));
        Half low, high;
        std::memcpy(&low, &x, sizeof low);
        std::memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
        return largest_lane<C, LANES / 2>(larger(high, low));
    }
}

// fma(a, 1, b) rounds as a + b does. It is faster where the multiply-add has a pipe that the maximum does not use, and
// the addition has none (Intel before Skylake, AMD). libraries.py measures it by add_probe.cpp, and then defines
// ADD_BY_FMA.
struct Plus {
#if defined(ADD_BY_FMA) && defined(__AVX512F__)
    // With 512 bits a scalar from memory is broadcast inside the instruction: compilers put it in a register before the
    // loop body needs it, which costs a slot of the decoder each (measured on AMD Zen 4: 40 against 58 G steps/s).
    static Simd<float>::Vector of(const float& a, Simd<float>::Vector b) {
        asm("vfmadd231ps %1%{1to16%}, %2, %0" : "+v"(b) : "m"(a), "v"(_mm512_set1_ps(1)));
        return b;
    }
    static Simd<double>::Vector of(const double& a, Simd<double>::Vector b) {
        asm("vfmadd231pd %1%{1to8%}, %2, %0" : "+v"(b) : "m"(a), "v"(_mm512_set1_pd(1)));
        return b;
    }
    static Simd<float>::Vector of(Simd<float>::Vector a, Simd<float>::Vector b) {
        return Simd<float>::Vector(_mm512_fmadd_ps(__m512(a), _mm512_set1_ps(1), __m512(b)));
    }
    static Simd<double>::Vector of(Simd<double>::Vector a, Simd<double>::Vector b) {
        return Simd<double>::Vector(_mm512_fmadd_pd(__m512d(a), _mm512_set1_pd(1), __m512d(b)));
    }
#elif defined(ADD_BY_FMA)  // which implies AVX
    template <class A>
    static Simd<float>::Vector of(A a, Simd<float>::Vector b) {
        return Simd<float>::Vector(_mm256_fmadd_ps(__m256(a - Simd<float>::Vector{}), _mm256_set1_ps(1), __m256(b)));
    }
    template <class A>
    static Simd<double>::Vector of(A a, Simd<double>::Vector b) {
        return Simd<double>::Vector(_mm256_fmadd_pd(__m256d(a - Simd<double>::Vector{}), _mm256_set1_pd(1), __m256d(b)));
    }
#endif
    template <class A, class V>
    static V of(A a, V b) { return a + b; }
};

struct Times {
    template <class A, class V>
    static V of(A a, V b) { return a * b; }
};

// A long sum in COUNT parts. COUNT is the same on every processor, however wide its vectors are, and so are the bits.
template <class C>
struct PartialSums {
    static constexpr int VECTORS = 64 / VECTOR_BYTES, COUNT = 64 / sizeof(C);
    typename Simd<C>::Vector parts[VECTORS] = {};

    C total() const {
        C sums[COUNT];
        std::memcpy(sums, parts, sizeof sums);
        for (int half = COUNT / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
        return sums[0];
    }
};

// ------------------------------------------------------------------------------------------------ element types

struct Half { uint16_t bits; };
struct Brain { uint16_t bits; };

template <class C, class T>
inline C widen(T x) {
    if constexpr (std::is_same_v<T, Brain>) {
        return bit_cast<float>(uint32_t(x.bits) << 16);
    } else if constexpr (std::is_same_v<T, Half>) {
        const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
        const uint32_t normal = (magnitude << 13) + (magnitude < 0x7c00 ? 112u << 23 : 224u << 23);
        const float subnormal = float(int32_t(magnitude)) * 0x1p-24f;
        return bit_cast<float>(sign | (magnitude < 0x0400 ? bit_cast<uint32_t>(subnormal) : normal));
    } else {
        return C(x);
    }
}

// Converts without rounding: x is a value of T already.
template <class T, class C>
inline T narrow_exact(C x) {
    if constexpr (std::is_same_v<T, Brain>) {
        return {uint16_t(bit_cast<uint32_t>(x) >> 16)};
    } else if constexpr (std::is_same_v<T, Half>) {
        const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffff;
        const bool is_subnormal = magnitude < 0x38800000;  // 2^-14
        const uint32_t subnormal = uint32_t(int32_t(bit_cast<float>(is_subnormal ? magnitude : 0u) * 0x1p24f));
        const uint32_t finite = is_subnormal ? subnormal : (magnitude - (112u << 23)) >> 13;
        const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
        return {uint16_t((bits >> 16 & 0x8000) | (magnitude >= 0x7f800000 ? special : finite))};
    } else {
        return T(x);
    }
}

// Round a sum or product to the element type. The result stays in the compute type; F is a scalar or a vector.

struct Unrounded {
    explicit Unrounded(bool) {}
    template <class F>
    F operator()(F x) const { return x; }
};

struct ToBrain {
    explicit ToBrain(bool) {}
    template <class F>
    F operator()(F x) const {
        using U = std::conditional_t<sizeof(F) == 4, int32_t, Simd<float>::IndexVector>;
        const U bits = bit_cast<U>(x);
        return bit_cast<F>((bits + 0x7fff + (bits >> 16 & 1)) & int32_t(0xffff0000));
    }
};

struct ToHalf {
    explicit ToHalf(bool) {}
    template <class F>
    F operator()(F x) const {
        using U = std::conditional_t<sizeof(F) == 4, int32_t, Simd<float>::IndexVector>;
        // The last bit of 1.5 · 2^(e + 13) is worth as much as that of a half with exponent e. Adding it therefore
        // rounds to nearest even, subnormals too.
        const U smallest = U{} + (113 << 23), exponent = bit_cast<U>(x) & 0x7f800000;
        const U shift = (exponent > smallest ? exponent : smallest) + ((13 << 23) | 0x400000);
        const F magic = bit_cast<F>(shift), infinity = F{} + std::numeric_limits<float>::infinity();
        const F rounded = (x + magic) - magic;
        const F finite_or_positive = rounded > F{} + 65504.f ? infinity : rounded;
        return rounded < F{} - 65504.f ? -infinity : finite_or_positive;
    }
};

// Clamps to the range of the integers I, or to that of their negatives. C holds every sum or product that matters.
template <class I, class C>
struct Saturated {
    C low, high;
    explicit Saturated(bool negated)
        : low(negated ? -C(std::numeric_limits<I>::max()) : C(std::numeric_limits<I>::min())),
          high(negated ? -C(std::numeric_limits<I>::min()) : C(std::numeric_limits<I>::max())) {}
    template <class F>
    F operator()(F x) const {
        const F floor = F{} + low, ceiling = F{} + high;
        const F raised = x > floor ? x : floor;
        return raised < ceiling ? raised : ceiling;
    }
};

// A library serves one element type, so that a caller does not wait for the compilation of the others.
#ifndef ELEMENT
#define ELEMENT float  // or double, Half, Brain, int64_t, int32_t, int16_t, int8_t, uint8_t
#endif
using Element = ELEMENT;
constexpr bool IS_HALF = std::is_same_v<Element, Half>, IS_BRAIN = std::is_same_v<Element, Brain>;
using Compute = std::conditional_t<IS_HALF || IS_BRAIN, float, Element>;
using Rounding = std::conditional_t<IS_HALF, ToHalf, std::conditional_t<IS_BRAIN, ToBrain, Unrounded>>;

// ------------------------------------------------------------------------------------------------ NaN

enum Special { HAS_NAN = 1, HAS_PLUS_INFINITY = 2, HAS_MINUS_INFINITY = 4 };

template <class C>
inline int classify(const C* x, int64_t count) {
    if constexpr (std::is_floating_point_v<C>) {
        using U = typename Simd<C>::Index;
        const U magnitude = std::numeric_limits<U>::max(), infinity = bit_cast<U>(std::numeric_limits<C>::infinity());
        U largest = 0;
        for (int64_t i = 0; i < count; ++i) {
            const U bits = bit_cast<U>(x[i]) & magnitude;
            largest = bits > largest ? bits : largest;
        }
        if (largest < infinity) return 0;
        int special = 0;
        for (int64_t i = 0; i < count; ++i) {
            const U bits = bit_cast<U>(x[i]);
            special |= (bits & magnitude) > infinity ? HAS_NAN : 0;
            special |= bits == infinity ? HAS_PLUS_INFINITY : 0;
            special |= bits < 0 && (bits & magnitude) == infinity ? HAS_MINUS_INFINITY : 0;
        }
        return special;
    }
    return 0;
}

template <class Op>
inline bool can_make_nan(int a, int b) {
    constexpr int infinite = HAS_PLUS_INFINITY | HAS_MINUS_INFINITY;
    if ((a | b) & HAS_NAN) return true;
    if constexpr (std::is_same_v<Op, Times>) return ((a | b) & infinite) != 0;
    const auto opposed = [](int a, int b) { return (a & HAS_PLUS_INFINITY) && (b & HAS_MINUS_INFINITY); };
    return opposed(a, b) || opposed(b, a);
}

// ------------------------------------------------------------------------------------------------ threads

using Body = void (*)(void*);
using Parallel = void (*)(Body body, void* data, unsigned threads, unsigned flags);
Parallel torch_team = nullptr;  // GOMP_parallel of the OpenMP runtime that torch computes with

// Calls work(t) for each t < threads, or for fewer: `work` draws tasks from a counter, so that fewer finish them all.
// The threads are those of torch's own team, if there is one. Its workers spin for a while after every torch operation.
// Threads of our own would compete with them for the cores: a call after torch.matmul then took 2.5 times as long.
template <class Work>
void in_parallel(int threads, const Work& work) {
    if (threads == 1) return work(0);
    if (torch_team) {
        struct Members {
            const Work& work;
            std::atomic<int> next{0};
        } members{work};
        const Body join = [](void* data) {
            Members& members = *static_cast<Members*>(data);
            members.work(members.next.fetch_add(1, std::memory_order_relaxed));
        };
        return torch_team(join, &members, unsigned(threads), 0);
    }
    std::vector<std::thread> others;
    others.reserve(threads);
    for (int t = 1; t < threads; ++t) {
        try {
            others.emplace_back([&work, t] { work(t); });
        } catch (const std::system_error&) {
            break;
        }
    }
    work(0);
    for (auto& thread : others) thread.join();
}

// Calls task(thread, t) for each t < tasks, in any order, on up to `threads` threads.
template <class Task>
void for_each_task(int64_t threads, int64_t tasks, const Task& task) {
    std::atomic<int64_t> next{0};
    in_parallel(int(std::max<int64_t>(1, std::min(threads, tasks))), [&](int thread) {
        for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(thread, t);
    });
}

// Of a batch of matrices, in elements.
struct MatrixStrides { int64_t batch, row, column; };

inline int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

enum Status { DONE = 0, OUT_OF_MEMORY = 1, INDEX_OUT_OF_RANGE = 2 };  // returned by a library's functions

// The status of work(), which returns whether every index was in range.
template <class Work>
int guarded(const Work& work) noexcept {
    try {
        return work() ? DONE : INDEX_OUT_OF_RANGE;
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    }
}

}  // namespace

// Sets the team of `in_parallel`: GOMP_parallel of torch's OpenMP runtime, or null for fresh threads in every call.
extern "C" void tropigrad_set_team(Parallel parallel) { torch_team = parallel; }
