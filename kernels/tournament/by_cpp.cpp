// Tournament trees on the CPU: a node holds the value and the leaf's index of the winner among its FAN children.
//
//   level 1 = parents of leaves; the last level is the root; a tree's levels lie one after the other
//
// Values are compared as integers of the same order, in which NaN is the largest: a maximum of integers is one
// instruction a vector, and the first child that equals it wins, as ties and NaN want.

#include "../runtime/native/native.hpp"

namespace {

constexpr int FAN = 32;

// x -> an integer that rises with x (falls, for the smallest); every NaN the highest; ±0 the same.
template <bool LARGEST, class C>
inline typename Simd<C>::Index order(C x) {
    using I = typename Simd<C>::Index;
    constexpr I top = std::numeric_limits<I>::max();
    if constexpr (std::is_floating_point_v<C>) {
        I bits = bit_cast<I>(C(x + C(0)));
        bits ^= (bits >> (sizeof(I) * 8 - 1)) & top;
        const I ranked = LARGEST ? bits : ~bits;
        return x != x ? top : ranked;
    } else {
        return LARGEST ? I(x) : I(~I(x));
    }
}

// The first of the best among count ≤ FAN values.
template <bool LARGEST>
inline int first_of(const Element* values, int count) {
    using I = typename Simd<Compute>::Index;
    I keys[FAN], best = std::numeric_limits<I>::min();
    if (count == FAN) {
        for (int i = 0; i < FAN; ++i) keys[i] = order<LARGEST>(widen<Compute>(values[i]));
    } else {
        for (int i = 0; i < FAN; ++i) keys[i] = order<LARGEST>(widen<Compute>(values[i < count ? i : 0]));
    }
    for (int i = 0; i < FAN; ++i) best = keys[i] > best ? keys[i] : best;
    uint32_t equal = 0;
    for (int i = 0; i < FAN; ++i) equal |= uint32_t(keys[i] == best) << i;
    return __builtin_ctz(equal);
}

struct Tree {
    Element *leaves, *values;
    int64_t* indices;
    int64_t n;
};

// Node `node` of a level over `size` children, which begin at `children` of the nodes, or are leaves where it is −1.
// Whether it changed.
template <bool LARGEST>
bool play(const Tree& tree, int64_t children, int64_t size, int64_t level, int64_t node) {
    const int64_t begin = node * FAN;
    const Element* const values = children < 0 ? tree.leaves + begin : tree.values + children + begin;
    const int64_t winner = first_of<LARGEST>(values, int(std::min<int64_t>(FAN, size - begin)));
    const int64_t index = children < 0 ? begin + winner : tree.indices[children + begin + winner];
    Element& value = tree.values[level + node];
    if (tree.indices[level + node] == index && std::memcmp(&value, values + winner, sizeof value) == 0) return false;
    tree.indices[level + node] = index;
    value = values[winner];
    return true;
}

template <bool LARGEST>
void build(const Tree& tree) {
    int64_t children = -1, size = tree.n, level = 0;
    do {
        const int64_t nodes = ceil_div(size, FAN);
        for (int64_t node = 0; node < nodes; ++node) play<LARGEST>(tree, children, size, level, node);
        children = level;
        level += nodes;
        size = nodes;
    } while (size > 1);
}

// From the parent of a leaf up, as far as anything changes.
template <bool LARGEST>
void climb(const Tree& tree, int64_t leaf) {
    int64_t children = -1, size = tree.n, level = 0, node = leaf;
    do {
        const int64_t nodes = ceil_div(size, FAN);
        node /= FAN;
        if (!play<LARGEST>(tree, children, size, level, node)) return;
        children = level;
        level += nodes;
        size = nodes;
    } while (size > 1);
}

template <class Task>
void for_each_tree(int threads, int64_t trees, int64_t at_once, const Task& task) {
    std::atomic<int64_t> next{0};
    in_parallel(threads, [&](int) {
        for (int64_t t; (t = next.fetch_add(at_once, std::memory_order_relaxed)) < trees;)
            for (int64_t tree = t; tree < std::min(trees, t + at_once); ++tree) task(tree);
    });
}

struct Trees {
    int64_t count, n, nodes, at_once;  // at_once: that a thread draws
    Element *leaves, *values;
    int64_t* indices;

