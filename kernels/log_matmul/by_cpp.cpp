// The log semiring on the CPU, forward and backward:
//
//   C[m, n] = top + T log Σ_k exp((A[m, k] + B[k, n] − top) / T),   top[m, n] = max_k A[m, k] + B[k, n]
//   w[m, k, n] = share · exp((A[m, k] + B[k, n] − top) / T),        share[m, n] = 1 / Σ_k exp(…)
//   dA[m, k] = Σ_n dC[m, n] w[m, k, n],                             dB[k, n] = Σ_m dC[m, n] w[m, k, n]
//
//   task = a panel: one vector of columns of B, packed, with some rows of A (forward); one vector of k, with all rows of A
//          and all columns of B (backward), so that both gradients are made of the same exponentials
//   tile = ROWS rows of it
//
// An exponential takes some 24 instructions: it is all that counts. So the largest candidate is found first, which takes
// two, instead of along the way, which would take a second exponential wherever the maximum rises.
//
// Sums run in the order of k, n or m, CHUNK terms at a time: neither threads nor the width of vectors changes a bit.

#include "../runtime/native/exponential.hpp"
#include "../runtime/native/logarithm.hpp"

#include <cstdlib>
#include <memory>

namespace {

using Vector = Simd<Compute>::Vector;
constexpr int W = Simd<Compute>::WIDTH;
constexpr int ROWS = 4;      // of a tile; part of the order in which dB is summed
constexpr int64_t CHUNK = 64;  // terms of a sum that are added up by themselves, so that its error grows more slowly

// What by_cpp.py lays out once for calls of the same shapes and strides. No size is 0.
struct Call {
    int64_t batch, M, K, N;
    MatrixStrides a, b, c;  // in elements; c: of dC, in the backward
    int64_t keeps, ignore_nan;
    int64_t rows;  // of a task of the forward
    int64_t threads;
};

// (x − y) / T as (scale · x − scale · y) · per_degree: x − y may be beyond the range where the quotient is not.
struct Temperature {
    Compute scale, degree, per_degree;

    explicit Temperature(double T) : scale(T > 1 ? 0.25 : 1) {
        degree = std::max(Compute(T), std::numeric_limits<Compute>::min()) * scale;
        per_degree = 1 / degree;
    }
};

// x = exp((x − top) / T) of ROWS vectors, given scale · top: a vector of each, or a number. Where infinities or NaN can be,
// EXACT minds that ∞ − ∞ is to give 1.
template <bool EXACT, class Top>
inline void take_weights(Vector (&x)[ROWS], const Top (&scaled_top)[ROWS], const Temperature& T) {
    [[maybe_unused]] Vector scaled[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) {
        scaled[i] = x[i] * T.scale;
        x[i] = (scaled[i] - scaled_top[i]) * T.per_degree;
    }
    exponentials<Compute>(x);
    if constexpr (EXACT)
        for (int i = 0; i < ROWS; ++i) x[i] = scaled[i] == scaled_top[i] ? Vector{} + 1 : x[i];
}

// A[m, k] + B[k, n], rounded to the element type.
template <bool EXACT>
struct Candidate {
    const Rounding round{false};
    const bool ignore_nan;

