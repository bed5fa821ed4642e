// Tropical matrix product on the CPU:  C[m, n] = max_k A[m, k] + B[k, n]  (or min; or max of A · B).
//
// min is max of negated operands: B always passes through a packed copy, so the signs cost nothing there. Sixteen-bit
// integers have no −(−32768): there it is max of complements, and ~(a + b) = ~a − b, saturated or not.
//
//   task   = MC rows × NC columns of one batch; threads draw tasks from one counter
//   block  = KC of K; B's block is packed once a task into panels [KC][NR], sized to stay in the second-level cache
//   tile   = MR rows × NR columns, accumulators in registers: one add and one max a vector and k
//
// A few columns (or rows, as Cᵀ = Bᵀ ⊗ Aᵀ) against rows that are contiguous along K are bound by memory: there vectors
// lie along K, and the large matrix is read once, where it is.
//
// Winners: the main loop notes, per output, the group of four k in which the maximum last rose (strict, so the first
// group wins a tie), which costs one compare and one blend a group; the exact k is then found inside that group, the
// first whose sum equals the maximum. That second look at every output is dear: where few k or narrow lanes leave
// little to save, every k is a group.
//
// max instructions drop NaN. Every packed panel is therefore classified, and a pair of panels that can make a NaN takes
// a tile that follows torch.max instead: the price is paid by those tiles alone.
//
// Sums are rounded to the element type before they are compared. Rounding is monotone, so it may be done on the
// maximum of a group instead of on each sum.

#include "../runtime/native/native.hpp"

#include <cstdlib>
#include <memory>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

// ------------------------------------------------------------------------------------------------ 16-bit lanes

using Shorts = Simd<int16_t>::Vector;

#if defined(__AVX512BW__)
#define SATURATED(op, a, b) Shorts(_mm512_##op##s_epi16(__m512i(a), __m512i(b)))
#elif defined(__AVX2__) && !defined(__AVX512F__)
#define SATURATED(op, a, b) Shorts(_mm256_##op##s_epi16(__m256i(a), __m256i(b)))
#elif defined(__SSE2__) && !defined(__AVX__)
#define SATURATED(op, a, b) Shorts(_mm_##op##s_epi16(__m128i(a), __m128i(b)))
#elif defined(__aarch64__)
#define SATURATED(op, a, b) Shorts(vq##op##q_s16(int16x8_t(a), int16x8_t(b)))
#else
#define SATURATED(op, a, b) saturated_##op(a, b)
inline Shorts saturated_add(Shorts a, Shorts b) {
    const Shorts zero = {}, room_above = INT16_MAX - (a > zero ? a : zero), room_below = INT16_MIN - (a < zero ? a : zero);
    const Shorts raised = b > room_below ? b : room_below;
    return a + (raised < room_above ? raised : room_above);
}
inline Shorts saturated_sub(Shorts a, Shorts b) { return ~saturated_add(~a, b); }
#endif

// What the tiles read of A. A broadcast of 32 bits comes from memory by itself, one of 16 takes a shuffle as well.
struct Twice {
    uint32_t both;
    operator int16_t() const { return int16_t(both); }
    operator Shorts() const {
        typedef uint32_t Pairs __attribute__((vector_size(VECTOR_BYTES)));
        return Shorts(Pairs{} + both);
    }
};

inline Shorts operator+(Twice a, Shorts b) { return Shorts(a) + b; }
inline Shorts operator*(Twice a, Shorts b) { return Shorts(a) * b; }

template <class C>
using Spread = std::conditional_t<sizeof(C) == 2, Twice, C>;

template <class C>
inline Spread<C> spread(C x) {
    if constexpr (sizeof(C) == 2)
        return {uint16_t(x) * 0x10001u};
    else
        return x;
}

struct Minus {
    template <class A, class V>
    static V of(A a, V b) { return a - b; }
};

struct SaturatedPlus {
    static Shorts of(Shorts a, Shorts b) { return SATURATED(add, a, b); }
    static int16_t of(int16_t a, int16_t b) { return int16_t(std::clamp(a + b, INT16_MIN, INT16_MAX)); }
};

struct SaturatedMinus {
    static Shorts of(Shorts a, Shorts b) { return SATURATED(sub, a, b); }
    static int16_t of(int16_t a, int16_t b) { return int16_t(std::clamp(a - b, INT16_MIN, INT16_MAX)); }
};

// ------------------------------------------------------------------------------------------------ tiles

