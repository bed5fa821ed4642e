// The iterations of definition.py, many in one call, touching only what moved.
//
// A step moves a few weights, and with each of them one leaf of the minimum (n, j) or the maximum (n, k) of every
// sample n. Two memories find the new winner, and both stay equal to what a dense evaluation would find, bit for bit:
//
//   Winners   u, I, f, J, the runner-up, a bound that no leaf but the winner beats, and one that no leaf but these two
//             beats. The winner stays as long as it beats the first bound. Where it does not, the better of the two
//             wins as long as it beats the second. Where that fails too a leaf that attains the second bound wins, if
//             there is one; else all leaves are read again. O(1) a sample, and O(p) for the few that are read.
//   Trees     a tournament tree over the leaves of each (n, j) and (n, k): O(log p) and O(log q), for two bytes
//             a leaf. Nesterov's short computational trees, which hold winners here, not values.
//
// n* comes from a tournament of two levels: the largest ℓ of each block of samples in which an ℓ changed, then of all blocks.
//
// A value is always computed from its leaf, never by adding the step to it. All weights change before the first leaf is
// looked at; a leaf that is read before its turn is then merely found unchanged. Samples do not depend on each other, so
// any number of threads, in any order, leave the same bits.

#include "../../kernels/runtime/native/native.hpp"

#include <cmath>
#include <utility>

namespace {

using T = Element;

enum Ends : int64_t { GOING, MET, ROUNDED, DIVERGED };
enum Losses : int64_t { HINGE, CROSS_ENTROPY };
enum Steps : int64_t { POLYAK, SQRT, POWER };

struct Progress {  // definition.Progress
    int64_t iteration, status, worst, idle, raises, best_iteration, right, best_right, best_right_iteration;
    double loss, best_loss, best_right_loss, record, gap, path, longest_path, length;
};

struct Weights {
    T *a, *w1, *w2;  // [p, d], [q, p], [K, q]
};

struct Problem {  // cpu._Problem
    int64_t N, training, d, p, q, K;
    int64_t columns;  // of z that are stored: p, or p / 2 where the second half of A is the negative of the first
    int64_t loss, step, trains_a, has_trees, idle_limit;
    int64_t small;  // leaves that an iteration looks at before it takes threads
    int64_t threads;
    double margin, target, patience;
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
    int64_t* times_worst;              // [training]
    Progress* progress;
};

template <class X, int COUNT>
struct Lanes {
    typedef X Vector __attribute__((vector_size(COUNT * sizeof(X))));
};

template <bool MAXIMUM>
struct Order {
    template <class V>
    static auto beats(V x, V y) { return MAXIMUM ? x > y : x < y; }
};

// The best three of ±a_i + b_i over some i, in lanes.
template <bool MAXIMUM>
struct Podium {
    using Best = Order<MAXIMUM>;
    using Vector = typename Simd<T>::Vector;
    static constexpr T WORST = MAXIMUM ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::infinity();
    static constexpr int64_t WIDTH = Simd<T>::WIDTH, LANES = 2;
    T first = WORST, second = WORST, third = WORST;

    template <class V>
    static void enter(V x, V& first, V& second, V& third) {
        const V beaten = Best::beats(x, first) ? first : x;
        first = Best::beats(x, first) ? x : first;
        const V beaten_twice = Best::beats(beaten, second) ? second : beaten;
        second = Best::beats(beaten, second) ? beaten : second;
        third = Best::beats(beaten_twice, third) ? beaten_twice : third;
    }

    template <class Sum>
    void enter_all(const T* a, const T* b, int64_t count, const Sum& sum) {
        Vector firsts[LANES], seconds[LANES], thirds[LANES];
        for (int64_t r = 0; r < LANES; ++r) firsts[r] = seconds[r] = thirds[r] = Vector{} + WORST;
        int64_t i = 0;
        for (; i + LANES * WIDTH <= count; i += LANES * WIDTH)
            for (int64_t r = 0; r < LANES; ++r) {
                const int64_t at = i + r * WIDTH;
                enter(Vector(sum(load<Vector>(a + at), load<Vector>(b + at))), firsts[r], seconds[r], thirds[r]);
            }
        for (int64_t r = 1; r < LANES; ++r)
            for (const Vector& x : {firsts[r], seconds[r], thirds[r]}) enter(x, firsts[0], seconds[0], thirds[0]);
        for (const Vector& x : {firsts[0], seconds[0], thirds[0]})
            for (int64_t r = 0; r < WIDTH; ++r) enter(T(x[r]), first, second, third);
        for (; i < count; ++i) enter(T(sum(a[i], b[i])), first, second, third);
    }
};

constexpr auto PLUS = [](auto x, auto y) { return x + y; };
constexpr auto MINUS = [](auto x, auto y) { return y - x; };

// The first i but `without` at which the sum is `value`; −1 where there is none.
template <class Sum>
int64_t find(const T* a, const T* b, int64_t count, const Sum& sum, T value, int64_t without = -1) {
    constexpr int64_t STRIDE = 64;
    for (int64_t begin = 0; begin < count; begin += STRIDE) {
        const int64_t end = std::min(begin + STRIDE, count);
        int found = 0;
        for (int64_t i = begin; i < end; ++i) found |= sum(a[i], b[i]) == value;
        for (int64_t i = begin; found && i < end; ++i)
            if (sum(a[i], b[i]) == value && i != without) return i;
    }
    return -1;
}

// The winners of minima or maxima, and what is known of their rivals.
template <class Index>
struct Standings {
    T* value;
    Index* winner;
    T* bound;  // no leaf but the winner beats this
    Index* second;
    T* third;  // no leaf but these two beats this; most often attained

