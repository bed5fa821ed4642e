// A run as by_cpp.py lays it out: the weights, the samples, all that is kept of them, and how far the iterations are.

#pragma once

#include "../../kernels/runtime/native/native.hpp"

namespace {

using T = Element;

enum Ends : int64_t { GOING, MET, ROUNDED, DIVERGED, STATIONARY };
enum Losses : int64_t { HINGE, CROSS_ENTROPY };
enum Steps : int64_t { POLYAK, SQRT, POWER };

struct Progress {  // Progress of definition.py, field by field
    int64_t iteration, status, worst, idle, raises, best_iteration, right, best_right, best_right_iteration;
    double loss, best_loss, best_right_loss, record, gap, path, longest_path, length;
};

struct Weights {
    T *a, *w1, *w2;  // [p, d], [q, p], [K, q]
};

struct Problem {  // _Problem of by_cpp.py, field by field
    int64_t N, training, d, p, q, K;
    int64_t columns;  // of z that are stored: p, or p / 2 where the second half of A is the negative of the first
    int64_t loss, step, trains_a, has_trees, idle_limit;
    int64_t small;  // leaves that an iteration looks at before it takes threads
    int64_t threads;
    int64_t tail;  // samples that F is of, ⌈mass⌉
    double margin, target, patience;
    double mass;  // M of definition.py: 1 where F is of the worst sample
    const T *x, *xt;  // [N, d]; [d, N], null where A is fixed
    const int32_t* y;
    Weights weights, best, best_right;  // best_right: null without validation samples
    T *z, *zt;    // [N, columns]; [columns, N], null with trees
    T *u, *ut;    // [N, q]; [q, N], null with trees
    T *unit_bound, *score_bound;  // [q, N], [K, N]: no leaf but the winner beats these; null with trees
    T *unit_third, *score_third;  // likewise: no leaf but the winner and the runner-up
    T *f, *losses;  // [K, N], [N]
    void *unit_winner, *score_winner;  // I [q, N], J [K, N]
    void *unit_second, *score_second;  // the runners-up, likewise; null with trees
    void *unit_trees, *score_trees;    // [N, q, ceil2(p)], [N, K, ceil2(q)]: trees alone
    uint8_t* is_right;                 // [N]
    int64_t* times_worst;              // [training], of all ranks
    Progress* progress;
    // Where several ranks share the samples out, else null: puts the worst sample of all ranks in the place of this
    // rank's, in `seen` and `seen_x`; whether that failed.
    int (*exchange)();
    double* seen;   // [5 + 4 · routes]: see Seen
    T* seen_x;      // [d], null where A is fixed
    int64_t first;  // the number of the first of this rank's samples
};

// The worst sample, as ranks tell each other: a view of Problem::seen.
struct Seen {
    double loss, n, largest;
    double right;   // validation samples classified rightly, of all ranks
    double routes;  // that follow; negative: nothing has been exchanged yet
};
struct Route {
    double k, j, i, c;  // c ∂f_k, by unit j and leaf i
};

}  // namespace