#if defined(__AVX512F__)
constexpr int MR = 8, NV = 2, WINNER_ROWS = 8;  // 32 registers
#elif defined(__AVX__)
constexpr int MR = 6, NV = 2, WINNER_ROWS = 3;  // 16 registers
#elif defined(__aarch64__)
constexpr int MR = 8, NV = 2, WINNER_ROWS = 8;  // 32 registers
#else
constexpr int MR = 4, NV = 2, WINNER_ROWS = 2;
#endif
constexpr int GROUP = 4;  // k a compare-and-blend; winner_tile and find_in_groups are written for four

template <class C>
constexpr int PANEL = NV * Simd<C>::WIDTH;  // columns of a tile

// visit(the numbers below the first of FEWER that is no less than height, or below MOST)
template <int MOST, int... FEWER, class Visit>
void at_height(int64_t height, const Visit& visit) {
    const bool found = ((height <= FEWER && (visit(std::make_index_sequence<FEWER>{}), true)) || ...);
    if (!found) visit(std::make_index_sequence<MOST>{});
}

// rows: pointers to K elements of A, spread.  b: a panel [K][NR].  best, ids: [MR][NR], read and written.
// The accumulators live in registers because every index into them is a template constant.

template <class Op, int VECTORS, class C, std::size_t... I>
[[gnu::noinline]] void value_tile(const Spread<C>* const* rows, const C* b, int64_t K, C* best, std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    constexpr int W = Simd<C>::WIDTH, NR = PANEL<C>;
    V acc[] = {load<V>(best + I / VECTORS * NR + I % VECTORS * W)...};
    const Spread<C>* const row[] = {rows[I / VECTORS]...};
    for (int64_t k = 0; k < K; ++k, b += NR) {
        const V bk[] = {load<V>(b + I % VECTORS * W)...};
        ((acc[I] = larger(Op::of(row[I][k], bk[I]), acc[I])), ...);
    }
    (store(best + I / VECTORS * NR + I % VECTORS * W, acc[I]), ...);
}

template <class C>
inline void rise(typename Simd<C>::Vector x, int64_t k, typename Simd<C>::Vector& best,
                 typename Simd<C>::IndexVector& id) {
    const typename Simd<C>::IndexVector rose = x > best, zero = {};
    best = larger(x, best);
    id = rose ? zero + typename Simd<C>::Index(k) : id;
}

// One vector of columns. ids receive the first k of the group where the maximum last rose, or keep what they held.
template <bool GROUPED, class Op, class C, class Round, std::size_t... I>
[[gnu::noinline]] void winner_tile(const Spread<C>* const* rows, const C* b, int64_t K, Round round, C* best,
                                   typename Simd<C>::Index* ids, std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    using IV = typename Simd<C>::IndexVector;
    constexpr int NR = PANEL<C>;
    V acc[] = {load<V>(best + I * NR)...};
    IV id[] = {load<IV>(ids + I * NR)...};
    const Spread<C>* const row[] = {rows[I]...};
    int64_t k = 0;
    if constexpr (GROUPED) {
        for (; k + GROUP <= K; k += GROUP, b += GROUP * NR) {
            const V b0 = load<V>(b), b1 = load<V>(b + NR), b2 = load<V>(b + 2 * NR), b3 = load<V>(b + 3 * NR);
            (rise<C>(round(larger(larger(Op::of(row[I][k], b0), Op::of(row[I][k + 1], b1)),
                                  larger(Op::of(row[I][k + 2], b2), Op::of(row[I][k + 3], b3)))),
                     k, acc[I], id[I]), ...);
        }
    }
    for (; k < K; ++k, b += NR) {
        const V bk = load<V>(b);
        (rise<C>(round(Op::of(row[I][k], bk)), k, acc[I], id[I]), ...);
    }
    (store(best + I * NR, acc[I]), ...);
    (store(ids + I * NR, id[I]), ...);
}

constexpr int64_t ANY_K = std::numeric_limits<int64_t>::max();

// The K of a block from which groups save more than the second look costs: as measured, with 16-bit lanes none. Where
// every candidate of its own would have to be rounded, groups pay almost at once.
template <class C, class Round>
constexpr int64_t groups_pay() {
    if (sizeof(C) == 2) return ANY_K;
    return std::is_same_v<Round, Unrounded> ? 96 : 0;
}

constexpr int UNCHANGED = -1;  // the maximum did not rise in this block of k
constexpr int NOTHING = -2;    // every candidate so far was a NaN to be ignored