    Standings operator+(int64_t n) const { return {value + n, winner + n, bound + n, second + n, third + n}; }

    // Of all leaves anew, given by `find(value, without)`.
    template <bool MAXIMUM, class Find>
    void decide(const Podium<MAXIMUM>& podium, const Find& find) const {
        const int64_t first = find(podium.first, int64_t(-1));
        const int64_t next = first < 0 ? -1 : find(podium.second, first);
        *value = podium.first, *bound = podium.second, *third = podium.third;
        *winner = Index(std::max<int64_t>(first, 0));  // NaN: the run has diverged, and ends
        *second = next < 0 ? *winner : Index(next);    // a single leaf
    }

    // The winner no longer beats the bound: whether winner and runner-up, at `leaf(i)`, decide it.
    template <bool MAXIMUM, class Leaf>
    bool settle(const Leaf& leaf) const {
        using Best = Order<MAXIMUM>;
        Index first = *winner, next = *second;
        T x = leaf(first), y = leaf(next);
        if (Best::beats(y, x) || (x == y && next < first)) std::swap(first, next), std::swap(x, y);
        if (!Best::beats(x, *third)) return false;
        *value = x, *winner = first, *second = next;
        *bound = Best::beats(y, *third) ? y : *third;
        return true;
    }

    // Neither of the two beats the others: whether one of these attains their bound. Features of few values, such as
    // pixels, tie so often that another leaf has mostly kept the value of the third.
    template <class Find>
    bool tie(const Find& find) const {
        const int64_t first = find(*third, int64_t(-1));
        if (first < 0) return false;
        *value = *bound = *third, *winner = Index(first);
        return true;
    }
};

struct Moves {
    std::vector<int64_t> rows;                           // i: z_·i, and with it a leaf of every unit
    std::vector<std::pair<int64_t, int64_t>> leaves;     // (j, i)
    std::vector<std::pair<int64_t, int64_t>> readouts;   // (k, j)
    std::vector<int64_t> whole;                          // units of which so many leaves moved that all are read
    // Leaves to look at, of each sample.
    int64_t work(int64_t p, int64_t q) const {
        return int64_t(rows.size() * q + leaves.size() + readouts.size() + whole.size() * p);
    }
};

// Calls `found(n)` for the samples whose flag is set; most are not.
template <class Found>
inline void each_set(const uint8_t* flags, int64_t count, const Found& found) {
    for (int64_t n = 0; n < count; n += 8) {
        uint64_t eight;
        std::memcpy(&eight, flags + n, 8);
        if (eight == 0) continue;
        for (int64_t m = n; m < std::min(n + 8, count); ++m)
            if (flags[m]) found(m);
    }
}

// ------------------------------------------------------------------------------------------------ samples

double log_sum_exp(const Problem& s, int64_t n, double* softmax) {
    double top = s.f[n];
    for (int64_t k = 1; k < s.K; ++k) top = std::max(top, double(s.f[k * s.N + n]));
    double total = 0;
    for (int64_t k = 0; k < s.K; ++k) {
        const double term = std::exp(double(s.f[k * s.N + n]) - top);
        total += term;
        if (softmax) softmax[k] = term;
    }
    if (softmax)
        for (int64_t k = 0; k < s.K; ++k) softmax[k] /= total;
    return top + std::log(total);
}

int64_t best_rival(const Problem& s, int64_t n) {
    int64_t rival = -1;
    for (int64_t k = 0; k < s.K; ++k)
        if (k != s.y[n] && (rival < 0 || s.f[k * s.N + n] + T(s.margin) > s.f[rival * s.N + n] + T(s.margin))) rival = k;
    return rival;
}

constexpr int64_t BLOCK = 512;  // samples that a task takes, and whose largest loss is kept

// Of some samples, all for training or none: ℓ_n, or whether the first highest score is that of their class.
void judge(const Problem& s, int64_t begin, int64_t count, const uint8_t* touched) {
    const int32_t* y = s.y + begin;
    T own[BLOCK], top[BLOCK];
    std::fill(top, top + count, -std::numeric_limits<T>::infinity());
    if (begin >= s.training) {
        int32_t predicted[BLOCK] = {};
        for (int64_t k = 0; k < s.K; ++k) {
            const T* f = s.f + k * s.N + begin;
            for (int64_t n = 0; n < count; ++n) {
                predicted[n] = f[n] > top[n] ? int32_t(k) : predicted[n];
                top[n] = f[n] > top[n] ? f[n] : top[n];
            }
        }
        for (int64_t n = 0; n < count; ++n) s.is_right[begin + n] = predicted[n] == y[n];
        return;
    }
    const T margin = T(s.margin);
    T* losses = s.losses + begin;
    if (s.loss == CROSS_ENTROPY)
        return each_set(touched, count, [&](int64_t n) {
            losses[n] = T(log_sum_exp(s, begin + n, nullptr) - double(s.f[y[n] * s.N + begin + n]));
        });
    for (int64_t k = 0; k < s.K; ++k) {
        const T* f = s.f + k * s.N + begin;
        for (int64_t n = 0; n < count; ++n) {
            const bool is_own = y[n] == int32_t(k);
            const T rival = is_own ? -std::numeric_limits<T>::infinity() : f[n] + margin;
            own[n] = is_own ? f[n] : own[n];
            top[n] = rival > top[n] ? rival : top[n];
        }
    }
    for (int64_t n = 0; n < count; ++n) losses[n] = top[n] - own[n] < 0 ? T(0) : top[n] - own[n];
}

// z_·i of some samples: in the order of the features, without those that weigh nothing.
void project(const Problem& s, int64_t i, int64_t begin, int64_t end) {
    const T* weights = s.weights.a + i * s.d;
    T sum[512];
    for (int64_t from = begin; from < end; from += 512) {
        const int64_t count = std::min<int64_t>(512, end - from);
        std::fill(sum, sum + count, T(0));
        for (int64_t l = 0; l < s.d; ++l) {
            const T weight = weights[l];
            if (weight == 0) continue;
            if (s.xt) {
                const T* x = s.xt + l * s.N + from;
                for (int64_t n = 0; n < count; ++n) sum[n] += x[n] * weight;
            } else {
                const T* x = s.x + from * s.d + l;
                for (int64_t n = 0; n < count; ++n) sum[n] += x[n * s.d] * weight;
            }
        }
        for (int64_t n = 0; n < count; ++n) s.z[(from + n) * s.columns + i] = sum[n];
        if (s.zt) std::copy(sum, sum + count, s.zt + i * s.N + from);
    }
}

// ------------------------------------------------------------------------------------------------ winners

template <class Index>
struct Winners {
    const Problem& s;
    const Standings<Index> units{s.ut, static_cast<Index*>(s.unit_winner), s.unit_bound,
                                 static_cast<Index*>(s.unit_second), s.unit_third};
    const Standings<Index> scores{s.f, static_cast<Index*>(s.score_winner), s.score_bound,
                                  static_cast<Index*>(s.score_second), s.score_third};
    // [blocks, K]: no `third` of the block's scores is lower; a leaf that was and is below it concerns none of them
    std::vector<T> floors = std::vector<T>((ceil_div(s.N, BLOCK) + 1) * s.K, -std::numeric_limits<T>::infinity());

