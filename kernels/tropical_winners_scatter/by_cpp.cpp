// The backward of a tropical matrix product on the CPU: dA[m, w] += dC[m, n], dB[w, n] += dC[m, n], w = winner[m, n];
// of a product each term is multiplied by the other factor at the winner.

#include "../runtime/native/native.hpp"

namespace {

struct Scatter {
    int64_t batch, M, K, N;
    const void* dc;
    MatrixStrides dc_strides;
    const void* winners;  // [batch, M, N], contiguous
    const void *a, *b;    // null for sums: the factor is 1
    MatrixStrides a_strides, b_strides;
    void *da, *db;        // contiguous, null: not wanted
    int threads;
};

// Rows of da and columns of db belong to one task each, summed in one order: no atomics, the same bits on any number of
// threads.
template <class Winner>
class Backward {
    static constexpr int64_t ROWS = 4;  // at a time: one row's few winners wait for one another's additions
    static constexpr int64_t COLUMNS = 32;
    static constexpr int64_t AHEAD = 8;  // rows to fetch early: no hardware prefetcher follows their stride

    using Sum = std::conditional_t<(sizeof(Compute) < 4), int32_t, Compute>;

    const Scatter& p;
    const Element *const dc, *const a, *const b;
    const Winner* const winners;
    mutable std::atomic<bool> in_range{true};

  public:
    explicit Backward(const Scatter& scatter)
        : p(scatter), dc(static_cast<const Element*>(scatter.dc)), a(static_cast<const Element*>(scatter.a)),
          b(static_cast<const Element*>(scatter.b)), winners(static_cast<const Winner*>(scatter.winners)) {}

    bool run() const {
        const int64_t row_tasks = p.da ? ceil_div(p.M, ROWS) : 0, column_tasks = p.db ? ceil_div(p.N, COLUMNS) : 0;
        const int64_t tasks = p.batch * (row_tasks + column_tasks);
        const int threads = int(std::max<int64_t>(std::min<int64_t>(p.threads, tasks), 1));
        std::vector<std::vector<Sum>> sums(threads, std::vector<Sum>(p.K * (p.db ? COLUMNS : ROWS)));
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int t) {
            for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
                const int64_t part = task % (row_tasks + column_tasks), batch = task / (row_tasks + column_tasks);
                if (part < row_tasks)
                    to_rows(batch, part * ROWS, sums[t].data());
                else
                    to_columns(batch, (part - row_tasks) * COLUMNS, sums[t].data());
            }
        });
        return in_range;
    }

  private:
    bool is_winner(int64_t k) const {
        if (uint64_t(k) < uint64_t(p.K)) return true;
        if (k != -1) in_range.store(false, std::memory_order_relaxed);
        return false;
    }

    void to_rows(int64_t batch, int64_t m0, Sum* sums) const {
        const int64_t height = std::min(ROWS, p.M - m0);
        const Winner* won = winners + (batch * p.M + m0) * p.N;
        const Element* upstream = dc + batch * p.dc_strides.batch + m0 * p.dc_strides.row;
        const Element* factors = b ? b + batch * p.b_strides.batch : nullptr;
        std::fill_n(sums, ROWS * p.K, Sum(0));
        const auto add = [&](int64_t i, int64_t n) {
            const int64_t k = won[i * p.N + n];
            if (!is_winner(k)) return;
            const Sum g = widen<Sum>(upstream[i * p.dc_strides.row + n * p.dc_strides.column]);
            const int64_t factor = k * p.b_strides.row + n * p.b_strides.column;
            sums[i * p.K + k] += factors ? g * widen<Sum>(factors[factor]) : g;
        };
        if (height == ROWS)
            for (int64_t n = 0; n < p.N; ++n)
                for (int64_t i = 0; i < ROWS; ++i) add(i, n);
        else
            for (int64_t n = 0; n < p.N; ++n)
                for (int64_t i = 0; i < height; ++i) add(i, n);
        Element* target = static_cast<Element*>(p.da) + (batch * p.M + m0) * p.K;
        for (int64_t i = 0; i < height * p.K; ++i) target[i] = rounded(sums[i]);
    }

    void to_columns(int64_t batch, int64_t n0, Sum* sums) const {
        const int64_t width = std::min(COLUMNS, p.N - n0);
        std::fill_n(sums, p.K * COLUMNS, Sum(0));
        for (int64_t m = 0; m < p.M; ++m) {
            const Winner* won = winners + (batch * p.M + m) * p.N + n0;
            const Element* upstream = dc + batch * p.dc_strides.batch + m * p.dc_strides.row + n0 * p.dc_strides.column;
            const Element* factors = a ? a + batch * p.a_strides.batch + m * p.a_strides.row : nullptr;
            __builtin_prefetch(won + AHEAD * p.N);
            __builtin_prefetch(upstream + AHEAD * p.dc_strides.row);
            for (int64_t j = 0; j < width; ++j) {
                const int64_t k = won[j];
                if (!is_winner(k)) continue;
                const Sum g = widen<Sum>(upstream[j * p.dc_strides.column]);
                sums[k * COLUMNS + j] += factors ? g * widen<Sum>(factors[k * p.a_strides.column]) : g;
            }
        }
        Element* target = static_cast<Element*>(p.db) + batch * p.K * p.N + n0;
        for (int64_t k = 0; k < p.K; ++k)
            for (int64_t j = 0; j < width; ++j) target[k * p.N + j] = rounded(sums[k * COLUMNS + j]);
    }

    static Element rounded(Sum x) { return narrow_exact<Element>(Rounding(false)(x)); }
};

}  // namespace

// What by_cpp.py lays out once for calls of the same shapes and strides, as a row of integers. K ≥ 1, no size is 0.
struct Call {
    int64_t batch, M, K, N;
    MatrixStrides dc, a, b;         // in elements
    int64_t times, narrow;    // narrow: winners are int16, else int32
    int64_t threads;
};

// addresses: dc, winners, a, b (which products alone need), dA, dB, these null where not wanted.
extern "C" int tropical_scatter(const Call* call, void* const* addresses) {
    const bool times = call->times != 0;
    const Scatter scatter{call->batch, call->M, call->K, call->N, addresses[0], call->dc, addresses[1],
                          times ? addresses[2] : nullptr, times ? addresses[3] : nullptr, call->a, call->b,
                          addresses[4], addresses[5], static_cast<int>(call->threads)};
    return guarded([&] {
        return call->narrow ? Backward<int16_t>(scatter).run() : Backward<int32_t>(scatter).run();
    });
}