// torch.max, one k at a time: the first NaN wins, or (ignoring) the first candidate that is none.
template <bool IGNORE_NAN, class Op, class C, class Round, std::size_t... I>
[[gnu::noinline]] void exact_tile(const Spread<C>* const* rows, const C* b, int64_t K, Round round, C* best,
                                  typename Simd<C>::Index* ids, std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    using IV = typename Simd<C>::IndexVector;
    constexpr int NR = PANEL<C>;
    V acc[] = {load<V>(best + I * NR)...};
    IV id[] = {load<IV>(ids + I * NR)...};
    const Spread<C>* const row[] = {rows[I]...};
    for (int64_t k = 0; k < K; ++k, b += NR) {
        const V bk = load<V>(b);
        const IV here = IV{} + typename Simd<C>::Index(k);
        const auto step = [&](C a, V& acc, IV& id) {
            const V x = round(Op::of(a, bk));
            IV wins;
            if constexpr (IGNORE_NAN)
                wins = (x > acc) | ((x == x) & (id == NOTHING));
            else
                wins = ~(x <= acc) & (acc == acc);
            acc = wins ? x : acc;
            id = wins ? here : id;
        };
        (step(row[I][k], acc[I], id[I]), ...);
    }
    (store(best + I * NR, acc[I]), ...);
    (store(ids + I * NR, id[I]), ...);
}

// ------------------------------------------------------------------------------------------------ forward

struct Strides { int64_t batch, row, column; };

struct Problem {
    int64_t batch, M, K, N;
    const void *a, *b;
    Strides a_strides, b_strides;
    void* c;
    void* winners;  // null: not wanted; int32, or int16 where they are narrow
    bool narrow;
    Strides c_strides;  // of c and of winners
    bool times, negate, ignore_nan;
    int64_t KC, MC, NC;
    int64_t tasks;  // a thread, where a factor is read along k
    int threads;
};

// What both ways to multiply share. ⊗ is Op, or Other where the problem asks for it.
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

template <class T, class C, class Round, class Op, class Other>
class Product : Semiring<T, C, Round, Op, Other> {
    using Base = Semiring<T, C, Round, Op, Other>;
    using typename Base::Out;
    using Base::MAY_BE_NAN, Base::COMPLEMENTS, Base::LOWEST;
    using Base::p, Base::round, Base::flip, Base::with_op, Base::with_winners;
    using Index = typename Simd<C>::Index;
    static constexpr int W = Simd<C>::WIDTH, NR = PANEL<C>;

    const int64_t KC;
    int64_t MC, NC;

    struct Scratch {
        C *b, *best;
        Index* ids;
        Spread<C>* a;
        int* specials;
    };

  public:
    explicit Product(const Problem& problem)
        : Base(problem),
          KC(std::min({problem.K, int64_t(std::numeric_limits<Index>::max()) / GROUP * GROUP,
                       std::max<int64_t>(problem.KC, GROUP) / GROUP * GROUP})),
          MC(std::min(ceil_div(problem.M, MR), std::max<int64_t>(problem.MC / MR, 1)) * MR),
          NC(std::min(ceil_div(problem.N, NR), std::max<int64_t>(problem.NC / NR, 1)) * NR) {
        // halved until there are two a thread; rows first, while they are enough to pay for packing B once more
        while (p.threads > 1 && count_tasks() < 2 * p.threads && MC * NC > MR * NR) {
            if (MC > 64 || NC == NR)
                MC = ceil_div(MC / MR, 2) * MR;
            else
                NC = ceil_div(NC / NR, 2) * NR;
        }
    }