    struct Block {
        const int64_t begin, count;
        T* const floors;  // [K]
        // flags: whose winner no longer beats the bound; whose unit at hand has changed; of which some score has changed
        alignas(CACHE_LINE) uint8_t unsure[BLOCK] = {}, changed[BLOCK] = {}, touched[BLOCK] = {};
    };

    // One leaf of some samples has moved: to sign · leaf + weight. Returns the least `third`.
    template <bool MAXIMUM>
    static T enter(const T* leaf, T sign, T weight, Index index, int64_t count, const Standings<Index>& all,
                   uint8_t* unsure, uint8_t* changed) {
        constexpr int WIDTH = Simd<T>::WIDTH;
        typename Simd<T>::Vector least = typename Simd<T>::Vector{} + std::numeric_limits<T>::infinity();
        typename Lanes<T, 1>::Vector least_left = {std::numeric_limits<T>::infinity()};
        int64_t n = 0;
        for (; n + WIDTH <= count; n += WIDTH)
            enter_lanes<MAXIMUM, WIDTH>(leaf + n, sign, weight, index, all + n, unsure + n, changed + n, least);
        for (; n < count; ++n)
            enter_lanes<MAXIMUM, 1>(leaf + n, sign, weight, index, all + n, unsure + n, changed + n, least_left);
        T result = least_left[0];
        for (int r = 0; r < WIDTH; ++r) result = std::min(result, T(least[r]));
        return result;
    }

    template <bool MAXIMUM, int LANES>
    static inline void enter_lanes(const T* leaf, T sign, T weight, Index index, const Standings<Index>& all,
                                   uint8_t* unsure, uint8_t* changed, typename Lanes<T, LANES>::Vector& least) {
        using Best = Order<MAXIMUM>;
        using Wide = typename Simd<T>::Index;  // as wide as T, so that comparisons of both make masks of one kind
        using V = typename Lanes<T, LANES>::Vector;
        using W = typename Lanes<Wide, LANES>::Vector;
        using Narrow = typename Lanes<Index, LANES>::Vector;
        using Flags = typename Lanes<uint8_t, LANES>::Vector;
        const V v = load<V>(leaf) * sign + weight, before = load<V>(all.value), bound = load<V>(all.bound);
        const V third = load<V>(all.third);
        const W won = __builtin_convertvector(load<Narrow>(all.winner), W);
        const W second = __builtin_convertvector(load<Narrow>(all.second), W);
        const W is_winner = won == Wide(index), stays = Best::beats(v, bound);
        const W wins = ~is_winner & (Best::beats(v, before) | ((v == before) & (won > Wide(index))));
        const W follows = ~is_winner & ~wins & stays;
        const W is_third = ~is_winner & (second != Wide(index));  // or worse, until now
        const V now = (wins | (is_winner & stays)) ? v : before, others = Best::beats(v, third) ? v : third;
        const V nobody_else = (wins | follows) ? bound : others;
        const V now_third = is_third ? nobody_else : third, followed = follows ? v : bound;
        store(all.third, now_third);
        store(all.bound, V(wins ? before : followed));
        const W now_second = follows ? W{} + Wide(index) : second;
        store(all.second, __builtin_convertvector(W(wins ? won : now_second), Narrow));
        store(all.winner, __builtin_convertvector(W(wins ? W{} + Wide(index) : won), Narrow));
        store(all.value, now);
        store(unsure, __builtin_convertvector(W(is_winner & ~stays), Flags));
        store(changed, __builtin_convertvector(W(now != before), Flags));
        least = now_third < least ? now_third : least;
    }

