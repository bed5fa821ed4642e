// Tropical matrix product on the CPU:  C[m, n] = max_k A[m, k] + B[k, n]  (or min; or max of A · B).
//
// Of a product with a few columns (or rows, as Cᵀ = Bᵀ ⊗ Aᵀ) whose other factor is contiguous along K that factor is read
// once, where it lies: few_columns.hpp. Every other is computed by packed blocks: product.hpp. This file chooses between
// the two, and the types that an element type is computed in.

#include "product.hpp"
#include "few_columns.hpp"

namespace {

// C = A ⊗ B is Cᵀ = Bᵀ ⊗ Aᵀ.
Problem transposed(Problem p) {
    const auto turned = [](MatrixStrides s) { return MatrixStrides{s.batch, s.column, s.row}; };
    std::swap(p.M, p.N);
    std::swap(p.a, p.b);
    const MatrixStrides a = p.a_strides;
    p.a_strides = turned(p.b_strides);
    p.b_strides = turned(a);
    p.c_strides = turned(p.c_strides);
    return p;
}

template <class T, class C, class Round, class Op, class Other>
void multiply(const Problem& p) {
    const Problem turned = transposed(p);
    if (AlongK<T, C, Round, Op, Other>::takes(p))
        AlongK<T, C, Round, Op, Other>(p).run();
    else if (AlongK<T, C, Round, Op, Other>::takes(turned))
        AlongK<T, C, Round, Op, Other>(turned).run();
    else  // a column across the vectors would leave most lanes idle
        Product<T, C, Round, Op, Other>(p.N <= FEW && p.N < p.M ? turned : p).run();
}

// Whether no sum or product of any pair leaves int32, with its lowest value to spare for the sign flip of min.
[[maybe_unused]] bool int32_is_wide_enough(const Problem& p) {
    const auto range = [&](const void* x, int64_t rows, int64_t columns, const MatrixStrides& s) {
        const int32_t* source = static_cast<const int32_t*>(x);
        int32_t low = std::numeric_limits<int32_t>::max(), high = std::numeric_limits<int32_t>::lowest();
        for (int64_t i = 0; i < p.batch; ++i)
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t c = 0; c < columns; ++c) {
                    const int32_t value = source[i * s.batch + r * s.row + c * s.column];
                    low = std::min(low, value);
                    high = std::max(high, value);
                }
        return std::pair<int64_t, int64_t>(low, high);
    };
    constexpr int64_t bound = std::numeric_limits<int32_t>::max();
    const auto [a_low, a_high] = range(p.a, p.M, p.K, p.a_strides);
    const auto [b_low, b_high] = range(p.b, p.K, p.N, p.b_strides);
    if (a_low < -bound || b_low < -bound) return false;
    if (p.times) return std::max(-a_low, a_high) * std::max(-b_low, b_high) <= bound;
    return a_high + b_high <= bound && a_low + b_low >= -bound;
}

void run(const Problem& p) {
    if constexpr (std::is_same_v<Element, int16_t>) {
        if (p.times)  // a float holds every product within the bounds, and the others beyond them
            multiply<int16_t, float, Saturated<int16_t, float>, Times, Times>(p);
        else
            multiply<int16_t, int16_t, Unrounded, SaturatedPlus, SaturatedMinus>(p);
    } else if constexpr (std::is_same_v<Element, int8_t>) {  // no sum or product of two leaves 16 bits
        multiply<int8_t, int16_t, Unrounded, Plus, Times>(p);
    } else if constexpr (std::is_same_v<Element, int32_t>) {
        if (int32_is_wide_enough(p))
            multiply<int32_t, int32_t, Unrounded, Plus, Times>(p);
        else  // a double holds every sum of two int32 exactly, and of a product all that decides how it saturates
            multiply<int32_t, double, Saturated<int32_t, double>, Plus, Times>(p);
    } else {
        multiply<Element, Compute, Rounding, Plus, Times>(p);
    }
}

}  // namespace

// What by_cpp.py lays out once for calls of the same shapes and strides. K ≥ 1, no size is 0.
struct Call {
    int64_t batch, M, K, N;
    MatrixStrides a, b;                                // in elements
    int64_t times, negate, ignore_nan, narrow;  // narrow: winners are int16, else int32
    int64_t KC, MC, NC, tasks, threads;
};

// addresses: a, b, C, winners, these null where not wanted.
extern "C" int tropical_forward(const Call* call, void* const* addresses) {
    const MatrixStrides of_c{call->M * call->N, call->N, 1};
    const Problem problem{call->batch, call->M, call->K, call->N, addresses[0], addresses[1], call->a, call->b,
                          addresses[2], addresses[3], call->narrow != 0, of_c, call->times != 0, call->negate != 0,
                          call->ignore_nan != 0, call->KC, call->MC, call->NC, std::max<int64_t>(call->tasks, 1),
                          static_cast<int>(call->threads)};
    return guarded([&] {
        run(problem);
        return true;
    });
}