    void run() const {
        const int64_t tasks = count_tasks();
        const int threads = int(std::min<int64_t>(p.threads, tasks));
        const std::size_t bytes = scratch_bytes();
        // the caller allocates for all, so that the allocator keeps these pages from one call to the next
        using Memory = std::unique_ptr<void, decltype(&std::free)>;
        const Memory memory(std::aligned_alloc(CACHE_LINE, bytes * threads), &std::free);
        if (!memory) throw std::bad_alloc();
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int t) {
            const Scratch scratch = laid_out(static_cast<char*>(memory.get()) + bytes * t);
            for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
                const int64_t rows = ceil_div(p.M, MC), columns = ceil_div(p.N, NC);
                run_task(task / (rows * columns), task % rows * MC, task / rows % columns * NC, scratch);
            }
        });
    }

  private:
    int64_t count_tasks() const { return p.batch * ceil_div(p.M, MC) * ceil_div(p.N, NC); }

    static constexpr int64_t round_up(int64_t k) { return ceil_div(k, NR) * NR; }

    std::size_t scratch_bytes() const {
        const std::size_t outputs = MR * NR, rows = MR * round_up(KC);
        const std::size_t size = (KC * NC + outputs) * sizeof(C) + outputs * sizeof(Index) + rows * sizeof(Spread<C>) +
                                 NC / NR * sizeof(int);
        return (size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    }

    Scratch laid_out(char* memory) const {
        Scratch s;
        s.b = reinterpret_cast<C*>(memory);
        s.best = s.b + KC * NC;
        s.ids = reinterpret_cast<Index*>(s.best + MR * NR);
        s.a = reinterpret_cast<Spread<C>*>(s.ids + MR * NR);
        s.specials = reinterpret_cast<int*>(s.a + MR * round_up(KC));
        return s;
    }

    void run_task(int64_t batch, int64_t m0, int64_t n0, const Scratch& s) const {
        const int64_t m1 = std::min(m0 + MC, p.M), n1 = std::min(n0 + NC, p.N);
        for (int64_t k0 = 0; k0 < p.K; k0 += KC) {
            const int64_t K = std::min(KC, p.K - k0);
            for (int64_t n = n0; n < n1; n += NR)
                s.specials[(n - n0) / NR] = pack_b(batch, k0, K, n, std::min<int64_t>(NR, n1 - n), s.b + (n - n0) * K);
            for (int64_t m = m0; m < m1; m += MR) {
                const int64_t height = std::min<int64_t>(MR, m1 - m);
                const Spread<C>* rows[MR];
                take_rows(batch, m, height, k0, K, s.a, rows);
                int special = 0;
                if constexpr (MAY_BE_NAN)
                    for (int64_t i = 0; i < height; ++i) special |= classify(rows[i], K);
                for (int64_t n = n0; n < n1; n += NR) {
                    const Tile tile{batch, m, n, height, std::min<int64_t>(NR, n1 - n), k0, K};
                    const int specials[] = {special, s.specials[(n - n0) / NR]};
                    start(tile, s);
                    with_op([&](auto op) { run_tile<decltype(op)>(tile, rows, s.b + (n - n0) * K, specials, s); });
                    finish(tile, s);
                }
            }
        }
    }

    // By strips of k, which stay in the first-level cache while their columns fill and are classified.
    int pack_b(int64_t batch, int64_t k0, int64_t K, int64_t n, int64_t width, C* panel) const {
        constexpr int64_t STRIP = 16;
        const int64_t row = p.b_strides.row, column = p.b_strides.column;
        const T* source = static_cast<const T*>(p.b) + batch * p.b_strides.batch + k0 * row + n * column;
        const C sign = COMPLEMENTS ? C(1) : flip.by;
        int special = 0;
        for (int64_t strip = 0; strip < K; strip += STRIP) {
            const int64_t end = std::min(strip + STRIP, K);
            if (column == 1 && width == NR) {
                for (int64_t k = strip; k < end; ++k) {
                    for (int j = 0; j < NR; j += CACHE_LINE / sizeof(T))
                        __builtin_prefetch(source + (k + STRIP) * row + j);
                    for (int j = 0; j < NR; ++j) panel[k * NR + j] = C(sign * widen<C>(source[k * row + j]));
                }
            } else if (column == 1) {
                for (int64_t k = strip; k < end; ++k) {
                    for (int64_t j = 0; j < width; ++j) panel[k * NR + j] = C(sign * widen<C>(source[k * row + j]));
                    std::fill(panel + k * NR + width, panel + (k + 1) * NR, C(0));
                }
            } else {
                for (int64_t j = 0; j < NR; ++j)
                    for (int64_t k = strip; k < end; ++k)
                        panel[k * NR + j] = j < width ? C(sign * widen<C>(source[k * row + j * column])) : C(0);
            }
            if constexpr (MAY_BE_NAN) special |= classify(panel + strip * NR, (end - strip) * NR);
        }
        return special;
    }

    // Rows below the last are the last again.
    void take_rows(int64_t batch, int64_t m, int64_t height, int64_t k0, int64_t K, Spread<C>* copy,
                   const Spread<C>** rows) const {
        const auto flipped = flip;
        const Strides& strides = p.a_strides;
        const T* source = static_cast<const T*>(p.a) + batch * strides.batch + m * strides.row + k0 * strides.column;
        for (int64_t i = 0; i < MR; ++i) {
            const T* row = source + std::min(i, height - 1) * strides.row;
            if constexpr (std::is_same_v<T, Spread<C>>) {
                if (strides.column == 1 && !p.negate) {
                    rows[i] = row;
                    continue;
                }
            }
            Spread<C>* target = copy + i * round_up(KC);
            rows[i] = target;
            for (int64_t k = 0; k < K; ++k) target[k] = spread(flipped(widen<C>(row[k * strides.column])));
        }
    }

    struct Tile { int64_t batch, m, n, height, width, k0, K; };

    template <class Chosen>
    void run_tile(const Tile& tile, const Spread<C>* const* rows, const C* panel, const int* specials,
                  const Scratch& s) const {
        if (MAY_BE_NAN && can_make_nan<Chosen>(specials[0], specials[1])) {
            if constexpr (MAY_BE_NAN)
                p.ignore_nan ? run_exact<true, Chosen>(tile, rows, panel, s)
                             : run_exact<false, Chosen>(tile, rows, panel, s);
        } else if (p.winners) {
            for (int i = 0; i < MR * NR; ++i) s.ids[i] = s.ids[i] == NOTHING ? 0 : s.ids[i];
            constexpr int64_t least = groups_pay<C, Round>();
            if (tile.K < least) {
                if constexpr (least > 0) run_winners<false, Chosen>(tile, rows, panel, s);
            } else {
                if constexpr (least < ANY_K) {
                    run_winners<true, Chosen>(tile, rows, panel, s);
                    find_in_groups<Chosen>(tile, rows, panel, s);
                }
            }
        } else {
            if (tile.width > W)
                at_height<MR, 1, 2, 4>(tile.height, [&](auto seq) {
                    value_tile<Chosen, NV>(rows, panel, tile.K, s.best, std::make_index_sequence<seq.size() * NV>{});
                });
            else
                value_tile<Chosen, 1>(rows, panel, tile.K, s.best, std::make_index_sequence<MR>{});
            for (int i = 0; i < MR * NR; ++i) s.best[i] = round(s.best[i]);
        }
    }

    template <bool IGNORE_NAN, class Chosen>
    void run_exact(const Tile& tile, const Spread<C>* const* rows, const C* panel, const Scratch& s) const {
        for_strips(tile, [&](int i, int j) {
            const int at = i * NR + j;
            exact_tile<IGNORE_NAN, Chosen>(rows + i, panel + j, tile.K, round, s.best + at, s.ids + at,
                                        std::make_index_sequence<WINNER_ROWS>{});
        });
    }

    template <bool GROUPED, class Chosen>
    void run_winners(const Tile& tile, const Spread<C>* const* rows, const C* panel, const Scratch& s) const {
        for_strips(tile, [&](int i, int j) {
            at_height<WINNER_ROWS, 1>(tile.height - i, [&](auto seq) {
                const int at = i * NR + j;
                winner_tile<GROUPED, Chosen>(rows + i, panel + j, tile.K, round, s.best + at, s.ids + at, seq);
            });
        });
    }

    template <class Strip>
    static void for_strips(const Tile& tile, const Strip& strip) {
        for (int i = 0; i < tile.height; i += WINNER_ROWS)
            for (int j = 0; j < tile.width; j += W) strip(i, j);
    }

    // The first k of the noted group whose rounded sum is the maximum. A tail k, noted on its own, finds itself.
    template <class Chosen>
    void find_in_groups(const Tile& tile, const Spread<C>* const* rows, const C* panel, const Scratch& s) const {
        const Index last = Index(tile.K - 1);
        for (int64_t i = 0; i < tile.height; ++i) {
            const Spread<C>* const row = rows[i];
            const C* const best = s.best + i * NR;
            Index* const ids = s.ids + i * NR;
            for (int j = 0; j < NR; ++j) {
                const Index k0 = std::max<Index>(ids[j], 0);
                const Index k1 = std::min<Index>(k0 + 1, last), k2 = std::min<Index>(k0 + 2, last);
                const C x0 = round(Chosen::of(row[k0], panel[k0 * NR + j]));
                const C x1 = round(Chosen::of(row[k1], panel[k1 * NR + j]));
                const C x2 = round(Chosen::of(row[k2], panel[k2 * NR + j]));
                const Index skip = x0 < best[j] ? (x1 < best[j] ? (x2 < best[j] ? 3 : 2) : 1) : 0;
                ids[j] = ids[j] < 0 ? ids[j] : ids[j] + skip;
            }
        }
    }

    // best and ids before a block of k: nothing at the first, what the output holds at a later one.
    [[gnu::noinline]] void start(const Tile& tile, const Scratch& s) const {
        const Index fresh = p.ignore_nan ? NOTHING : 0;
        for (int i = 0; i < MR * NR; ++i) s.best[i] = LOWEST;
        for (int i = 0; i < MR * NR; ++i) s.ids[i] = fresh;
        if (tile.k0 == 0) return;
        const auto flipped = flip;
        at_outputs(tile, [&](int i, int64_t at) {
            s.best[i] = flipped(widen<C>(static_cast<const Out*>(p.c)[at]));
            s.ids[i] = UNCHANGED;
        });
        with_winners([&](const auto* winners) {
            at_outputs(tile, [&](int i, int64_t at) {
                if (winners[at] >= 0) return;
                s.best[i] = LOWEST;
                s.ids[i] = fresh;
            });
        });
    }

    [[gnu::noinline]] void finish(const Tile& tile, const Scratch& s) const {
        const auto flipped = flip;
        if (p.times && p.ignore_nan && tile.k0 + tile.K == p.K)
            for (int i = 0; i < MR * NR; ++i) s.best[i] = s.ids[i] == NOTHING ? C(0) : s.best[i];
        at_outputs(tile,
                   [&](int i, int64_t at) { static_cast<Out*>(p.c)[at] = narrow_exact<Out>(flipped(s.best[i])); });
        with_winners([&](auto* winners) {
            using Winner = std::remove_reference_t<decltype(*winners)>;
            at_outputs(tile, [&](int i, int64_t at) {
                const Index id = s.ids[i];
                if (id != UNCHANGED) winners[at] = id == NOTHING ? Winner(-1) : Winner(tile.k0 + id);
            });
        });
    }

    template <class Visit>
    void at_outputs(const Tile& tile, const Visit& visit) const {
        const int64_t origin = tile.batch * p.c_strides.batch + tile.m * p.c_strides.row + tile.n * p.c_strides.column;
        for (int64_t i = 0; i < tile.height; ++i)
            for (int64_t j = 0; j < tile.width; ++j)
                visit(int(i * NR + j), origin + i * p.c_strides.row + j * p.c_strides.column);
    }
};