    // The winner has fallen behind.
    void decide_score(int64_t n, int64_t k) const {
        const T *u = s.u + n * s.q, *w = s.weights.w2 + k * s.q;
        const Standings<Index> here = scores + (k * s.N + n);
        const auto at = [&](T value, int64_t without) { return find(u, w, s.q, PLUS, value, without); };
        if (here.template settle<true>([&](int64_t j) { return u[j] + w[j]; }) || here.tie(at)) return;
        Podium<true> podium;
        podium.enter_all(u, w, s.q, PLUS);
        here.decide(podium, at);
    }

    // The scores of class k, after the leaf j has moved.
    void readout(Block& block, int64_t k, int64_t j) const {
        const Standings<Index> here = scores + (k * s.N + block.begin);
        const T weight = s.weights.w2[k * s.q + j];
        uint8_t changed[BLOCK];
        T& floor = block.floors[k];
        floor = enter<true>(s.ut + j * s.N + block.begin, T(1), weight, Index(j), block.count, here, block.unsure, changed);
        for (int64_t m = 0; m < block.count; ++m) block.touched[m] |= changed[m];
        each_set(block.unsure, block.count, [&](int64_t m) {
            const T before = here.value[m];
            decide_score(block.begin + m, k);
            floor = std::min(floor, here.third[m]);
            block.touched[m] |= here.value[m] != before;
        });
    }

    // To the rows of u and the scores, what changed in unit j.
    void spread(Block& block, int64_t j) const {
        const T* u = s.ut + j * s.N + block.begin;
        T top = -std::numeric_limits<T>::infinity();
        bool any = false;
        each_set(block.changed, block.count, [&](int64_t m) {
            top = std::max({top, u[m], std::exchange(s.u[(block.begin + m) * s.q + j], u[m])});
            any = true;
        });
        for (int64_t k = 0; any && k < s.K; ++k)
            if (!(top + s.weights.w2[k * s.q + j] < block.floors[k])) readout(block, k, j);
    }

    bool settle_unit(int64_t n, int64_t j) const {
        const T *z = s.z + n * s.columns, *w = s.weights.w1 + j * s.p;
        return (units + (j * s.N + n)).template settle<false>([&](int64_t i) {
            return i < s.columns ? z[i] + w[i] : w[i] - z[i - s.columns];
        });
    }

    // The winner has fallen behind; or `anew`: whatever was known.
    void decide_unit(int64_t n, int64_t j, bool anew = false) const {
        const T *z = s.z + n * s.columns, *w = s.weights.w1 + j * s.p;
        const bool is_mirrored = s.columns < s.p;
        const Standings<Index> here = units + (j * s.N + n);
        const auto at = [&](T value, int64_t without) {
            const int64_t i = find(z, w, s.columns, PLUS, value, without);
            if (i >= 0 || !is_mirrored) return i;
            const int64_t mirrored = find(z, w + s.columns, s.columns, MINUS, value, without - s.columns);
            return mirrored < 0 ? mirrored : mirrored + s.columns;
        };
        if (!anew && here.tie(at)) return;
        Podium<false> podium;
        podium.enter_all(z, w, s.columns, PLUS);
        if (is_mirrored) podium.enter_all(z, w + s.columns, s.columns, MINUS);
        here.decide(podium, at);
    }

    static constexpr int64_t GROUPS = 2, TILE = GROUPS * Simd<T>::WIDTH;  // samples that are ranked together

    // Of TILE samples, a lane each: `leaves` [count, TILE] + `weights`, then, if `mirrored`, weights behind − `leaves`.
    template <bool MAXIMUM>
    static void rank(const T* leaves, int64_t count, bool mirrored, const T* weights, const Standings<Index>& ranks) {
        using V = typename Simd<T>::Vector;
        using W = typename Simd<T>::IndexVector;
        using Wide = typename Simd<T>::Index;
        using Best = Order<MAXIMUM>;
        constexpr int64_t WIDTH = Simd<T>::WIDTH;
        V first[GROUPS], second[GROUPS], third[GROUPS];
        W winner[GROUPS], follower[GROUPS];
        for (int64_t g = 0; g < GROUPS; ++g) {
            first[g] = second[g] = third[g] = V{} + Podium<MAXIMUM>::WORST;
            winner[g] = W{}, follower[g] = W{} + Wide(-1);
        }
        const auto enter = [&](int64_t g, V x, Wide i) {
            const W leads = Best::beats(x, first[g]), follows = Best::beats(x, second[g]);
            const V passed = Best::beats(x, third[g]) ? x : third[g], next = follows ? x : second[g];
            const W next_index = follows ? W{} + i : follower[g];
            third[g] = follows ? second[g] : passed;
            second[g] = leads ? first[g] : next, follower[g] = leads ? winner[g] : next_index;
            first[g] = leads ? x : first[g], winner[g] = leads ? W{} + i : winner[g];
        };
        for (int64_t i = 0; i < count; ++i)
            for (int64_t g = 0; g < GROUPS; ++g)
                enter(g, load<V>(leaves + i * TILE + g * WIDTH) + weights[i], Wide(i));
        for (int64_t i = 0; mirrored && i < count; ++i)
            for (int64_t g = 0; g < GROUPS; ++g)
                enter(g, weights[count + i] - load<V>(leaves + i * TILE + g * WIDTH), Wide(count + i));
        for (int64_t g = 0; g < GROUPS; ++g)
            for (int64_t r = 0; r < WIDTH; ++r) {
                const int64_t n = g * WIDTH + r;
                ranks.value[n] = first[g][r], ranks.bound[n] = second[g][r], ranks.third[n] = third[g][r];
                ranks.winner[n] = Index(winner[g][r]);
                ranks.second[n] = Index(follower[g][r] < 0 ? winner[g][r] : follower[g][r]);  // of a single leaf
            }
    }

