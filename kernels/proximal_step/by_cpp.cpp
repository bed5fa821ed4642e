// The steps of definition.py on lists of parameters: passes that search α, one that writes, one more where the momentum
// is dropped.
//
// With s = sign u, u = p − h α d, and e = s d, what an element adds to g(α) depends on p alone through its signs:
//
//     |u| > h τ:   h (1 − e) (τ + α e) + |p| − s p        τ = 1 − α
//     else:        |p| − p d
//
// so that a pass needs the count of the first kind, Σ e, Σ e² and the sum of the rest, and knows the slope too, which is
// −h Σ (1 − e)². Newton's method inside a bracket is exact on each piece of the piecewise linear g: from λ of the step
// before, two to five passes find λ to 1e-7 and better, where a grid of candidates spends more work on each element.
//
// Sums are made in blocks of BLOCK elements, in double but for what a block's PIECE adds up first, and the blocks' in
// their order: every number of threads, and every processor, gives the same bits.

#include <cmath>
#include <memory>

#include "../runtime/native/native.hpp"
#include "../runtime/native/overlap.hpp"

namespace {

using V = Simd<Compute>::Vector;
using I = Simd<Compute>::IndexVector;
constexpr int WIDTH = Simd<Compute>::WIDTH, PARTS = 64 / VECTOR_BYTES, LANES = WIDTH * PARTS;
constexpr int64_t PIECE = 256, BLOCK = 4096;
constexpr bool IS_WIDE = std::is_same_v<Element, Compute>;  // elements are computed with as they lie in memory

// ------------------------------------------------------------------------------------------------ elements

inline I sign_of(V x) {
    using Bits = Simd<Compute>::Index;
    return bit_cast<I>(x) & std::numeric_limits<Bits>::min();
}
inline V size_of(V x) {
    using Bits = Simd<Compute>::Index;
    return bit_cast<V>(bit_cast<I>(x) & std::numeric_limits<Bits>::max());
}
inline V with_sign(V x, I sign) { return bit_cast<V>(bit_cast<I>(x) ^ sign); }
inline V where(I mask, V x) { return bit_cast<V>(bit_cast<I>(x) & mask); }

inline V shrunk(V u, Compute t) { return where(size_of(u) > t, u - bit_cast<V>(bit_cast<I>(V{} + t) | sign_of(u))); }

// `count` elements as PIECE numbers: where they lie, or widened or filled with zeros in `room`.
inline const Compute* piece_of(const Element* x, int64_t count, Compute* room) {
    if (IS_WIDE && count == PIECE) return reinterpret_cast<const Compute*>(x);
    for (int64_t i = 0; i < count; ++i) room[i] = widen<Compute>(x[i]);
    for (int64_t i = count; i < PIECE; ++i) room[i] = 0;
    return room;
}

// Rounds to the element type, and stays in the compute type.
inline V rounded(V x) { return Rounding(false)(x); }

inline void put(const Compute* from, int64_t count, Element* x) {
    for (int64_t i = 0; i < count; ++i) x[i] = narrow_exact<Element>(from[i]);
}

// ------------------------------------------------------------------------------------------------ sums

// A sum in double, in as many parts as 64 bytes have elements.
struct Sum {
    double parts[LANES] = {};