// ------------------------------------------------------------------------------------------------ few columns

constexpr int64_t FEW = 4;         // columns that go along k, as measured
constexpr int64_t ALONG_ROWS = 4;  // of A, for which a piece of a column is read once
constexpr int STEPS = 4;           // vectors of k between two notes of where the maximum rose

template <class C>
constexpr int64_t SPAN = STEPS * Simd<C>::WIDTH;

// Vectors lie along k. rows, x: K ≥ SPAN elements. The last span ends at K and may overlap the one before: what was seen
// does not rise again. A candidate that is NaN is skipped, as the maximum is the second operand.
template <class Op, class C, class Round, std::size_t... I>
[[gnu::noinline]] void along_k(const C* const* rows, const C* x, int64_t K, typename Simd<C>::Index span, Round round,
                               C* best, typename Simd<C>::Index* ids, std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    using IV = typename Simd<C>::IndexVector;
    constexpr int W = Simd<C>::WIDTH;
    V acc[] = {load<V>(best + I * W)...};
    IV id[] = {load<IV>(ids + I * W)...};
    const C* const row[] = {rows[I]...};
    for (int64_t start = 0; start < K; start += SPAN<C>, ++span) {
        const int64_t k = std::min(start, K - SPAN<C>);
        const V x0 = load<V>(x + k), x1 = load<V>(x + k + W), x2 = load<V>(x + k + 2 * W), x3 = load<V>(x + k + 3 * W);
        const auto step = [&](const C* a, V& acc, IV& id) {
            const V first = larger(Op::of(x1, load<V>(a + W)), larger(Op::of(x0, load<V>(a)), acc));
            const V top = larger(Op::of(x3, load<V>(a + 3 * W)), larger(Op::of(x2, load<V>(a + 2 * W)), first));
            rise<C>(round(top), span, acc, id);
        };
        (step(row[I] + k, acc[I], id[I]), ...);
    }
    (store(best + I * W, acc[I]), ...);
    (store(ids + I * W, id[I]), ...);
}