    // Samples [begin, begin + TILE), of which the last may lie behind the end: those are copies.
    void build(int64_t begin, std::vector<T>& leaves, std::vector<T>& units_tile) const {
        const int64_t count = std::min(TILE, s.N - begin);
        T value[TILE], bound[TILE], third[TILE];
        Index winner[TILE], second[TILE];
        const Standings<Index> ranks{value, winner, bound, second, third};
        const auto keep = [&](const Standings<Index>& all) {
            std::copy_n(value, count, all.value), std::copy_n(bound, count, all.bound);
            std::copy_n(third, count, all.third);
            std::copy_n(winner, count, all.winner), std::copy_n(second, count, all.second);
        };
        for (int64_t i = 0; i < s.columns; ++i)
            for (int64_t n = 0; n < TILE; ++n) leaves[i * TILE + n] = s.zt[i * s.N + begin + std::min(n, count - 1)];
        for (int64_t j = 0; j < s.q; ++j) {
            rank<false>(leaves.data(), s.columns, s.columns < s.p, s.weights.w1 + j * s.p, ranks);
            keep(units + (j * s.N + begin));
            std::copy_n(value, TILE, units_tile.data() + j * TILE);
            for (int64_t n = 0; n < count; ++n) s.u[(begin + n) * s.q + j] = value[n];
        }
        for (int64_t k = 0; k < s.K; ++k) {
            rank<true>(units_tile.data(), s.q, false, s.weights.w2 + k * s.q, ranks);
            keep(scores + (k * s.N + begin));
        }
    }

    void build() const {
        std::atomic<int64_t> next{0};
        const int64_t tiles = ceil_div(s.N, TILE);
        in_parallel(int(std::min(s.threads, tiles)), [&](int) {
            std::vector<T> leaves(s.columns * TILE), units_tile(s.q * TILE);
            for (int64_t tile; (tile = next.fetch_add(1, std::memory_order_relaxed)) < tiles;)
                build(tile * TILE, leaves, units_tile);
        });
    }

    void leaf(Block& block, int64_t j, int64_t i) const {
        const bool is_negated = i >= s.columns;
        const Standings<Index> here = units + (j * s.N + block.begin);
        enter<false>(s.zt + (is_negated ? i - s.columns : i) * s.N + block.begin, T(is_negated ? -1 : 1),
                     s.weights.w1[j * s.p + i], Index(i), block.count, here, block.unsure, block.changed);
        // z comes from memory, a row a sample: each is asked for before it is needed
        const auto row = [&](int64_t m) { return s.z + (block.begin + m) * s.columns; };
        each_set(block.unsure, block.count, [&](int64_t m) {
            for (int64_t i : {here.winner[m], here.second[m]})
                __builtin_prefetch(row(m) + (i < s.columns ? i : i - s.columns));
        });
        int64_t open[BLOCK], count = 0;
        each_set(block.unsure, block.count, [&](int64_t m) {
            const T before = here.value[m];
            if (settle_unit(block.begin + m, j)) block.changed[m] = here.value[m] != before;
            else open[count++] = m;
        });
        for (int64_t r = 0; r < count; ++r) {
            const int64_t m = open[r], next = open[std::min(r + 1, count - 1)];
            for (int64_t at = 0; at < s.columns; at += CACHE_LINE / sizeof(T)) __builtin_prefetch(row(next) + at);
            const T before = here.value[m];
            decide_unit(block.begin + m, j);
            block.changed[m] = here.value[m] != before;
        }
        spread(block, j);
    }

    // Whether a loss or a prediction changed.
    bool move(const Moves& moves, int64_t begin, int64_t end) {
        // blocks of training samples and of others are numbered apart: at most one more than s.N holds
        Block block{begin, end - begin, floors.data() + ceil_div(begin, BLOCK) * s.K};
        for (int64_t i : moves.rows) project(s, i, begin, end);
        for (int64_t j : moves.whole) {
            for (int64_t m = 0; m < block.count; ++m) {
                const T before = s.ut[j * s.N + begin + m];
                decide_unit(begin + m, j, true);
                block.changed[m] = s.ut[j * s.N + begin + m] != before;
            }
            spread(block, j);
        }
        for (int64_t i : moves.rows)
            for (int64_t j = 0; j < s.q; ++j) leaf(block, j, i);
        for (auto [j, i] : moves.leaves) leaf(block, j, i);
        for (auto [k, j] : moves.readouts) readout(block, k, j);
        const bool any = std::any_of(block.touched, block.touched + block.count, [](uint8_t flag) { return flag; });
        if (any) judge(s, begin, block.count, block.touched);
        return any;
    }
};

// ------------------------------------------------------------------------------------------------ trees

int64_t power_of_two(int64_t count) {
    int64_t size = 1;
    while (size < count) size *= 2;
    return size;
}

// A tournament over leaves 0 … count − 1: node 1 is the root, and node m holds the winner of nodes 2m and 2m + 1.
template <bool MAXIMUM, class Index, class Value>
struct Tournament {
    Index* const nodes;  // [size], of which the first is not used
    const int64_t count, size;
    const Value value;  // of a leaf