    void add(int part, V x) {
        for (int i = 0; i < WIDTH; ++i) parts[part * WIDTH + i] += x[i];
    }
    double total() const {
        double sums[LANES];
        std::memcpy(sums, parts, sizeof sums);
        for (int half = LANES / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
        return sums[0];
    }
};

// The vectors of doubles that one vector of elements makes.
using Doubles = Simd<double>::Vector;
constexpr int SPLIT = sizeof(double) / sizeof(Compute), OF_DOUBLE = Simd<double>::WIDTH;
struct Wide {
    Doubles at[SPLIT];
};
template <class X>
inline Wide doubled(X x) {
    Wide wide;
    if constexpr (SPLIT == 1) {
        wide.at[0] = bit_cast<Doubles>(x);
    } else {
        using C = std::remove_reference_t<decltype(x[0])>;
        typedef C HalfVector __attribute__((vector_size(VECTOR_BYTES / 2)));
        HalfVector halves[2];
        std::memcpy(halves, &x, sizeof x);
        for (int i = 0; i < 2; ++i) wide.at[i] = __builtin_convertvector(halves[i], Doubles);
    }
    return wide;
}

// α as a pass needs it.
struct Candidate {
    double alpha, tau;
};
inline Candidate at_weight(double lambda) {
    return std::isinf(lambda) ? Candidate{0, 1} : Candidate{1 / (1 + lambda), lambda / (1 + lambda)};
}

// What a block adds; of what is not penalised, `squares` alone, which is Σ d².
struct Terms {
    double count = 0, first = 0, second = 0, rest = 0, squares = 0;  // of |u| > h τ: how many, Σ e, Σ e²
    int64_t any_weight = 0, any_slope = 0;  // whether p, and d, are anything but zeros

    void operator+=(const Terms& other) {
        count += other.count, first += other.first, second += other.second, rest += other.rest;
        squares += other.squares, any_weight |= other.any_weight, any_slope |= other.any_slope;
    }
};

Terms terms_of(const Element* p, const Element* d, int64_t length, Compute step, Compute t) {
    alignas(64) Compute room[2][PIECE];
    Doubles first[PARTS * SPLIT] = {}, second[PARTS * SPLIT] = {};
    Sum rest;
    int64_t count = 0;
    I weights{}, slopes{};
    for (int64_t start = 0; start < length; start += PIECE) {
        const int64_t left = std::min(PIECE, length - start);
        const Compute *ps = piece_of(p + start, left, room[0]), *ds = piece_of(d + start, left, room[1]);
        for (int part = 0; part < PARTS; ++part) {
            Wide e1, e2;
            for (int s = 0; s < SPLIT; ++s) e1.at[s] = first[part * SPLIT + s], e2.at[s] = second[part * SPLIT + s];
            V others{};
            I counts{};
            for (int64_t i = part * WIDTH; i < PIECE; i += LANES) {
                const V x = load<V>(ps + i), slope = load<V>(ds + i), u = x - step * slope;
                const I sign = sign_of(u), is_out = size_of(u) > t;
                const Wide e = doubled(where(is_out, with_sign(slope, sign)));
                for (int s = 0; s < SPLIT; ++s) e1.at[s] += e.at[s], e2.at[s] += e.at[s] * e.at[s];
                counts -= is_out;
                others += size_of(x) - (is_out ? with_sign(x, sign) : x * slope);
                weights |= bit_cast<I>(size_of(x)), slopes |= bit_cast<I>(size_of(slope));
            }
            for (int s = 0; s < SPLIT; ++s) first[part * SPLIT + s] = e1.at[s], second[part * SPLIT + s] = e2.at[s];
            rest.add(part, others);
            for (int i = 0; i < WIDTH; ++i) count += counts[i];
        }
    }
    Sum sums[2];
    std::memcpy(sums[0].parts, first, sizeof first);
    std::memcpy(sums[1].parts, second, sizeof second);
    Terms terms;
    terms.count = double(count), terms.first = sums[0].total(), terms.second = sums[1].total(), terms.rest = rest.total();
    for (int i = 0; i < WIDTH; ++i) terms.any_weight |= weights[i], terms.any_slope |= slopes[i];
    return terms;
}

Terms squares_of(const Element* p, const Element* d, int64_t length) {
    Terms terms;
    double sums[8] = {}, zeros[8] = {};
    for (int64_t i = 0; i < length; ++i) {
        const double slope = widen<Compute>(d[i]);
        sums[i % 8] += slope * slope;
        zeros[i % 8] += 0 * double(widen<Compute>(p[i]));  // NaN where p is not finite
    }
    for (int i = 0; i < 8; ++i) terms.squares += sums[i] + zeros[i];
    return terms;
}

// ------------------------------------------------------------------------------------------------ blocks

struct Parameter {
    Element *p, *x;  // x: what is written beside p, or v
    const Element* d;
    int64_t size, is_penalized, first;  // first: of its blocks
};

struct Parameters {
    std::vector<Parameter> all;
    int64_t blocks = 0, at_a_time, threads;