// For a few columns of B and rows of A that are contiguous in memory, which are read once, where they lie: nothing is
// packed but the columns. Winners: as in the tiles the span in which the maximum last rose, then the first k in it.
template <class T, class C, class Round, class Op, class Other>
class AlongK : Semiring<T, C, Round, Op, Other> {
    using Base = Semiring<T, C, Round, Op, Other>;
    using typename Base::Out;
    using Base::MAY_BE_NAN, Base::COMPLEMENTS, Base::LOWEST;
    using Base::p, Base::round, Base::flip, Base::with_op, Base::with_winners;
    using Index = typename Simd<C>::Index;
    static constexpr int W = Simd<C>::WIDTH;
    static constexpr bool DIRECT = std::is_same_v<T, C>;  // then −(x + a) is −x − a, and a is read as it is
    static constexpr int64_t CHUNK = 16 * SPAN<C>;        // of k: rows of it stay in the first-level cache
    using Negated = std::conditional_t<COMPLEMENTS, SaturatedMinus, Minus>;

    const int64_t rows_a_task;

    struct Scratch {
        std::vector<C> x;           // [N][K]
        std::vector<int> specials;  // [N][chunks] of x
        std::vector<C> copy, best;  // [ALONG_ROWS][CHUNK], [N][ALONG_ROWS][W]
        std::vector<Index> ids;
        std::vector<char> suspects;  // [N]: whether a NaN can be among the candidates of these rows
    };

