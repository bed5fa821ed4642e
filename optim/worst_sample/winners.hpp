// The memory of winners: u, I, f, J, the runner-up, a bound that no leaf but the winner beats, and one that no leaf but
// these two beats.
//
// The winner stays as long as it beats the first bound. Where it does not, the better of the two wins as long as it beats
// the second. Where that fails too a leaf that attains the second bound wins, if there is one; else all leaves are read
// again. O(1) a sample, and O(p) for the few that are read.

#pragma once

#include "standings.hpp"
#include "samples.hpp"

namespace {

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

}  // namespace