    Tree operator[](int64_t t) const { return {leaves + t * n, values + t * nodes, indices + t * nodes, n}; }
};

// x, or a copy of it in `own` where these trees lie in its bytes: what is written must not change what is still read.
const void* apart(const Trees& trees, const void* x, int64_t bytes, std::vector<char>& own) {
    const auto* const begin = static_cast<const char*>(x);
    const auto meets = [&](const void* written, int64_t size) {
        const auto* const first = static_cast<const char*>(written);
        return begin < first + size && first < begin + bytes;
    };
    const int64_t nodes = trees.count * trees.nodes, item = sizeof(Element);
    if (!meets(trees.leaves, trees.count * trees.n * item) && !meets(trees.values, nodes * item) &&
        !meets(trees.indices, nodes * int64_t(sizeof(int64_t))))
        return x;
    own.assign(begin, begin + bytes);
    return own.data();
}

// positions and values: touched a tree; the step from one tree to the next is 0 where all share them.
template <bool LARGEST, class Index>
bool update(const Trees& trees, int64_t touched, const Index* positions, int64_t of_position, const Element* values,
            int64_t of_value, int64_t cheaper, int threads) {
    for (int64_t t = 0; t < (of_position ? trees.count : 1); ++t)
        for (int64_t i = 0; i < touched; ++i) {
            const int64_t position = positions[t * of_position + i];
            if (position < -1 || position >= trees.n) return false;
        }
    for_each_tree(threads, trees.count, trees.at_once, [&](int64_t t) {
        const Tree tree = trees[t];
        const Index* const at = positions + t * of_position;
        for (int64_t i = 0; i < touched; ++i)
            if (at[i] >= 0) tree.leaves[at[i]] = values[t * of_value + i];
        if (touched >= cheaper) return build<LARGEST>(tree);
        for (int64_t i = 0; i < touched; ++i)
            if (at[i] >= 0) climb<LARGEST>(tree, at[i]);
    });
    return true;
}

}  // namespace


// sizes: trees, n, nodes, trees that a thread draws at a time.
extern "C" void tournament_build(const int64_t* sizes, void* leaves, void* values, int64_t* indices, int largest,
                                 int threads) noexcept {
    const Trees trees{sizes[0], sizes[1], sizes[2], sizes[3], static_cast<Element*>(leaves),
                      static_cast<Element*>(values), indices};
    std::fill_n(indices, trees.count * trees.nodes, -1);
    for_each_tree(threads, trees.count, trees.at_once,
                  [&](int64_t t) { largest ? build<true>(trees[t]) : build<false>(trees[t]); });
}

// sizes: as above, then touched, and the steps of positions and of new values from tree to tree. cheaper: from how many
// touched leaves on a tree is built anew. positions and fresh may lie in what is written.
extern "C" int tournament_update(const int64_t* sizes, void* leaves, void* values, int64_t* indices,
                                 const void* positions, int wide, const void* fresh, int largest, int64_t cheaper,
                                 int threads) noexcept {
    return guarded([&] {
        const Trees trees{sizes[0], sizes[1], sizes[2], sizes[3], static_cast<Element*>(leaves),
                          static_cast<Element*>(values), indices};
        std::vector<char> own[2];
        const auto size = [&](int64_t step, std::size_t item) {
            return sizes[4] * (step ? trees.count : 1) * int64_t(item);
        };
        positions = apart(trees, positions, size(sizes[5], wide ? sizeof(int64_t) : sizeof(int32_t)), own[0]);
        fresh = apart(trees, fresh, size(sizes[6], sizeof(Element)), own[1]);
        const auto updated = [&](auto* at) {
            using Index = std::remove_cv_t<std::remove_pointer_t<decltype(at)>>;
            const auto* const x = static_cast<const Element*>(fresh);
            return largest ? update<true, Index>(trees, sizes[4], at, sizes[5], x, sizes[6], cheaper, threads)
                           : update<false, Index>(trees, sizes[4], at, sizes[5], x, sizes[6], cheaper, threads);
        };
        return wide ? updated(static_cast<const int64_t*>(positions)) : updated(static_cast<const int32_t*>(positions));
    });
}
