// Log and shift in two passes over the counts: the sums of each class, then the logarithms.
//
//   lines  = what is contiguous: the rows of counts [D, C], or, of the transpose of a contiguous [C, D], its classes
//   block  = lines, or a piece of one, that a task takes: always the same, so that sums come out the same on any number
//            of threads
//
// Logarithms are taken a vector at a time (logarithm.hpp), and those of numbers it is not made for by the C library.

#include "../runtime/native/logarithm.hpp"

#include <cmath>
#include <memory>

namespace {

using Out = std::conditional_t<std::is_same_v<Element, double> || std::is_same_v<Element, int64_t>, double, float>;
using Vector = Simd<Out>::Vector;
constexpr int64_t WIDTH = Simd<Out>::WIDTH;
using Bits = std::conditional_t<sizeof(Out) == 8, uint64_t, uint32_t>;
using BitVector = Bits __attribute__((vector_size(VECTOR_BYTES)));
using Int = std::make_signed_t<Bits>;
using IntVector = Int __attribute__((vector_size(VECTOR_BYTES)));
constexpr int64_t PIECE = 256;  // elements that are widened at a time
constexpr int64_t BLOCK = 1 << 14;  // elements of a task

// ------------------------------------------------------------------------------------------------ logarithms

using Of = Logarithm<Out>;

// y = log x of `count` elements, a multiple of WIDTH.
void log_all(const Out* x, int64_t count, Out* y) {
    constexpr Bits LEAST = Bits(1) << Of::FRACTION, COUNT = Bits(2 * Of::BIAS) << Of::FRACTION;  // of normal numbers
    BitVector special{};
    for (int64_t i = 0; i < count; i += WIDTH) {
        const Vector each = load<Vector>(x + i);
        // signed, as few processors compare unsigned numbers: what wraps is far from both ends
        special |= bit_cast<BitVector>(bit_cast<IntVector>(bit_cast<BitVector>(each) - LEAST) >= IntVector{} + Int(COUNT));
        special |= bit_cast<BitVector>(bit_cast<IntVector>(bit_cast<BitVector>(each) - LEAST) < IntVector{});
        store(y + i, logarithm<Out>(each));
    }
    Bits any = 0;
    for (int64_t l = 0; l < WIDTH; ++l) any |= special[l];
    for (int64_t i = 0; any && i < count; ++i)
        if (bit_cast<Bits>(x[i]) - LEAST >= COUNT) y[i] = std::log(x[i]);
}

// ------------------------------------------------------------------------------------------------ passes

struct Problem {
    int64_t lines, length;  // of counts
    int64_t by_class;       // whether a line is a class
    int64_t threads;
};

// Counts as tasks take them: several rows as one where they are short.
struct Lines {
    const Element* counts;
    int64_t total;         // of counts
    int64_t count, length;  // of lines; the last may be shorter
    int64_t classes;
    bool by_class;
    int64_t threads;
    int64_t block, width;  // lines and columns of a task
    int64_t down, across;  // tasks
    std::vector<Out> eps;  // of each class, or of each column of a line

    Lines(const Problem& p, const Element* counts, const Out* smoothing)
        : counts(counts), total(p.lines * p.length), classes(p.by_class ? p.lines : p.length), by_class(p.by_class),
          threads(p.threads) {
        length = by_class ? p.length : p.length * std::max<int64_t>(1, PIECE / p.length);
        count = ceil_div(total, length);
        block = by_class ? 1 : std::max<int64_t>(1, BLOCK / length);
        width = by_class ? BLOCK : length;
        down = ceil_div(count, block);
        across = ceil_div(length, width);
        eps = spread(smoothing);
    }

