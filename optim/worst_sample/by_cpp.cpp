// The iterations of definition.py, many in one call, touching only what moved.
//
// A step moves a few weights, and with each of them one leaf of the minimum (n, j) or the maximum (n, k) of every
// sample n. Two memories find the new winner, winners.hpp and trees.hpp, and both stay equal to what a dense evaluation
// would find, bit for bit. loop.hpp makes the steps; here are the functions that by_cpp.py calls.
//
// A value is always computed from its leaf, never by adding the step to it. Samples do not depend on each other, so any
// number of threads, in any order, leave the same bits.

#include "winners.hpp"
#include "trees.hpp"
#include "loop.hpp"

namespace {

constexpr int LOST = -1;  // the status of a run whose exchange has failed

template <class Index>
int run(const Problem& s, int64_t iterations, double* trace, int64_t* done) {
    bool lost = false;
    const int status = guarded([&] {
        try {
            if (s.has_trees) *done = Loop<Trees<Index>, Index>{s}.run(iterations, trace);
            else *done = Loop<Winners<Index>, Index>{s}.run(iterations, trace);
        } catch (const Lost&) {
            lost = true;
        }
        return true;
    });
    return lost ? LOST : status;
}

template <class Memory, class Index>
void follow(const Problem& s, const Moves& moves) {
    Loop<Memory, Index>{s}.apply(moves);
}

}  // namespace

extern "C" {

// z, and its transpose where there is one.
int worst_sample_project(const Problem* s) {
    return guarded([&] {
        const int64_t blocks = ceil_div(s->N, BLOCK);
        std::atomic<int64_t> next{0};
        in_parallel(int(std::min(s->threads, blocks)), [&](int) {
            for (int64_t block; (block = next.fetch_add(1, std::memory_order_relaxed)) < blocks;)
                for (int64_t i = 0; i < s->columns; ++i) project(*s, i, block * BLOCK, std::min((block + 1) * BLOCK, s->N));
        });
        return true;
    });
}

// All activations and what is kept of them, of z and the weights; then ℓ.
int worst_sample_build(const Problem* s, int wide) {
    return guarded([&] {
        if (s->has_trees) wide ? Trees<int32_t>{*s}.build() : Trees<int16_t>{*s}.build();
        else wide ? Winners<int32_t>{*s}.build() : Winners<int16_t>{*s}.build();
        uint8_t all[BLOCK];
        std::fill(all, all + BLOCK, uint8_t(1));
        for (int64_t n = 0; n < s->N;) {  // no block holds both training and validation samples
            const int64_t count = std::min(BLOCK, (n < s->training ? s->training : s->N) - n);
            judge(*s, n, count, all);
            n += count;
        }
        return true;
    });
}

// Weights have moved by another's hand: leaves (j, i), readouts (k, j) and rows of A.
int worst_sample_follow(const Problem* s, int wide, const int64_t* leaves, int64_t leaf_count, const int64_t* readouts,
                        int64_t readout_count, const int64_t* rows, int64_t row_count) {
    return guarded([&] {
        Moves moves;
        for (int64_t m = 0; m < leaf_count; ++m) moves.leaves.push_back({leaves[2 * m], leaves[2 * m + 1]});
        for (int64_t m = 0; m < readout_count; ++m) moves.readouts.push_back({readouts[2 * m], readouts[2 * m + 1]});
        moves.rows.assign(rows, rows + row_count);
        if (s->has_trees) wide ? follow<Trees<int32_t>, int32_t>(*s, moves) : follow<Trees<int16_t>, int16_t>(*s, moves);
        else wide ? follow<Winners<int32_t>, int32_t>(*s, moves) : follow<Winners<int16_t>, int16_t>(*s, moves);
        return true;
    });
}

int worst_sample_run(const Problem* s, int wide, int64_t iterations, double* trace, int64_t* done) {
    return wide ? run<int32_t>(*s, iterations, trace, done) : run<int16_t>(*s, iterations, trace, done);
}

}