  public:
    static bool takes(const Problem& p) {
        return p.N <= FEW && p.a_strides.column == 1 && p.K >= SPAN<C> &&
               p.K / SPAN<C> < std::numeric_limits<Index>::max();
    }

    explicit AlongK(const Problem& problem)
        : Base(problem),
          rows_a_task(ceil_div(ceil_div(p.batch * p.M, p.tasks * p.threads), ALONG_ROWS) * ALONG_ROWS) {}

    void run() const {
        const int64_t blocks = ceil_div(p.M, rows_a_task), tasks = p.batch * blocks;
        const int threads = int(std::min<int64_t>(p.threads, tasks));
        const int64_t outputs = p.N * ALONG_ROWS;
        const Scratch empty{std::vector<C>(p.N * p.K),     std::vector<int>(p.N * ceil_div(p.K, CHUNK)),
                            std::vector<C>(DIRECT ? 0 : ALONG_ROWS * CHUNK), std::vector<C>(outputs * W),
                            std::vector<Index>(outputs * W), std::vector<char>(p.N)};
        std::vector<Scratch> scratch(threads, empty);
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int t) {
            for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
                run_task(task / blocks, task % blocks * rows_a_task, scratch[t]);
        });
    }

  private:
    template <class Visit>
    void with_op_here(const Visit& visit) const {
        if constexpr (DIRECT)
            if (p.negate) return visit(Negated{});
        with_op(visit);
    }

    void run_task(int64_t batch, int64_t m0, Scratch& s) const {
        const int64_t chunks = ceil_div(p.K, CHUNK), m1 = std::min(m0 + rows_a_task, p.M);
        take_columns(batch, s);
        for (int64_t m = m0; m < m1; m += ALONG_ROWS) {
            const T* rows[ALONG_ROWS];  // below the last the last again
            for (int64_t i = 0; i < ALONG_ROWS; ++i)
                rows[i] = static_cast<const T*>(p.a) + batch * p.a_strides.batch +
                          std::min(m + i, m1 - 1) * p.a_strides.row;
            std::fill(s.best.begin(), s.best.end(), LOWEST);
            std::fill(s.ids.begin(), s.ids.end(), Index(0));
            std::fill(s.suspects.begin(), s.suspects.end(), 0);
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                const int64_t k0 = std::min(chunk * CHUNK, p.K - SPAN<C>), K = std::min(CHUNK, p.K - k0);
                const C* pieces[ALONG_ROWS];
                int special = 0;
                for (int64_t i = 0; i < ALONG_ROWS; ++i) {
                    pieces[i] = piece(rows[i] + k0, K, s.copy.data() + i * CHUNK);
                    if constexpr (MAY_BE_NAN)
                        if (!p.ignore_nan) special |= classify(pieces[i], K);
                }
                with_op_here([&](auto op) {
                    using Chosen = decltype(op);
                    for (int64_t n = 0; n < p.N; ++n) {
                        const int64_t at = n * ALONG_ROWS * W;
                        along_k<Chosen>(pieces, s.x.data() + n * p.K + k0, K, Index(chunk * (CHUNK / SPAN<C>)), round,
                                        s.best.data() + at, s.ids.data() + at,
                                        std::make_index_sequence<ALONG_ROWS>{});
                        s.suspects[n] |= can_make_nan<Chosen>(special, s.specials[n * chunks + chunk]);
                    }
                });
            }
            with_op_here([&](auto op) {
                for (int64_t n = 0; n < p.N; ++n)
                    for (int64_t i = 0; i < std::min(ALONG_ROWS, m1 - m); ++i)
                        finish<decltype(op)>(rows[i], {batch, m + i, n}, n * ALONG_ROWS + i, s.suspects[n], s);
            });
        }
    }

    void take_columns(int64_t batch, Scratch& s) const {
        const auto flipped = flip;
        const int64_t chunks = ceil_div(p.K, CHUNK);
        const T* source = static_cast<const T*>(p.b) + batch * p.b_strides.batch;
        for (int64_t n = 0; n < p.N; ++n) {
            C* x = s.x.data() + n * p.K;
            for (int64_t k = 0; k < p.K; ++k)
                x[k] = flipped(widen<C>(source[k * p.b_strides.row + n * p.b_strides.column]));
            if constexpr (MAY_BE_NAN)
                for (int64_t chunk = 0; chunk < (p.ignore_nan ? 0 : chunks); ++chunk)
                    s.specials[n * chunks + chunk] = classify(x + chunk * CHUNK, std::min(CHUNK, p.K - chunk * CHUNK));
        }
    }

    const C* piece(const T* row, int64_t K, C* copy) const {
        if constexpr (DIRECT) {
            return row;
        } else {
            const auto flipped = flip;
            for (int64_t k = 0; k < K; ++k) copy[k] = flipped(widen<C>(row[k]));
            return copy;
        }
    }

    struct Place { int64_t batch, m, n; };

    template <class Chosen>
    [[gnu::noinline]] void finish(const T* row, Place place, int64_t output, bool suspect, const Scratch& s) const {
        const C* const x = s.x.data() + place.n * p.K;
        const auto candidate = [&](int64_t k) {
            const C a = DIRECT ? widen<C>(row[k]) : flip(widen<C>(row[k]));
            return C(round(C(Chosen::of(x[k], a))));
        };
        const auto find = [&](const auto& is_so) {  // the first k whose candidate is so, or K
            int64_t k = 0;
            while (k < p.K && !is_so(candidate(k))) ++k;
            return k;
        };
        const C* const best = s.best.data() + output * W;
        const Index* const ids = s.ids.data() + output * W;
        C value = best[0];
        for (int lane = 1; lane < W; ++lane) value = larger(best[lane], value);
        const int64_t nan = suspect ? find([](C x) { return x != x; }) : p.K;
        int64_t winner = nan;
        if (nan < p.K) {
            value = std::numeric_limits<C>::quiet_NaN();
        } else if (p.winners) {
            Index span = std::numeric_limits<Index>::max(), ahead = SPAN<C>;
            for (int lane = 0; lane < W; ++lane) span = std::min(span, best[lane] == value ? ids[lane] : span);
            const int64_t start = std::min(span * SPAN<C>, p.K - SPAN<C>);
            for (int i = 0; i < SPAN<C>; ++i)
                ahead = std::min(ahead, candidate(start + i) == value ? Index(i) : Index(SPAN<C>));
            // where nothing rose above the lowest value, no span was noted
            winner = ahead < SPAN<C> ? start + ahead : find([&](C x) { return x == value; });
        }
        const bool nothing = p.winners && winner == p.K;  // every candidate was a NaN to be ignored
        const int64_t at = place.batch * p.c_strides.batch + place.m * p.c_strides.row + place.n * p.c_strides.column;
        static_cast<Out*>(p.c)[at] = narrow_exact<Out>(nothing && p.times ? C(0) : flip(value));
        with_winners([&](auto* winners) {
            winners[at] = std::remove_reference_t<decltype(*winners)>(nothing ? -1 : winner);
        });
    }
};

