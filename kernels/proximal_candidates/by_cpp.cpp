// The candidates of definition.py: each piece of x and d is read once, and serves every α while it is in the first cache.
//
// Sums are made in blocks of BLOCK elements, in double, and the blocks' in their order: every number of threads, and every
// processor, gives the same bits.

#include "../runtime/native/native.hpp"

namespace {

constexpr int64_t PIECE = 256, BLOCK = 4096;
constexpr int LANES = 8;  // parts of a sum
constexpr bool IS_WIDE = std::is_same_v<Element, Compute>;

using V = Simd<Compute>::Vector;
using I = Simd<Compute>::IndexVector;
constexpr int WIDTH = Simd<Compute>::WIDTH;

inline V shrunk(V u, Compute t) {
    using Bits = Simd<Compute>::Index;
    const I sign = bit_cast<I>(u) & std::numeric_limits<Bits>::min();
    const V size = bit_cast<V>(bit_cast<I>(u) & std::numeric_limits<Bits>::max());
    const V moved = u - bit_cast<V>(bit_cast<I>(V{} + t) | sign);
    return size <= t ? V{} : moved;  // NaN is not ≤ t
}

// ⟨d, y − x⟩ − (‖y‖₁ − ‖x‖₁) of a piece, filled up with zeros.
inline void add_slack(const Compute* x, const Compute* d, const Compute* y, double* sums) {
    for (int64_t i = 0; i < PIECE; i += LANES)
        for (int l = 0; l < LANES; ++l) {
            const double from = x[i + l], to = y[i + l], slope = d[i + l];
            sums[l] += slope * (to - from) - ((to < 0 ? -to : to) - (from < 0 ? -from : from));
        }
}

struct Call {
    int64_t size, count, task, threads;  // count: of candidates
};

}  // namespace

// addresses: x, d [size]; alphas [count]; h; y [count, size]; g [count].
extern "C" int proximal_candidates(const Call* call, void* const* addresses) noexcept {
    const auto [size, count, task, threads] = *call;
    const Element *const x = static_cast<const Element*>(addresses[0]), *const d = static_cast<const Element*>(addresses[1]);
    const double* const alphas = static_cast<const double*>(addresses[2]);
    const double h = *static_cast<const double*>(addresses[3]);
    Element* const y = static_cast<Element*>(addresses[4]);
    double* const g = static_cast<double*>(addresses[5]);
    return guarded([&] {
        const int64_t blocks = ceil_div(size, BLOCK), at_a_time = std::max<int64_t>(1, task / BLOCK);
        std::vector<double> sums(blocks * count * LANES, 0.0);
        for_each_task(threads, ceil_div(blocks, at_a_time), [&](int, int64_t t) {
            alignas(64) Compute xs[PIECE], ds[PIECE], ys[PIECE];
            for (int64_t block = t * at_a_time; block < std::min(blocks, (t + 1) * at_a_time); ++block)
                for (int64_t at = block * BLOCK; at < std::min(size, (block + 1) * BLOCK); at += PIECE) {
                    const int64_t left = std::min({PIECE, size - at, (block + 1) * BLOCK - at});
                    for (int64_t i = 0; i < left; ++i) xs[i] = widen<Compute>(x[at + i]), ds[i] = widen<Compute>(d[at + i]);
                    std::fill(xs + left, xs + PIECE, Compute(0)), std::fill(ds + left, ds + PIECE, Compute(0));
                    for (int64_t a = 0; a < count; ++a) {
                        const Compute step = Compute(h * alphas[a]), threshold = Compute(h * (1 - alphas[a]));
                        for (int64_t i = 0; i < PIECE; i += WIDTH) {
                            const V u = load<V>(xs + i) - step * load<V>(ds + i);
                            store(ys + i, Rounding(false)(shrunk(u, threshold)));
                        }
                        add_slack(xs, ds, ys, sums.data() + (block * count + a) * LANES);
                        Element* const to = y + a * size + at;
                        for (int64_t i = 0; i < left; ++i) to[i] = narrow_exact<Element>(ys[i]);
                    }
                }
        });
        for (int64_t a = 0; a < count; ++a) {
            double total = 0;
            for (int64_t block = 0; block < blocks; ++block) {
                const double* part = sums.data() + (block * count + a) * LANES;
                total += ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
            }
            g[a] = total;
        }
        return true;
    });
}