    int64_t winner(int64_t node) const { return node >= size ? node - size : nodes[node]; }

    void play(int64_t node) const {
        const int64_t left = winner(2 * node), right = winner(2 * node + 1);
        const bool rightly = right < count && Order<MAXIMUM>::beats(value(right), value(left));
        nodes[node] = Index(left < count && !rightly ? left : right);  // ties to the left: the lower index
    }
    void build() const {
        for (int64_t node = size - 1; node >= 1; --node) play(node);
    }
    void update(int64_t leaf) const {
        for (int64_t node = (leaf + size) / 2; node >= 1; node /= 2) {
            const int64_t before = nodes[node];
            play(node);
            if (nodes[node] == before && before != leaf) return;  // beaten here, as before: nothing above knows it
        }
    }
    int64_t top() const { return winner(1); }
};
template <bool MAXIMUM, class Index, class Value>
Tournament<MAXIMUM, Index, Value> tournament(Index* nodes, int64_t count, Value value) {
    return {nodes, count, power_of_two(count), value};
}

template <class Index>
struct Trees {
    const Problem& s;
    Index* const I = static_cast<Index*>(s.unit_winner);
    Index* const J = static_cast<Index*>(s.score_winner);

    auto of_unit(int64_t n, int64_t j) const {
        const T *z = s.z + n * s.columns, *w = s.weights.w1 + j * s.p;
        const int64_t columns = s.columns;
        Index* nodes = static_cast<Index*>(s.unit_trees) + (n * s.q + j) * power_of_two(s.p);
        return tournament<false>(nodes, s.p, [=](int64_t i) { return i < columns ? z[i] + w[i] : w[i] - z[i - columns]; });
    }
    auto of_score(int64_t n, int64_t k) const {
        const T *u = s.u + n * s.q, *w = s.weights.w2 + k * s.q;
        Index* nodes = static_cast<Index*>(s.score_trees) + (n * s.K + k) * power_of_two(s.q);
        return tournament<true>(nodes, s.q, [=](int64_t j) { return u[j] + w[j]; });
    }
    void build() {
        for (int64_t n = 0; n < s.N; ++n) {
            for (int64_t j = 0; j < s.q; ++j) {
                const auto tree = of_unit(n, j);
                tree.build();
                I[j * s.N + n] = Index(tree.top()), s.u[n * s.q + j] = tree.value(tree.top());
            }
            for (int64_t k = 0; k < s.K; ++k) {
                const auto tree = of_score(n, k);
                tree.build();
                J[k * s.N + n] = Index(tree.top()), s.f[k * s.N + n] = tree.value(tree.top());
            }
        }
    }
    bool score(int64_t n, int64_t k, int64_t j) {
        const auto tree = of_score(n, k);
        tree.update(j);
        J[k * s.N + n] = Index(tree.top());
        T& f = s.f[k * s.N + n];
        const T before = std::exchange(f, tree.value(tree.top()));
        return f != before;
    }
    bool unit(int64_t n, int64_t j, int64_t i) {
        const auto tree = of_unit(n, j);
        tree.update(i);
        I[j * s.N + n] = Index(tree.top());
        T& u = s.u[n * s.q + j];
        const T before = std::exchange(u, tree.value(tree.top()));
        if (u == before) return false;
        bool any = false;
        for (int64_t k = 0; k < s.K; ++k) any |= score(n, k, j);
        return any;
    }
    bool move(const Moves& moves, int64_t begin, int64_t end) {
        for (int64_t i : moves.rows) project(s, i, begin, end);
        bool any = false;
        uint8_t flags[BLOCK] = {};
        for (int64_t n = begin; n < end; ++n) {
            bool touched = false;
            for (int64_t i : moves.rows)
                for (int64_t j = 0; j < s.q; ++j) touched |= unit(n, j, i);
            for (int64_t j : moves.whole)
                for (int64_t i = 0; i < s.p; ++i) touched |= unit(n, j, i);
            for (auto [j, i] : moves.leaves) touched |= unit(n, j, i);
            for (auto [k, j] : moves.readouts) touched |= score(n, k, j);
            flags[n - begin] = touched;
            any |= touched;
        }
        if (any) judge(s, begin, end - begin, flags);
        return any;
    }
};

// ------------------------------------------------------------------------------------------------ the loop

// The iterate that was best so far. To follow costs what has moved since, not the size of the weights.
struct Snapshot {
    const Problem& s;
    const Weights kept;
    bool unknown = true;  // what moved before this call
    Moves moved = {};