    std::vector<Out> spread(const Out* of_class) const {
        std::vector<Out> all(by_class ? classes : length);
        for (size_t i = 0; i < all.size(); ++i) all[i] = of_class[i % classes];
        return all;
    }
    int64_t end_of(int64_t line) const { return std::min(length, total - line * length); }
};

// F of up to PIECE counts; eps of each, or of all.
template <bool EACH, class T>
void add_smoothing(const T* counts, int64_t count, const Out* eps, Out* mass) {
    if constexpr (std::is_same_v<T, int64_t>) {
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
void each_piece(const Lines& x, int64_t line, int64_t begin, int64_t end, const Work& work) {
    Out mass[PIECE];
    const Element* const counts = x.counts + line * x.length;
    for (int64_t first = begin; first < end; first += PIECE) {
        const int64_t count = std::min(PIECE, end - first);
        if (x.by_class)
            add_smoothing<false>(counts + first, count, x.eps.data() + line, mass);
        else
            add_smoothing<true>(counts + first, count, x.eps.data() + first, mass);
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

// total [classes], zero: += their sums.
void mass_of(const Lines& x, double* total) {
    if (x.by_class) {
        std::vector<double> parts(x.down * x.across);
        for_each_task(x.threads, x.down * x.across, [&](int, int64_t t) {
            const int64_t c = t / x.across, first = t % x.across * x.width;
            double sum = 0;
            each_piece(x, c, first, std::min(first + x.width, x.length),
                       [&](int64_t, int64_t count, const Out* mass) { sum += sum_of(mass, count); });
            parts[t] = sum;
        });
        for (int64_t t = 0; t < x.down * x.across; ++t) total[t / x.across] += parts[t];
        return;
    }
    const std::unique_ptr<double[]> parts(new double[x.down * x.length]);
    for_each_task(x.threads, x.down, [&](int, int64_t t) {
        double* const part = parts.get() + t * x.length;
        std::fill_n(part, x.length, 0.0);
        for (int64_t l = t * x.block; l < std::min(x.count, (t + 1) * x.block); ++l)
            each_piece(x, l, 0, x.end_of(l), [&](int64_t first, int64_t count, const Out* mass) {
                double* __restrict__ const sums = part + first;
                for (int64_t i = 0; i < count; ++i) sums[i] += mass[i];
            });
    });
    for (int64_t t = 0; t < x.down; ++t)
        for (int64_t i = 0; i < x.length; ++i) total[i % x.classes] += parts[t * x.length + i];
}

void weights_of(const Lines& x, const std::vector<Out>& shift, Out* weights) {
    for_each_task(x.threads, x.down * x.across, [&](int, int64_t t) {
        const int64_t begin = t % x.across * x.width, row = t / x.across * x.block;
        for (int64_t l = row; l < std::min(x.count, row + x.block); ++l)
            each_piece(x, l, begin, std::min(begin + x.width, x.end_of(l)), [&](int64_t first, int64_t count, Out* mass) {
                const int64_t padded = ceil_div(count, WIDTH) * WIDTH;
                std::fill(mass + count, mass + padded, Out(1));
                Out logs[PIECE];
                log_all(mass, padded, logs);
                Out* __restrict__ const y = weights + l * x.length + first;
                if (x.by_class)
                    for (int64_t i = 0; i < count; ++i) y[i] = logs[i] - shift[l];
                else
                    for (int64_t i = 0; i < count; ++i) y[i] = logs[i] - shift[first + i];
            });
    });
}

}  // namespace

// ------------------------------------------------------------------------------------------------ C interface
// counts and weights [lines, length], eps and log_mass [classes]. factor: 1 − 1/K.

extern "C" int log_shift_forward(const Problem* problem, const Element* counts, const Out* eps, double factor,
                                 Out* weights, Out* log_mass) noexcept {
    return guarded([&] {
        const Lines lines(*problem, counts, eps);
        std::vector<double> total(lines.classes);
        std::vector<Out> shift(lines.classes);
        mass_of(lines, total.data());
        for (int64_t c = 0; c < lines.classes; ++c) {
            const double logarithm = std::log(total[c]);
            log_mass[c] = Out(logarithm);
            shift[c] = factor == 0 ? Out(0) : Out(factor * logarithm);  // of a class without mass too
        }
        weights_of(lines, lines.spread(shift.data()), weights);
        return true;
    });
}
