// Log and shift in two passes over the counts: the sums of each class, then the logarithms.
//
//   lines  = what is contiguous: the rows of counts [D, C], or, of the transpose of a contiguous [C, D], its classes
//   block  = lines, or a piece of one, that a task takes: always the same, so that sums come out the same on any number
//            of threads
//
// The logarithm is that of FreeBSD's msun (e_log.c, e_logf.c), a vector at a time, off by less than one unit in the last
// place. It is made for positive normal numbers; of all others the C library's is taken.

#include "../runtime/native/native.hpp"

#include <cmath>
#include <memory>

namespace {

using Out = std::conditional_t<std::is_same_v<Element, double> || std::is_same_v<Element, int64_t>, double, float>;
using Vector = Simd<Out>::Vector;
constexpr int64_t WIDTH = Simd<Out>::WIDTH;
using Bits = std::conditional_t<sizeof(Out) == 8, uint64_t, uint32_t>;
using BitVector = Bits __attribute__((vector_size(VECTOR_BYTES)));
constexpr int64_t PIECE = 256;  // elements that are widened at a time
constexpr int64_t BLOCK = 1 << 14;  // elements of a task

// ------------------------------------------------------------------------------------------------ logarithm

#define ALL(x) (Vector{} + Out(x))

inline Vector log_of(Vector x) {
    if constexpr (sizeof(Out) == 8) {
        constexpr uint64_t HALF_ROOT = uint64_t(0x3fe6a09e) << 32, ONE = uint64_t(0x3ff00000) << 32;
        const BitVector from_root = bit_cast<BitVector>(x) + (ONE - HALF_ROOT);
        // 1.5 · 2^52 + k, of which adding k to the last bits makes a float64
        const Vector k = bit_cast<Vector>((from_root >> 52) + (0x4338000000000000 - 1023)) - 0x1.8p52;
        const Vector f = bit_cast<Vector>((from_root & 0x000fffffffffffff) + HALF_ROOT) - 1;
        const Vector s = f / (2 + f), z = s * s, w = z * z;
        const Vector odd = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
        const Vector even = z * (6.666666666666735130e-01 + w * (2.857142874366239149e-01 +
                                 w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
        const Vector half = 0.5 * f * f;
        return k * 6.93147180369123816490e-01 -
               ((half - (s * (half + (odd + even)) + k * 1.90821492927058770002e-10)) - f);
    } else {
        constexpr uint32_t HALF_ROOT = 0x3f3504f3, ONE = 0x3f800000;
        const BitVector from_root = bit_cast<BitVector>(x) + (ONE - HALF_ROOT);
        // 1.5 · 2^23 + k
        const Vector k = bit_cast<Vector>((from_root >> 23) + (0x4b400000 - 127)) - 0x1.8p23f;
        const Vector f = bit_cast<Vector>((from_root & 0x007fffff) + HALF_ROOT) - 1;
        const Vector s = f / (2 + f), z = s * s, w = z * z;
        const Vector odd = w * (0.40000972152f + w * 0.24279078841f), even = z * (0.66666662693f + w * 0.28498786688f);
        const Vector half = 0.5f * f * f;
        return k * 6.9313812256e-01f - ((half - (s * (half + (odd + even)) + k * 9.0580006145e-06f)) - f);
    }
}

// y = log x of `count` elements, a multiple of WIDTH; y may be x.
void log_all(const Out* x, int64_t count, Out* y) {
    constexpr Bits LEAST = sizeof(Out) == 8 ? uint64_t(1) << 52 : 1 << 23;
    constexpr Bits BEYOND = sizeof(Out) == 8 ? uint64_t(0x7ff) << 52 : uint64_t(0xff) << 23;
    const auto is_special = [](Out each) { return bit_cast<Bits>(each) - LEAST >= BEYOND - LEAST; };
    Out kept[PIECE];
    bool special = false;
    for (int64_t i = 0; i < count; ++i) special |= is_special(x[i]);
    if (special) std::copy(x, x + count, kept);
    for (int64_t i = 0; i < count; i += WIDTH) store(y + i, log_of(load<Vector>(x + i)));
    for (int64_t i = 0; special && i < count; ++i)
        if (is_special(kept[i])) y[i] = std::log(kept[i]);
}

// ------------------------------------------------------------------------------------------------ passes

struct Problem {
    int64_t lines, length;  // of counts
    int64_t by_class;       // whether a line is a class
    int64_t threads;
};

template <class Task>
void for_each_task(int64_t threads, int64_t tasks, const Task& task) {
    std::atomic<int64_t> next{0};
    in_parallel(int(std::max<int64_t>(1, std::min(threads, tasks))), [&](int) {
        for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(t);
    });
}

// F of up to PIECE counts; eps of each, or of all.
template <bool EACH>
void add_smoothing(const Element* counts, int64_t count, const Out* eps, Out* mass) {
    if constexpr (std::is_same_v<Element, int64_t>) {
        // 1.5 · 2^52 + n, as above: few processors convert a vector of int64
        uint64_t beyond = 0;
        for (int64_t i = 0; i < count; ++i) {
            const uint64_t n = uint64_t(counts[i]);
            beyond |= (n + (uint64_t(1) << 51)) >> 52;
            mass[i] = bit_cast<double>(n + 0x4338000000000000) - 0x1.8p52 + eps[EACH ? i : 0];
        }
        if (!beyond) return;
    }
    for (int64_t i = 0; i < count; ++i) mass[i] = Out(widen<Compute>(counts[i])) + eps[EACH ? i : 0];
}

// work(first, count, mass) of the pieces of a line from `begin` to `end`.
template <class Work>
void each_piece(const Problem& p, const Element* line, const Out* eps, int64_t begin, int64_t end, const Work& work) {
    Out mass[PIECE];
    for (int64_t first = begin; first < end; first += PIECE) {
        const int64_t count = std::min(PIECE, end - first);
        if (p.by_class)
            add_smoothing<false>(line + first, count, eps, mass);
        else
            add_smoothing<true>(line + first, count, eps + first, mass);
        work(first, count, mass);
    }
}

double sum_of(const Out* x, int64_t count) {
    double parts[8] = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (int l = 0; l < 8; ++l) parts[l] += x[i + l];
    for (int l = 0; i < count; ++i, ++l) parts[l] += x[i];
    return ((parts[0] + parts[4]) + (parts[2] + parts[6])) + ((parts[1] + parts[5]) + (parts[3] + parts[7]));
}

// A task's lines and columns.
struct Grid {
    int64_t lines, columns;        // of a task
    int64_t down, across;          // tasks

    explicit Grid(const Problem& p)
        : lines(p.by_class ? 1 : std::max<int64_t>(1, BLOCK / p.length)), columns(p.by_class ? BLOCK : p.length),
          down(ceil_div(p.lines, lines)), across(ceil_div(p.length, columns)) {}
};

void mass_of(const Problem& p, const Element* counts, const Out* eps, double* total) {
    const Grid grid(p);
    if (p.by_class) {
        std::vector<double> parts(grid.down * grid.across);
        for_each_task(p.threads, grid.down * grid.across, [&](int64_t t) {
            const int64_t c = t / grid.across, first = t % grid.across * BLOCK;
            double sum = 0;
            each_piece(p, counts + c * p.length, eps + c, first, std::min(first + BLOCK, p.length),
                       [&](int64_t, int64_t count, const Out* mass) { sum += sum_of(mass, count); });
            parts[t] = sum;
        });
        for (int64_t t = 0; t < grid.down * grid.across; ++t) total[t / grid.across] += parts[t];
        return;
    }
    const std::unique_ptr<double[]> parts(new double[grid.down * p.length]);
    for_each_task(p.threads, grid.down, [&](int64_t t) {
        double* const part = parts.get() + t * p.length;
        std::fill_n(part, p.length, 0.0);
        for (int64_t d = t * grid.lines; d < std::min(p.lines, (t + 1) * grid.lines); ++d)
            each_piece(p, counts + d * p.length, eps, 0, p.length, [&](int64_t first, int64_t count, const Out* mass) {
                double* __restrict__ const sums = part + first;
                for (int64_t i = 0; i < count; ++i) sums[i] += mass[i];
            });
    });
    for (int64_t t = 0; t < grid.down; ++t)
        for (int64_t c = 0; c < p.length; ++c) total[c] += parts[t * p.length + c];
}

void weights_of(const Problem& p, const Element* counts, const Out* eps, const Out* shift, Out* weights) {
    const Grid grid(p);
    for_each_task(p.threads, grid.down * grid.across, [&](int64_t t) {
        const int64_t begin = t % grid.across * grid.columns, end = std::min(begin + grid.columns, p.length);
        for (int64_t l = t / grid.across * grid.lines; l < std::min(p.lines, (t / grid.across + 1) * grid.lines); ++l) {
            const int64_t c = p.by_class ? l : 0;
            each_piece(p, counts + l * p.length, eps + c, begin, end, [&](int64_t first, int64_t count, Out* mass) {
                const int64_t padded = ceil_div(count, WIDTH) * WIDTH;
                std::fill(mass + count, mass + padded, Out(1));
                log_all(mass, padded, mass);
                Out* __restrict__ const y = weights + l * p.length + first;
                const Out* const of = p.by_class ? shift + c : shift + first;
                if (p.by_class)
                    for (int64_t i = 0; i < count; ++i) y[i] = mass[i] - of[0];
                else
                    for (int64_t i = 0; i < count; ++i) y[i] = mass[i] - of[i];
            });
        }
    });
}

}  // namespace

// ------------------------------------------------------------------------------------------------ C interface
// counts and weights [lines, length], eps and log_mass [classes]. factor: 1 − 1/K.

extern "C" int log_shift_forward(const Problem* problem, const Element* counts, const Out* eps, double factor,
                                 Out* weights, Out* log_mass) noexcept {
    return guarded([&] {
        const Problem& p = *problem;
        const int64_t classes = p.by_class ? p.lines : p.length;
        std::vector<double> total(classes);
        std::vector<Out> shift(classes);
        mass_of(p, counts, eps, total.data());
        for (int64_t c = 0; c < classes; ++c) {
            const double logarithm = std::log(total[c]);
            log_mass[c] = Out(logarithm);
            shift[c] = factor == 0 ? Out(0) : Out(factor * logarithm);  // of a class without mass too
        }
        weights_of(p, counts, eps, shift.data(), weights);
        return true;
    });
}