    void note(const Moves& moves) {
        if (unknown) return;
        moved.rows.insert(moved.rows.end(), moves.rows.begin(), moves.rows.end());
        moved.leaves.insert(moved.leaves.end(), moves.leaves.begin(), moves.leaves.end());
        moved.readouts.insert(moved.readouts.end(), moves.readouts.begin(), moves.readouts.end());
        unknown = moved.leaves.size() + moved.rows.size() > size_t(s.q * s.p);
    }
    void keep() {
        const Weights& now = s.weights;
        if (unknown) {
            std::copy(now.w1, now.w1 + s.q * s.p, kept.w1);
            std::copy(now.w2, now.w2 + s.K * s.q, kept.w2);
            if (s.trains_a) std::copy(now.a, now.a + s.p * s.d, kept.a);
        } else {
            for (auto [j, i] : moved.leaves) kept.w1[j * s.p + i] = now.w1[j * s.p + i];
            for (auto [k, j] : moved.readouts) kept.w2[k * s.q + j] = now.w2[k * s.q + j];
            for (int64_t i : moved.rows) std::copy(now.a + i * s.d, now.a + (i + 1) * s.d, kept.a + i * s.d);
        }
        unknown = false;
        moved = {};
    }
    // To the kept iterate, and what that moves.
    Moves restore() const {
        Moves moves;
        const Weights& now = s.weights;
        const auto differs = [](const T* x, const T* y, int64_t count) { return !std::equal(x, x + count, y); };
        for (int64_t j = 0; j < s.q; ++j) {
            const size_t before = moves.leaves.size();
            for (int64_t i = 0; i < s.p; ++i)
                if (std::exchange(now.w1[j * s.p + i], kept.w1[j * s.p + i]) != kept.w1[j * s.p + i])
                    moves.leaves.push_back({j, i});
            if (int64_t(moves.leaves.size() - before) * 16 > s.p) {
                moves.leaves.resize(before);
                moves.whole.push_back(j);
            }
        }
        for (int64_t k = 0; k < s.K; ++k)
            for (int64_t j = 0; j < s.q; ++j)
                if (std::exchange(now.w2[k * s.q + j], kept.w2[k * s.q + j]) != kept.w2[k * s.q + j])
                    moves.readouts.push_back({k, j});
        for (int64_t i = 0; s.trains_a && i < s.p; ++i)
            if (differs(now.a + i * s.d, kept.a + i * s.d, s.d)) {
                std::copy(kept.a + i * s.d, kept.a + (i + 1) * s.d, now.a + i * s.d);
                moves.rows.push_back(i);
            }
        return moves;
    }
};

// γ; negative where the iterates must go back to the best ones. definition.step_length.
double step_length(const Problem& s, double loss, double squared_norm) {
    Progress& now = *s.progress;
    const double norm = std::sqrt(squared_norm);
    if (std::isinf(now.record)) {
        now.record = loss, now.gap = loss - s.target;
        now.longest_path = s.patience * (loss - s.target) / norm;
        if (now.length == 0) now.length = (loss - s.target) / norm;
    }
    const double t = double(now.iteration + 1);
    if (s.step == SQRT) return now.length / (norm * std::sqrt(t));
    if (s.step == POWER) return now.length / (norm * std::pow(t, 0.6));
    if (loss <= now.record - now.gap / 2) {
        now.record = loss, now.path = 0;
    } else if (now.path > now.longest_path) {
        now.gap = std::min(now.gap, now.best_loss - s.target) / 2;
        now.longest_path *= std::sqrt(0.5);
        now.record = now.best_loss, now.path = 0;
        ++now.raises;
        return -1;
    }
    const double level = std::max(s.target, now.best_loss - now.gap);
    now.path += (loss - level) / norm;
    return (loss - level) / squared_norm;
}

template <class Key>
void accumulate(std::vector<std::pair<Key, double>>& sums, Key key, double c) {
    for (auto& [known, sum] : sums)
        if (known == key) {
            sum += c;
            return;
        }
    sums.push_back({key, c});
}

template <class Memory, class Index>
struct Loop {
    const Problem& s;
    Memory memory{s};
    Snapshot best{s, s.best}, best_right{s, s.best_right};
    const int64_t training_blocks = ceil_div(s.training, BLOCK);
    const int64_t blocks = training_blocks + ceil_div(s.N - s.training, BLOCK);
    std::vector<int64_t> worst = std::vector<int64_t>(training_blocks), right = std::vector<int64_t>(blocks);