    // work(block, parameter, start, length) of every block
    template <class Work>
    void each(const Work& work) const {
        for_each_task(threads, ceil_div(blocks, at_a_time), [&](int, int64_t task) {
            const int64_t end = std::min(blocks, (task + 1) * at_a_time);
            int64_t block = task * at_a_time;
            auto its = std::upper_bound(all.begin(), all.end(), block,
                                        [](int64_t b, const Parameter& one) { return b < one.first; }) - 1;
            for (; block < end; ++block) {
                while (block >= its->first + ceil_div(its->size, BLOCK)) ++its;
                const int64_t start = (block - its->first) * BLOCK;
                work(block, *its, start, std::min(BLOCK, its->size - start));
            }
        });
    }
};

// ------------------------------------------------------------------------------------------------ the root

constexpr double ENOUGH = 1e-7, LEAST = 1e-12, MOST = 1e12, COLD = 1e-3;  // of λ
constexpr int PASSES = 64;

// α and λ where g is 0, or the end; NaN where g is not finite.
struct Root {
    Candidate at;
    double lambda;
};

Root root(const Parameters& parameters, double h, double lambda) {
    std::vector<Terms> of_blocks(parameters.blocks);
    const auto terms_at = [&](Candidate c, bool is_first) {
        const Compute step = Compute(h * c.alpha), t = Compute(h * c.tau);
        parameters.each([&](int64_t block, const Parameter& its, int64_t start, int64_t length) {
            if (its.is_penalized)
                of_blocks[block] = terms_of(its.p + start, its.d + start, length, step, t);
            else if (is_first)
                of_blocks[block] = squares_of(its.p + start, its.d + start, length);
        });
        Terms terms;
        for (const Terms& each : of_blocks) terms += each;
        return terms;
    };
    const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
    double low = 0, high = infinity;  // λ: g < 0 at low, g > 0 at high, but at the ends as long as these are not looked at
    for (int pass = 0; pass < PASSES; ++pass) {
        const Candidate c = at_weight(lambda);
        const Terms s = terms_at(c, pass == 0);
        const double moved = c.tau * s.count + (c.alpha - c.tau) * s.first - c.alpha * (s.second + s.squares);
        const double g = h * moved + s.rest, slope = -h * (s.count - 2 * s.first + s.second + s.squares);
        if (!std::isfinite(g) || !std::isfinite(slope)) return {{nan, nan}, nan};
        if (!s.any_weight) {  // g(0) = 0, and g(1) = 0 without a gradient
            const double end = s.any_slope || s.squares > 0 ? infinity : 0;
            return {at_weight(end), end};
        }
        if ((lambda == 0 && g >= 0) || (lambda == infinity && g <= 0)) return {c, lambda};
        (g < 0 ? low : high) = lambda;
        double next = nan;
        if (slope < 0) {
            const double tau = c.tau + g / slope, alpha = c.alpha - g / slope;
            next = tau <= 0 ? 0 : alpha <= 0 ? infinity : tau / alpha;
        }
        if (next > 0 && next < infinity && std::abs(next - lambda) <= ENOUGH * lambda) return {at_weight(next), next};
        const bool is_inside = next > low && next < high;
        const bool is_fresh_end = (next == 0 && low == 0 && lambda != 0) || (next == infinity && high == infinity && lambda != infinity);
        if (!is_inside && !is_fresh_end) next = std::sqrt(std::max(low, LEAST)) * std::sqrt(std::min(high, MOST));
        lambda = next;
    }
    return {at_weight(lambda), lambda};
}

// ------------------------------------------------------------------------------------------------ writing

struct Norms {
    double iterate = 0, ahead = 0, all = 0;  // ‖x‖₁ and ‖p‖₁ of what is penalised; ‖p‖₁ of the rest
};

Norms move(const Parameter& its, int64_t start, int64_t length, Compute step, Compute t, Compute c) {
    alignas(64) Compute room[3][PIECE], results[2][PIECE];
    Sum iterate, ahead;
    for (int64_t at = start; at < start + length; at += PIECE) {
        const int64_t left = std::min(PIECE, start + length - at);
        const bool is_direct = IS_WIDE && left == PIECE;
        const Compute* ps = piece_of(its.p + at, left, room[0]);
        const Compute* ds = piece_of(its.d + at, left, room[1]);
        const Compute* xs = c != 0 ? piece_of(its.x + at, left, room[2]) : ps;
        Compute* const to_x = is_direct ? reinterpret_cast<Compute*>(its.x + at) : results[0];
        Compute* const to_p = is_direct ? reinterpret_cast<Compute*>(its.p + at) : results[1];
        V of_iterate[PARTS] = {}, of_ahead[PARTS] = {};
        const auto write = [&](auto is_penalized, auto moves) {
            for (int64_t i = 0; i < PIECE; i += LANES)
                for (int part = 0; part < PARTS; ++part) {
                    const int64_t e = i + part * WIDTH;
                    const V u = load<V>(ps + e) - step * load<V>(ds + e);
                    const V y = rounded(is_penalized ? shrunk(u, t) : u);
                    const V next = moves ? rounded(y + c * (y - load<V>(xs + e))) : y;
                    store(to_x + e, y), store(to_p + e, next);
                    of_iterate[part] += size_of(y), of_ahead[part] += size_of(next);
                }
        };
        const std::true_type yes;
        const std::false_type no;
        if (its.is_penalized)
            c != 0 ? write(yes, yes) : write(yes, no);
        else
            c != 0 ? write(no, yes) : write(no, no);
        for (int part = 0; part < PARTS; ++part) iterate.add(part, of_iterate[part]), ahead.add(part, of_ahead[part]);
        if (!is_direct) put(results[0], left, its.x + at), put(results[1], left, its.p + at);
    }
    if (!its.is_penalized) return {0, 0, ahead.total()};
    return {iterate.total(), ahead.total(), 0};
}

void hold(const Parameter& its, int64_t start, int64_t length, Compute h, Compute momentum, Compute t) {
    alignas(64) Compute room[3][PIECE], results[2][PIECE];
    for (int64_t at = start; at < start + length; at += PIECE) {
        const int64_t left = std::min(PIECE, start + length - at);
        const bool is_direct = IS_WIDE && left == PIECE;
        const Compute* ps = piece_of(its.p + at, left, room[0]);
        const Compute* ds = piece_of(its.d + at, left, room[1]);
        const Compute* vs = piece_of(its.x + at, left, room[2]);
        Compute* const to_v = is_direct ? reinterpret_cast<Compute*>(its.x + at) : results[0];
        Compute* const to_x = is_direct ? reinterpret_cast<Compute*>(its.p + at) : results[1];
        const auto write = [&](auto is_penalized) {
            for (int64_t i = 0; i < PIECE; i += WIDTH) {
                const V velocity = rounded(momentum * load<V>(vs + i) + load<V>(ds + i));
                const V u = load<V>(ps + i) - h * velocity;
                store(to_v + i, velocity), store(to_x + i, rounded(is_penalized ? shrunk(u, t) : u));
            }
        };
        its.is_penalized ? write(std::true_type()) : write(std::false_type());
        if (!is_direct) put(results[0], left, its.x + at), put(results[1], left, its.p + at);
    }
}

// The part that is the same in every step. Behind it stand, for each parameter, its size and whether it is penalised.
struct Call {
    int64_t count, task, threads;
};

constexpr int OVERLAPS = 3;  // a status beside those of native.hpp

// addresses: of the parameters, their gradients, and what is written beside the parameters, a list each.
Parameters parameters_of(const Call* call, void* const* addresses, std::vector<Span>& operands) {
    const auto* const sizes = reinterpret_cast<const int64_t*>(call + 1);
    Parameters parameters{{}, 0, std::max<int64_t>(1, call->task / BLOCK), call->threads};
    const int64_t n = call->count;
    operands.reserve(3 * n + 1), parameters.all.reserve(n);
    for (int64_t i = 0; i < n; ++i) {
        const auto at = [&](int64_t list) { return static_cast<Element*>(addresses[list * n + i]); };
        const Parameter its{at(0), at(2), at(1), sizes[2 * i], sizes[2 * i + 1], parameters.blocks};
        if (its.size == 0) continue;
        for (const Element* written : {its.p, its.x}) operands.push_back(span(written, its.size, true));
        operands.push_back(span(its.d, its.size, false));
        parameters.blocks += ceil_div(its.size, BLOCK);
        parameters.all.push_back(its);
    }
    return parameters;
}

}  // namespace

// ------------------------------------------------------------------------------------------------ C interface
// Nothing that is written may lie in anything else: OVERLAPS then, and nothing is written.

// addresses: p, d, x, a list each; state [4]; h, acceleration.
extern "C" int multiobjective_step(const Call* call, void* const* addresses) noexcept {
    void* const* const others = addresses + 3 * call->count;
    double* const state = static_cast<double*>(others[0]);
    const double h = *static_cast<const double*>(others[1]), acceleration = *static_cast<const double*>(others[2]);
    bool overlaps = false;
    const int status = guarded([&] {
        std::vector<Span> operands;
        const Parameters parameters = parameters_of(call, addresses, operands);
        operands.push_back(span(state, 4, true));
        overlaps = any_written_lies_in_another(operands);
        if (overlaps) return true;
        const bool is_warm = state[2] > 0 || (state[2] == 0 && state[1] == 1);  // not of zeros, nor of NaN
        std::vector<Norms> of_blocks(parameters.blocks);
        const Root found = root(parameters, h, is_warm ? state[2] : COLD);
        state[1] = found.at.alpha, state[2] = found.lambda;
        if (std::isnan(found.lambda)) return true;
        const double c = std::max(state[0] - 1, 0.0) / (state[0] + acceleration);
        const Compute step = Compute(h * found.at.alpha), t = Compute(h * found.at.tau);
        parameters.each([&](int64_t block, const Parameter& its, int64_t start, int64_t length) {
            of_blocks[block] = move(its, start, length, step, t, Compute(c));
        });
        Norms norms;
        for (const Norms& each : of_blocks)
            norms.iterate += each.iterate, norms.ahead += each.ahead, norms.all += each.all;
        state[3] = norms.iterate;
        const bool goes_on = norms.ahead <= norms.iterate && std::isfinite(norms.ahead + norms.all);
        state[0] = goes_on ? state[0] + 1 : 0;
        if (!goes_on && c != 0)
            parameters.each([&](int64_t, const Parameter& its, int64_t start, int64_t length) {
                std::memcpy(its.p + start, its.x + start, length * sizeof(Element));
            });
        return true;
    });
    return overlaps ? OVERLAPS : status;
}

// addresses: x, d, v, a list each; h; λ, and a λ that takes its place; μ.
extern "C" int held_step(const Call* call, void* const* addresses) noexcept {
    void* const* const others = addresses + 3 * call->count;
    const auto number = [&](int which) { return *static_cast<const double*>(others[which]); };
    const double h = number(0), lambda = number(others[2] ? 2 : 1), momentum = number(3);
    bool overlaps = false;
    const int status = guarded([&] {
        std::vector<Span> operands;
        const Parameters parameters = parameters_of(call, addresses, operands);
        overlaps = any_written_lies_in_another(operands);
        if (overlaps) return true;
        const Compute t = Compute(h * lambda / (1 - momentum));
        parameters.each([&](int64_t, const Parameter& its, int64_t start, int64_t length) {
            hold(its, start, length, Compute(h), Compute(momentum), t);
        });
        return true;
    });
    return overlaps ? OVERLAPS : status;
}