    template <class A>
    Vector operator()(A a, Vector b) const {
        const Vector x = round(a + b);
        if constexpr (EXACT)
            if (ignore_nan) return x == x ? x : Vector{} - std::numeric_limits<Compute>::infinity();
        return x;
    }
};

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<Compute[], Free>;

Memory allocated(int64_t count) {
    const std::size_t bytes = (count * sizeof(Compute) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    Memory memory(static_cast<Compute*>(std::aligned_alloc(CACHE_LINE, bytes)));
    if (!memory) throw std::bad_alloc();
    return memory;
}

// Where a matrix lies in memory.
struct Source {
    const Element* first;
    int64_t row, column;

    Source(const void* x, const MatrixStrides& strides, int64_t batch)
        : first(static_cast<const Element*>(x) + batch * strides.batch), row(strides.row), column(strides.column) {}

    Compute at(int64_t i, int64_t j) const { return widen<Compute>(first[i * row + j * column]); }

    // `count` numbers of row i: where they lie, or else in the copy.
    const Compute* row_of(int64_t i, int64_t count, Compute* copy) const {
        if (std::is_same_v<Element, Compute> && column == 1) return reinterpret_cast<const Compute*>(first + i * row);
        for (int64_t j = 0; j < count; ++j) copy[j] = at(i, j);
        return copy;
    }
};

// Rows of W elements: `width` of each row i < count of x, from column j on, and zeros. Returns their class.
int pack(const Source& x, int64_t count, int64_t j, int64_t width, bool transposed, Compute* panel) {
    for (int64_t i = 0; i < count; ++i)
        for (int64_t l = 0; l < W; ++l)
            panel[i * W + l] = l < width ? (transposed ? x.at(j + l, i) : x.at(i, j + l)) : Compute(0);
    return classify(panel, count * W);
}

// The first `width` numbers of x, values of T already.
template <class T>
void put(Vector x, T* target, int64_t width) {
    alignas(CACHE_LINE) Compute numbers[W];
    store(numbers, x);
    for (int64_t l = 0; l < width; ++l) target[l] = narrow_exact<T>(numbers[l]);
}

// ------------------------------------------------------------------------------------------------ forward

template <bool EXACT>
void forward_tile(const Compute* const* rows, const Compute* panel, int64_t K, const Candidate<EXACT>& candidate,
                  const Temperature& T, Vector* top, Vector* total) {
    Vector best[ROWS];
    for (Vector& x : best) x = Vector{} - std::numeric_limits<Compute>::infinity();
    for (int64_t k = 0; k < K; ++k) {
        const Vector b = load<Vector>(panel + k * W);
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; ++i) best[i] = larger(candidate(rows[i][k], b), best[i]);
    }
    Vector scaled[ROWS], sum[ROWS] = {};
    for (int i = 0; i < ROWS; ++i) scaled[i] = best[i] * T.scale;
    for (int64_t start = 0; start < K; start += CHUNK) {
        Vector part[ROWS] = {};
        for (int64_t k = start; k < std::min(start + CHUNK, K); ++k) {
            const Vector b = load<Vector>(panel + k * W);
            Vector x[ROWS];
            for (int i = 0; i < ROWS; ++i) x[i] = candidate(rows[i][k], b);
            take_weights<EXACT>(x, scaled, T);
            for (int i = 0; i < ROWS; ++i) part[i] += x[i];
        }
        for (int i = 0; i < ROWS; ++i) sum[i] += part[i];
    }
    for (int i = 0; i < ROWS; ++i) top[i] = best[i];
    for (int i = 0; i < ROWS; ++i) total[i] = sum[i];
}

bool all_finite(const Vector* x) {
    bool finite = true;
    for (int i = 0; i < ROWS; ++i)
        for (int l = 0; l < W; ++l) finite &= x[i][l] - x[i][l] == 0;
    return finite;
}

struct Parts {
    Element *c, *top;
    Compute* share;
};

void forward(const Call& p, const void* a, const void* b, double temperature, const Parts& out) {
    const Temperature T(temperature);
    const Rounding round(false);
    const int64_t panels = ceil_div(p.N, W), blocks = ceil_div(p.M, p.rows), K = p.K;
    const int threads = int(std::min(p.threads, p.batch * panels * blocks));
    const int64_t room = K * (W + ROWS);
    const Memory memory = allocated(threads * room);
    for_each_task(threads, p.batch * panels * blocks, [&](int thread, int64_t task) {
        const int64_t batch = task / (panels * blocks), n = task / blocks % panels * W, m0 = task % blocks * p.rows;
        const Source A(a, p.a, batch), B(b, p.b, batch);
        Compute* const panel = memory.get() + thread * room;
        Compute* const copy = panel + K * W;
        const int64_t width = std::min<int64_t>(W, p.N - n);
        const int special = pack(B, K, n, width, false, panel);
        for (int64_t m = m0; m < std::min(m0 + p.rows, p.M); m += ROWS) {
            const int64_t height = std::min<int64_t>(ROWS, p.M - m);
            const Compute* rows[ROWS];
            int of_rows = 0;
            for (int64_t i = 0; i < ROWS; ++i) {  // those below the last are the last again
                const int64_t row = m + std::min(i, height - 1);
                rows[i] = A.row_of(row, K, copy + i * K);
                of_rows |= classify(rows[i], K);
            }
            Vector top[ROWS], total[ROWS];
            if (!special && !of_rows) forward_tile<false>(rows, panel, K, {}, T, top, total);
            if (special || of_rows || !all_finite(top))  // a sum of finite numbers may be infinite
                forward_tile<true>(rows, panel, K, {Rounding(false), p.ignore_nan != 0}, T, top, total);
            for (int64_t i = 0; i < height; ++i) {
                const int64_t at = (batch * p.M + m + i) * p.N + n;
                // of a total that is 1 or more: a normal number, or NaN
                const Vector log = total[i] == total[i] ? logarithm<Compute>(total[i]) : total[i];
                const Vector value = (top[i] * T.scale + T.degree * log) / T.scale;
                put(round(value), out.c + at, width);
                if (!p.keeps) continue;
                put(top[i], out.top + at, width);
                // where every candidate is −∞ there is nothing to route
                const auto nothing = (top[i] == -std::numeric_limits<Compute>::infinity()) & (total[i] == total[i]);
                put(nothing ? Vector{} : 1 / total[i], out.share + at, width);
            }
        }
    });
}

// ------------------------------------------------------------------------------------------------ backward

// dA of ROWS rows and a vector of k; what flows to B's panel [N][W] is added to `down`.
template <bool EXACT>
void backward_tile(const Vector* a, const Compute* panel, const Compute* const* top, const Compute* const* slope, int64_t N,
                   const Candidate<EXACT>& candidate, const Temperature& T, Vector* sum, Compute* down) {
    Vector total[ROWS] = {};
    for (int64_t start = 0; start < N; start += CHUNK) {
        Vector part[ROWS] = {};
        for (int64_t n = start; n < std::min(start + CHUNK, N); ++n) {
            const Vector b = load<Vector>(panel + n * W);
            Vector x[ROWS], flow = {};
            for (int i = 0; i < ROWS; ++i) x[i] = candidate(a[i], b);
            take_weights<EXACT>(x, {top[0][n], top[1][n], top[2][n], top[3][n]}, T);
            for (int i = 0; i < ROWS; ++i) {
                part[i] += slope[i][n] * x[i];
                flow += slope[i][n] * x[i];
            }
            store(down + n * W, load<Vector>(down + n * W) + flow);
        }
        for (int i = 0; i < ROWS; ++i) total[i] += part[i];
    }
    for (int i = 0; i < ROWS; ++i) sum[i] = total[i];
}

struct Slopes {
    const Element *dc, *top;  // dc in the strides of the call
    const Compute* share;     // [B, M, N], as top
    Element *da, *db;         // null: not wanted
};

void backward(const Call& p, const void* a, const void* b, double temperature, const Slopes& s) {
    const Temperature T(temperature);
    const Rounding round(false);
    // of each output scale · top and dC · share, which all panels read; rows below the last flow nothing
    const int64_t M = ceil_div(p.M, ROWS) * ROWS, K = p.K, N = p.N, tiles = M / ROWS;
    const Memory outputs = allocated(2 * p.batch * M * N);
    Compute* const tops = outputs.get();
    Compute* const slopes = tops + p.batch * M * N;
    std::vector<char> unusual(p.batch * tiles);
    for_each_task(p.threads, p.batch * tiles, [&](int, int64_t task) {
        const int64_t batch = task / tiles, m = task % tiles * ROWS;
        const Source dC(s.dc, p.c, batch);
        for (int64_t i = 0; i < ROWS; ++i) {
            const int64_t row = std::min(m + i, p.M - 1), from = (batch * p.M + row) * N, to = (batch * M + m + i) * N;
            for (int64_t n = 0; n < N; ++n) {
                const Compute top = widen<Compute>(s.top[from + n]);
                tops[to + n] = top * T.scale;
                slopes[to + n] = m + i < p.M ? dC.at(row, n) * s.share[from + n] : Compute(0);
            }
            unusual[task] |= classify(tops + to, N) != 0;
        }
    });

    const int64_t panels = ceil_div(K, W), room = 2 * N * W;
    const int threads = int(std::min(p.threads, p.batch * panels));
    const Memory memory = allocated(threads * room);
    for_each_task(threads, p.batch * panels, [&](int thread, int64_t task) {
        const int64_t batch = task / panels, k = task % panels * W, width = std::min<int64_t>(W, K - k);
        const Source A(a, p.a, batch), B(b, p.b, batch);
        Compute* const panel = memory.get() + thread * room;
        Compute* const down = panel + N * W;
        const int special = pack(B, N, k, width, true, panel);
        std::fill_n(down, N * W, Compute(0));
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t m = tile * ROWS;
            alignas(CACHE_LINE) Compute of_a[ROWS * W];
            const Compute *top[ROWS], *slope[ROWS];
            for (int64_t i = 0; i < ROWS; ++i) {
                top[i] = tops + (batch * M + m + i) * N;
                slope[i] = slopes + (batch * M + m + i) * N;
                for (int64_t l = 0; l < W; ++l)
                    of_a[i * W + l] = l < width ? A.at(std::min(m + i, p.M - 1), k + l) : Compute(0);
            }
            Vector rows[ROWS], sum[ROWS];
            for (int i = 0; i < ROWS; ++i) rows[i] = load<Vector>(of_a + i * W);
            if (special || unusual[batch * tiles + tile] || classify(of_a, ROWS * W))
                backward_tile<true>(rows, panel, top, slope, N, {Rounding(false), p.ignore_nan != 0}, T, sum, down);
            else
                backward_tile<false>(rows, panel, top, slope, N, {}, T, sum, down);
            for (int64_t i = 0; s.da && i < std::min<int64_t>(ROWS, p.M - m); ++i)
                put(round(sum[i]), s.da + (batch * p.M + m + i) * K + k, width);
        }
        for (int64_t l = 0; s.db && l < width; ++l)
            for (int64_t n = 0; n < N; ++n)
                s.db[(batch * K + k + l) * N + n] = narrow_exact<Element>(Compute(round(down[n * W + l])));
    });
}

}  // namespace

// addresses: a, b, the temperature, c, top and share, the last two null where they are not kept.
extern "C" int log_forward(const Call* call, void* const* addresses) {
    return guarded([&] {
        forward(*call, addresses[0], addresses[1], *static_cast<const double*>(addresses[2]),
                {static_cast<Element*>(addresses[3]), static_cast<Element*>(addresses[4]),
                 static_cast<Compute*>(addresses[5])});
        return true;
    });
}

// addresses: dc, top, share, a, b, the temperature, da and db, null where they are not wanted.
extern "C" int log_backward(const Call* call, void* const* addresses) {
    return guarded([&] {
        backward(*call, addresses[3], addresses[4], *static_cast<const double*>(addresses[5]),
                 {static_cast<const Element*>(addresses[0]), static_cast<const Element*>(addresses[1]),
                  static_cast<const Compute*>(addresses[2]), static_cast<Element*>(addresses[6]),
                  static_cast<Element*>(addresses[7])});
        return true;
    });
}