    int64_t begin(int64_t block) const {
        return block < training_blocks ? block * BLOCK : s.training + (block - training_blocks) * BLOCK;
    }
    int64_t end(int64_t block) const {
        return std::min(begin(block) + BLOCK, block < training_blocks ? s.training : s.N);
    }
    void summarise(int64_t block) {
        if (block < training_blocks) {
            const T* losses = s.losses;
            int64_t top = begin(block);
            for (int64_t n = top; n < end(block); ++n) top = losses[n] > losses[top] || losses[n] != losses[n] ? n : top;
            worst[block] = top;
        } else {
            right[block] = 0;
            for (int64_t n = begin(block); n < end(block); ++n) right[block] += s.is_right[n];
        }
    }
    // A leaf that is NaN, of a row of A that overflows, beats none here, but is the minimum: ℓ is NaN as well.
    bool spoil(const Moves& moves, int64_t block) {
        bool any = false;
        for (int64_t i : moves.rows)
            for (int64_t n = begin(block); block < training_blocks && n < end(block); ++n)
                if (std::isnan(s.z[n * s.columns + i])) s.losses[n] = std::numeric_limits<T>::quiet_NaN(), any = true;
        return any;
    }
    void apply(const Moves& moves) {
        const auto visit = [&](int64_t block) {
            const bool moved = memory.move(moves, begin(block), end(block));
            if (spoil(moves, block) || moved) summarise(block);
        };
        const int threads = s.N * moves.work(s.p, s.q) > s.small ? int(std::min(s.threads, blocks)) : 1;
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int) {
            for (int64_t block; (block = next.fetch_add(1, std::memory_order_relaxed)) < blocks;) visit(block);
        });
        best.note(moves);
        best_right.note(moves);
    }
    void observe() {
        Progress& now = *s.progress;
        int64_t n = worst[0];
        for (int64_t sample : worst)
            if (s.losses[sample] > s.losses[n] || s.losses[sample] != s.losses[sample]) n = sample;
        now.worst = n, now.loss = s.losses[n];
        ++s.times_worst[n];
        const double previous = now.best_loss;
        if (now.loss < previous) {
            now.best_loss = now.loss, now.best_iteration = now.iteration;
            best.keep();
        }
        if (s.best_right.w1) {
            now.right = 0;
            for (int64_t block = training_blocks; block < blocks; ++block) now.right += right[block];
            if (now.right > now.best_right) {
                now.best_right = now.right, now.best_right_iteration = now.iteration;
                now.best_right_loss = now.loss;
                best_right.keep();
            }
        }
        double largest = 0;
        for (int64_t k = 0; k < s.K; ++k) largest = std::max(largest, std::abs(double(s.f[k * s.N + n])));
        const double rounding = double(std::numeric_limits<T>::epsilon()) * largest;
        now.idle = previous <= now.loss && now.loss <= s.target + rounding ? now.idle + 1 : 0;
        if (!std::isfinite(now.loss)) now.status = DIVERGED;
        else if (now.loss <= s.target) now.status = MET;
        else if (now.idle >= s.idle_limit) now.status = ROUNDED;
    }
    // Whether there is a next iterate: none where a weight of it would not be finite, and then nothing is written.
    bool advance() {
        Progress& now = *s.progress;
        const int64_t n = now.worst;
        const Index* const I = static_cast<Index*>(s.unit_winner);
        const Index* const J = static_cast<Index*>(s.score_winner);
        std::vector<double> coefficients(s.K);
        if (s.loss == CROSS_ENTROPY) log_sum_exp(s, n, coefficients.data());
        else coefficients[best_rival(s, n)] = 1;
        coefficients[s.y[n]] -= 1;

        using Leaf = std::pair<int64_t, int64_t>;
        std::vector<std::pair<Leaf, double>> g2, g1;
        std::vector<std::pair<int64_t, double>> ga;
        for (int64_t k = 0; k < s.K; ++k) {
            if (coefficients[k] == 0) continue;
            const int64_t j = J[k * s.N + n], i = I[j * s.N + n];
            g2.push_back({{k, j}, coefficients[k]});
            accumulate(g1, Leaf{j, i}, coefficients[k]);
            accumulate(ga, i, coefficients[k]);
        }
        double squares = 0;
        for (const auto& [leaf, c] : g2) squares += c * c;
        for (const auto& [leaf, c] : g1) squares += c * c;
        const T* x = s.x + n * s.d;
        if (s.trains_a) {
            double x_square = 0;
            for (int64_t l = 0; l < s.d; ++l) x_square += double(x[l]) * double(x[l]);
            for (const auto& [i, c] : ga) squares += c * c * x_square;
        }
        const double gamma = step_length(s, now.loss, squares);
        Moves moves;
        if (gamma < 0) {
            moves = best.restore();
        } else {
            const auto stays_finite = [](T weight, double step) { return std::isfinite(T(weight + T(step))); };
            bool finite = true;
            for (const auto& [leaf, c] : g2)
                finite &= stays_finite(s.weights.w2[leaf.first * s.q + leaf.second], -(gamma * c));
            for (const auto& [leaf, c] : g1)
                finite &= stays_finite(s.weights.w1[leaf.first * s.p + leaf.second], -(gamma * c));
            if (s.trains_a)
                for (const auto& [i, c] : ga)
                    for (int64_t l = 0; l < s.d; ++l)
                        finite &= stays_finite(s.weights.a[i * s.d + l], double(T(x[l] * T(-(gamma * c)))));
            if (!finite) {
                now.status = DIVERGED;
                return false;
            }
            const auto add = [](T& weight, double step) {
                const T before = weight;
                weight += T(step);
                return weight != before;
            };
            for (const auto& [leaf, c] : g2)
                if (add(s.weights.w2[leaf.first * s.q + leaf.second], -(gamma * c))) moves.readouts.push_back(leaf);
            for (const auto& [leaf, c] : g1)
                if (add(s.weights.w1[leaf.first * s.p + leaf.second], -(gamma * c))) moves.leaves.push_back(leaf);
            if (s.trains_a)
                for (const auto& [i, c] : ga) {
                    const T step = T(-(gamma * c));
                    bool any = false;
                    for (int64_t l = 0; l < s.d; ++l) {
                        const T change = x[l] * step;
                        any |= add(s.weights.a[i * s.d + l], double(change));
                    }
                    if (any) moves.rows.push_back(i);
                }
        }
        ++now.iteration;
        apply(moves);
        return true;
    }
    int64_t run(int64_t iterations, double* trace) {
        for (int64_t block = 0; block < blocks; ++block) summarise(block);
        if (std::isinf(s.progress->loss)) observe();
        int64_t done = 0;
        for (; done < iterations && s.progress->status == GOING && advance(); ++done) {
            observe();
            trace[done] = s.progress->loss;
        }
        return done;
    }
};

template <class Index>
int run(const Problem& s, int64_t iterations, double* trace, int64_t* done) {
    return guarded([&] {
        if (s.has_trees) *done = Loop<Trees<Index>, Index>{s}.run(iterations, trace);
        else *done = Loop<Winners<Index>, Index>{s}.run(iterations, trace);
        return true;
    });
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