// C = A ⊗ B is Cᵀ = Bᵀ ⊗ Aᵀ.
Problem transposed(Problem p) {
    const auto turned = [](Strides s) { return Strides{s.batch, s.column, s.row}; };
    std::swap(p.M, p.N);
    std::swap(p.a, p.b);
    const Strides a = p.a_strides;
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
    const auto range = [&](const void* x, int64_t rows, int64_t columns, const Strides& s) {
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

// ------------------------------------------------------------------------------------------------ C interface
// What by_cpp.py lays out once for calls of the same shapes and strides, as a row of integers. K ≥ 1, no size is 0.
struct Call {
    int64_t batch, M, K, N;
    Strides a, b;                                // in elements
    int64_t times, negate, ignore_nan, narrow;  // narrow: winners are int16, else int32
    int64_t KC, MC, NC, tasks, threads;
};

// addresses: a, b, C, winners, these null where not wanted.
extern "C" int tropical_forward(const Call* call, void* const* addresses) {
    const Strides of_c{call->M * call->N, call->N, 1};
    const Problem problem{call->batch, call->M, call->K, call->N, addresses[0], addresses[1], call->a, call->b,
                          addresses[2], addresses[3], call->narrow != 0, of_c, call->times != 0, call->negate != 0,
                          call->ignore_nan != 0, call->KC, call->MC, call->NC, std::max<int64_t>(call->tasks, 1),
                          static_cast<int>(call->threads)};
    return guarded([&] {
        run(problem);
        return true;
    });
}
