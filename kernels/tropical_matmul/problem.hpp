// A tropical product to compute, and what both ways to compute it share: the semiring's ⊗, its signs and its lowest value.
//
// min is max of negated operands: B always passes through a packed copy, so the signs cost nothing there. Sixteen-bit
// integers have no −(−32768): there it is max of complements, and ~(a + b) = ~a − b, saturated or not.

#pragma once

#include "lanes.hpp"

namespace {

struct Problem {
    int64_t batch, M, K, N;
    const void *a, *b;
    MatrixStrides a_strides, b_strides;
    void* c;
    void* winners;  // null: not wanted; int32, or int16 where they are narrow
    bool narrow;
    MatrixStrides c_strides;  // of c and of winners
    bool times, negate, ignore_nan;
    int64_t KC, MC, NC;
    int64_t tasks;  // a thread, where a factor is read along k
    int threads;
};

// The part that both ways to multiply share. ⊗ is Op, or Other where the problem asks for it.
template <class T, class C, class Round, class Op, class Other>
struct Semiring {
    using Out = std::conditional_t<std::is_same_v<T, int8_t>, int32_t, T>;
    using Limits = std::numeric_limits<C>;
    static constexpr bool MAY_BE_NAN = !std::is_integral_v<T>;
    static constexpr bool COMPLEMENTS = std::is_same_v<Op, SaturatedPlus>;  // A and C; others negate A, B and C
    static constexpr C LOWEST = Limits::has_infinity ? -Limits::infinity() : Limits::lowest();

    struct Flip {
        C by;
        C operator()(C x) const {
            if constexpr (COMPLEMENTS)
                return x ^ by;
            else
                return C(by * x);
        }
    };

    const Problem& p;
    const Round round;
    const Flip flip;  // copied before a loop that stores values of C, which could be this member

    explicit Semiring(const Problem& problem)
        : p(problem), round(problem.negate), flip{COMPLEMENTS ? C(-problem.negate) : problem.negate ? C(-1) : C(1)} {}

    template <class Visit>
    void with_op(const Visit& visit) const {
        if (COMPLEMENTS ? p.negate : p.times)
            visit(Other{});
        else
            visit(Op{});
    }

    template <class Visit>
    void with_winners(const Visit& visit) const {
        if (!p.winners) return;
        if (p.narrow)
            visit(static_cast<int16_t*>(p.winners));
        else
            visit(static_cast<int32_t*>(p.winners));
    }
};

}  // namespace
