// The memory of winners: u, I, f, J, the runner-up, a bound that no leaf but the winner beats, and one that no leaf but
// these two beats.
//
// The winner stays as long as it beats the first bound. Where it does not, the better of the two wins as long as it beats
// the second. Where that fails too a leaf that attains the second bound wins, if there is one; else all leaves are read
// again. O(1) a sample, and O(p) for the few that are read.
//
// Leaves that move by the hundreds are entered together, all of a unit at a time: of these the best two are found first,
// which takes a pass over their values alone, and then meet what is known of the others.

#pragma once

#include <memory>

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

    // Leaves of one minimum or maximum that have moved, each a row over samples: sign · row + weight.
    template <bool MAXIMUM>
    struct Entrants {
        static constexpr size_t TOGETHER = 4;
        std::vector<const T*> rows;
        std::vector<T> signs, weights;
        std::vector<Index> indices;

        void add(const T* row, T sign, T weight, Index index) {
            rows.push_back(row), signs.push_back(sign), weights.push_back(weight), indices.push_back(index);
        }
        size_t count() const { return rows.size(); }
        void clear() { rows.clear(), signs.clear(), weights.clear(), indices.clear(); }
        // Rows that beat none, to a multiple of TOGETHER.
        void fill() {
            while (count() % TOGETHER) add(rows[0], T(0), Podium<MAXIMUM>::WORST, indices[0]);
        }
    };

    // The best two of the entrants, of each sample of a block: the value and place of one, the value of the other.
    template <bool MAXIMUM>
    struct Heats {
        using Wide = typename Simd<T>::Index;
        alignas(CACHE_LINE) T first[BLOCK], second[BLOCK];
        alignas(CACHE_LINE) Wide leader[BLOCK];
        alignas(CACHE_LINE) uint8_t winner_moved[BLOCK], second_moved[BLOCK];
        static constexpr size_t MOST_COMPARED = 16;

        // Values of TOGETHER entrants: copies, which no store can change.
        struct Group {
            const T* rows[Entrants<MAXIMUM>::TOGETHER];
            T signs[Entrants<MAXIMUM>::TOGETHER], weights[Entrants<MAXIMUM>::TOGETHER];
            Wide places[Entrants<MAXIMUM>::TOGETHER];
        };
        template <int LANES>
        void run_lanes(const Group& group, int64_t n) {
            using Best = Order<MAXIMUM>;
            using V = typename Lanes<T, LANES>::Vector;
            using W = typename Lanes<Wide, LANES>::Vector;
            V best = load<V>(first + n), next = load<V>(second + n);
            W place = load<W>(leader + n);
            for (size_t e = 0; e < Entrants<MAXIMUM>::TOGETHER; ++e) {
                const V v = load<V>(group.rows[e] + n) * group.signs[e] + group.weights[e];
                const W leads = Best::beats(v, best);
                const V beaten = leads ? best : v;
                next = Best::beats(beaten, next) ? beaten : next;
                place = leads ? W{} + group.places[e] : place;
                best = leads ? v : best;
            }
            store(first + n, best), store(second + n, next), store(leader + n, place);
        }
        // `entrants` by ascending place, filled up; `moved` [leaves]: whether a leaf is one of them.
        void run(const Entrants<MAXIMUM>& entrants, const uint8_t* moved, const Standings<Index>& all, int64_t count) {
            constexpr int WIDTH = Simd<T>::WIDTH;
            std::fill(first, first + count, Podium<MAXIMUM>::WORST);
            std::fill(second, second + count, Podium<MAXIMUM>::WORST);
            std::fill(leader, leader + count, Wide(entrants.indices[0]));
            for (size_t e = 0; e < entrants.count(); e += Entrants<MAXIMUM>::TOGETHER) {
                Group group;
                std::copy_n(&entrants.rows[e], Entrants<MAXIMUM>::TOGETHER, group.rows);
                std::copy_n(&entrants.signs[e], Entrants<MAXIMUM>::TOGETHER, group.signs);
                std::copy_n(&entrants.weights[e], Entrants<MAXIMUM>::TOGETHER, group.weights);
                std::copy_n(&entrants.indices[e], Entrants<MAXIMUM>::TOGETHER, group.places);
                int64_t n = 0;
                for (; n + WIDTH <= count; n += WIDTH) run_lanes<WIDTH>(group, n);
                for (; n < count; ++n) run_lanes<1>(group, n);
            }
            look(entrants, moved, all.winner, count, winner_moved);
            look(entrants, moved, all.second, count, second_moved);
        }
        // Whether the leaves `places` are entrants: comparisons with a few of them are faster than looking into a table.
        static void look(const Entrants<MAXIMUM>& entrants, const uint8_t* moved, const Index* places, int64_t count,
                         uint8_t* flags) {
            const Index* const index = entrants.indices.data();
            if (entrants.count() > MOST_COMPARED) {
                for (int64_t n = 0; n < count; ++n) flags[n] = moved[places[n]];
                return;
            }
            std::fill(flags, flags + count, uint8_t(0));
            for (size_t e = 0; e < entrants.count(); e += Entrants<MAXIMUM>::TOGETHER) {
                const Index a = index[e], b = index[e + 1], c = index[e + 2], d = index[e + 3];
                for (int64_t n = 0; n < count; ++n) {
                    const Index i = places[n];
                    flags[n] |= uint8_t((i == a) | (i == b) | (i == c) | (i == d));
                }
            }
        }
    };

    // The entrants meet the others. `unsure`: where the winner is an entrant, and none beats the bound of the others.
    template <bool MAXIMUM, int LANES>
    static inline void meet_lanes(const Heats<MAXIMUM>& heats, int64_t n, const Standings<Index>& all, uint8_t* unsure,
                                  uint8_t* changed) {
        using Best = Order<MAXIMUM>;
        using Wide = typename Simd<T>::Index;
        using V = typename Lanes<T, LANES>::Vector;
        using W = typename Lanes<Wide, LANES>::Vector;
        using Narrow = typename Lanes<Index, LANES>::Vector;
        using Flags = typename Lanes<uint8_t, LANES>::Vector;
        const V best = load<V>(heats.first + n), next = load<V>(heats.second + n);
        const W leader = load<W>(heats.leader + n);
        const W won_moved = __builtin_convertvector(load<Flags>(heats.winner_moved + n), W) != 0;
        const W second_moved = __builtin_convertvector(load<Flags>(heats.second_moved + n), W) != 0;
        const V before = load<V>(all.value + n), bound = load<V>(all.bound + n), third = load<V>(all.third + n);
        const W won = __builtin_convertvector(load<Narrow>(all.winner + n), W);
        const W second = __builtin_convertvector(load<Narrow>(all.second + n), W);

        const auto better = [](V x, V y) { return V(Best::beats(x, y) ? x : y); };
        const V others = second_moved ? third : bound;  // none that stayed beats this, but the winner
        const W wins = ~won_moved & (Best::beats(best, before) | ((best == before) & (leader < won)));
        const W leads = wins | (won_moved & Best::beats(best, others)), is_unsure = won_moved & ~leads;
        const W follows = ~won_moved & ~wins & (second_moved | Best::beats(best, bound));  // a winner that stayed
        const V next_other = better(next, others);
        const V behind_leader = (won_moved & ~second_moved) ? better(next, third) : next_other;
        const V behind_winner = follows ? next_other : better(best, third);
        const V now = leads ? best : before, now_third = leads ? behind_leader : behind_winner;
        const V rival = wins ? better(next, before) : next_other;
        const V now_bound = leads ? rival : better(best, others);
        const W behind = follows ? leader : second, now_second = wins ? won : behind;
        store(all.value + n, V(is_unsure ? before : now));
        store(all.bound + n, V(is_unsure ? bound : now_bound));
        store(all.third + n, V(is_unsure ? third : now_third));
        store(all.winner + n, __builtin_convertvector(W(leads ? leader : won), Narrow));
        store(all.second + n, __builtin_convertvector(W(is_unsure ? second : now_second), Narrow));
        store(unsure + n, __builtin_convertvector(W(is_unsure), Flags));
        store(changed + n, __builtin_convertvector(W((now != before) & ~is_unsure), Flags));
    }
    template <bool MAXIMUM>
    static void meet(const Heats<MAXIMUM>& heats, int64_t count, const Standings<Index>& all, uint8_t* unsure,
                     uint8_t* changed) {
        constexpr int WIDTH = Simd<T>::WIDTH;
        int64_t n = 0;
        for (; n + WIDTH <= count; n += WIDTH) meet_lanes<MAXIMUM, WIDTH>(heats, n, all, unsure, changed);
        for (; n < count; ++n) meet_lanes<MAXIMUM, 1>(heats, n, all, unsure, changed);
    }

    // Sample n of the block is unsure: whether its best entrant and the second, at `leaf(i)`, decide it.
    template <bool MAXIMUM, class Leaf>
    static bool settle_heat(const Heats<MAXIMUM>& heats, int64_t n, const Standings<Index>& here, const Leaf& leaf) {
        using Best = Order<MAXIMUM>;
        if (heats.second_moved[n]) return false;  // so none that stayed is known, and no entrant beats the third
        Index first = Index(heats.leader[n]), next = *here.second;
        T x = heats.first[n], y = leaf(next);
        if (Best::beats(y, x) || (x == y && next < first)) std::swap(first, next), std::swap(x, y);
        if (!Best::beats(x, *here.third)) return false;
        const T third = Best::beats(heats.second[n], *here.third) ? heats.second[n] : *here.third;
        *here.value = x, *here.winner = first, *here.second = next, *here.third = third;
        *here.bound = Best::beats(y, third) ? y : third;
        return true;
    }

    static void ask_for_row(const T* row, int64_t count) {
        for (int64_t i = 0; i < count; i += CACHE_LINE / sizeof(T)) __builtin_prefetch(row + i);
    }

    // The winner has fallen behind; `settles`: what is kept of the second and third may decide it.
    void decide_score(int64_t n, int64_t k, bool settles = true) const {
        const T *u = s.u + n * s.q, *w = s.weights.w2 + k * s.q;
        const Standings<Index> here = scores + (k * s.N + n);
        const auto at = [&](T value, int64_t without) { return find(u, w, s.q, PLUS, value, without); };
        if (settles && here.template settle<true>([&](int64_t j) { return u[j] + w[j]; })) return;
        if (here.tie(at)) return;
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

    // The unit j of samples `open` of the block, whose winner has fallen behind all that is known.
    void decide_units(Block& block, int64_t j, const int64_t* open, int64_t count) const {
        const T* const value = s.ut + j * s.N + block.begin;
        for (int64_t r = 0; r < count; ++r) {
            const int64_t m = open[r], next = open[std::min(r + 1, count - 1)];
            ask_for_row(s.z + (block.begin + next) * s.columns, s.columns);
            const T before = value[m];
            decide_unit(block.begin + m, j);
            block.changed[m] = value[m] != before;
        }
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
        decide_units(block, j, open, count);
        spread(block, j);
    }

    static constexpr size_t FEW = 32;  // leaves that are entered one by one: with cross-entropy a step moves K

    // Room to enter many leaves of a block.
    struct Crowd {
        Entrants<false> leaves;
        Entrants<true> readouts;
        Heats<false> minima;
        Heats<true> maxima;
        std::vector<uint8_t> moved;  // [max(p, q)], all 0 in between
        std::vector<T> tops;         // [q]: the best of the values, before and after, of units that changed
    };

    // Leaves `first` to `last` are all of unit j.
    void enter_unit(Block& block, Crowd& crowd, const std::pair<int64_t, int64_t>* first,
                    const std::pair<int64_t, int64_t>* last) const {
        const int64_t j = first->first;
        const Standings<Index> here = units + (j * s.N + block.begin);
        crowd.leaves.clear();
        for (auto leaf = first; leaf != last; ++leaf) {
            const int64_t i = leaf->second;
            const bool is_negated = i >= s.columns;
            crowd.leaves.add(s.zt + (is_negated ? i - s.columns : i) * s.N + block.begin, T(is_negated ? -1 : 1),
                             s.weights.w1[j * s.p + i], Index(i));
            crowd.moved[i] = 1;
        }
        crowd.leaves.fill();
        crowd.minima.run(crowd.leaves, crowd.moved.data(), here, block.count);
        for (auto leaf = first; leaf != last; ++leaf) crowd.moved[leaf->second] = 0;
        meet<false>(crowd.minima, block.count, here, block.unsure, block.changed);
        const auto row = [&](int64_t m) { return s.z + (block.begin + m) * s.columns; };
        const auto column = [&](int64_t i) { return i < s.columns ? i : i - s.columns; };
        const auto ask_for_u = [&](int64_t m) { __builtin_prefetch(s.u + (block.begin + m) * s.q + j, 1); };
        each_set(block.changed, block.count, ask_for_u);  // which enter_many writes
        each_set(block.unsure, block.count, [&](int64_t m) {
            __builtin_prefetch(row(m) + column(here.second[m]));
            ask_for_u(m);
        });
        int64_t open[BLOCK], count = 0;
        const T* const w = s.weights.w1 + j * s.p;
        each_set(block.unsure, block.count, [&](int64_t m) {
            const T before = here.value[m];
            const T* z = row(m);
            const auto leaf = [&](int64_t i) { return i < s.columns ? z[i] + w[i] : w[i] - z[i - s.columns]; };
            if (settle_heat<false>(crowd.minima, m, here + m, leaf)) block.changed[m] = here.value[m] != before;
            else open[count++] = m;
        });
        decide_units(block, j, open, count);
    }

    // The scores of class k, after some of its leaves have moved.
    void enter_score(Block& block, Crowd& crowd, int64_t k, const std::vector<int64_t>& leaves) const {
        const Standings<Index> here = scores + (k * s.N + block.begin);
        const T* const w = s.weights.w2 + k * s.q;
        crowd.readouts.clear();
        for (int64_t j : leaves) {
            crowd.readouts.add(s.ut + j * s.N + block.begin, T(1), w[j], Index(j));
            crowd.moved[j] = 1;
        }
        crowd.readouts.fill();
        crowd.maxima.run(crowd.readouts, crowd.moved.data(), here, block.count);
        for (int64_t j : leaves) crowd.moved[j] = 0;
        uint8_t changed[BLOCK];
        meet<true>(crowd.maxima, block.count, here, block.unsure, changed);
        for (int64_t m = 0; m < block.count; ++m) block.touched[m] |= changed[m];
        int64_t open[BLOCK], count = 0;
        each_set(block.unsure, block.count, [&](int64_t m) { open[count++] = m; });
        const auto row = [&](int64_t m) { return s.u + (block.begin + m) * s.q; };
        for (int64_t r = 0; r < count; ++r) {
            const int64_t m = open[r];
            ask_for_row(row(open[std::min(r + 1, count - 1)]), s.q);
            const T before = here.value[m];
            const T* u = row(m);
            if (!settle_heat<true>(crowd.maxima, m, here + m, [&](int64_t j) { return u[j] + w[j]; }))
                decide_score(block.begin + m, k, false);
            block.touched[m] |= here.value[m] != before;
        }
        block.floors[k] = *std::min_element(here.third, here.third + block.count);
    }

    // What is known of a unit in a block, and its first rows, are asked for while the unit before it is at work.
    void ask_for_unit(const Block& block, const std::pair<int64_t, int64_t>* leaf,
                      const std::pair<int64_t, int64_t>* end) const {
        const int64_t j = leaf->first;
        const Standings<Index> here = units + (j * s.N + block.begin);
        const auto ask_for = [&](const auto* first) {
            for (int64_t n = 0; n < block.count; n += CACHE_LINE / sizeof(*first)) __builtin_prefetch(first + n, 0, 2);
        };
        ask_for(here.value), ask_for(here.bound), ask_for(here.third), ask_for(here.winner), ask_for(here.second);
        const auto* const last = leaf + std::min<int64_t>(end - leaf, Entrants<false>::TOGETHER);
        for (; leaf != last && leaf->first == j; ++leaf)
            ask_for(s.zt + (leaf->second >= s.columns ? leaf->second - s.columns : leaf->second) * s.N + block.begin);
    }

    void enter_many(Block& block, const Moves& moves) const {
        const auto room = std::make_unique<Crowd>();
        Crowd& crowd = *room;
        crowd.moved.assign(std::max(s.p, s.q), 0);
        crowd.tops.resize(s.q);
        std::vector<int64_t> changed, leaves;
        for (size_t first = 0, last; first < moves.leaves.size(); first = last) {
            const int64_t j = moves.leaves[first].first;
            for (last = first; last < moves.leaves.size() && moves.leaves[last].first == j;) ++last;
            if (last < moves.leaves.size())
                ask_for_unit(block, moves.leaves.data() + last, moves.leaves.data() + moves.leaves.size());
            enter_unit(block, crowd, moves.leaves.data() + first, moves.leaves.data() + last);
            const T* u = s.ut + j * s.N + block.begin;
            T top = -std::numeric_limits<T>::infinity();
            bool any = false;
            each_set(block.changed, block.count, [&](int64_t m) {
                top = std::max({top, u[m], std::exchange(s.u[(block.begin + m) * s.q + j], u[m])});
                any = true;
            });
            if (any) changed.push_back(j), crowd.tops[j] = top;
        }
        for (int64_t k = 0; k < s.K; ++k) {
            leaves.clear();
            for (int64_t j : changed)
                if (!(crowd.tops[j] + s.weights.w2[k * s.q + j] < block.floors[k])) leaves.push_back(j);
            for (auto [of, j] : moves.readouts)
                if (of == k) leaves.push_back(j);
            std::sort(leaves.begin(), leaves.end());
            leaves.erase(std::unique(leaves.begin(), leaves.end()), leaves.end());
            if (!leaves.empty()) enter_score(block, crowd, k, leaves);
        }
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
        if (moves.leaves.size() > FEW) {
            enter_many(block, moves);
        } else {
            for (auto [j, i] : moves.leaves) leaf(block, j, i);
            for (auto [k, j] : moves.readouts) readout(block, k, j);
        }
        const bool any = std::any_of(block.touched, block.touched + block.count, [](uint8_t flag) { return flag; });
        if (any) judge(s, begin, block.count, block.touched);
        return any;
    }
};

}  // namespace
