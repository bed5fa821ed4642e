// Hard thresholds: forward, backward, and sums over a channel: those that the gradients of an affine
// map need, and those of a batch norm's statistics.
//
//   block = some hundred elements of y, or some rows of it where a pool has made them, in the order of memory. Blocks end
//           where bytes of the bit planes do.
//   task  = some blocks: always the same, so that sums come out the same on any number of threads
//
// A block goes through stages, plain loops over buffers in the first cache: z widened and through the affine map, the
// maxima, y, what is kept; backward the factor, dx at the winners, dz. Memory that can be read as it lies is not copied.

#include "../runtime/native/bits.hpp"
#include "../runtime/native/exponential.hpp"

#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

namespace {

using Vector = Simd<Compute>::Vector;
using Whole = Simd<Compute>::Index;
constexpr int64_t WIDTH = Simd<Compute>::WIDTH;
using Group = Eight<Compute>::Vector;
using WholeGroup = Eight<Compute>::IndexVector;
constexpr int64_t BLOCK = 512, TASK = 1 << 14;  // elements of y, about

enum Kind { SIGN, STEP, STAIRCASE, SATURATED_RELU };
enum Family { ALL, MASK, SIDED, SECH, RAMP, ADALINE };
enum Kept { Z, M, BITS, BYTE };

struct Numbers {  // mirrored in by_cpp.py
    int64_t count, channels, inner;  // of y; a channel's elements of z that lie side by side
    int64_t width;                   // of a pooled row; 0: there is no pool
    int64_t kind, steps, family, is_open, weighted, kept, keeps;
    int64_t mapped, threads;  // mapped: the backward has coefficients
    double low, high, height, slope, offset;
};

struct Call : Numbers {
    const Element *z = nullptr, *dy = nullptr;
    const Compute *scale = nullptr, *shift = nullptr;  // [channels]
    Element *y = nullptr, *kept_m = nullptr, *dz = nullptr;
    uint8_t* code = nullptr;
    const Compute *coefficients = nullptr, *center = nullptr;  // [4, channels], [channels]

    explicit Call(const void* numbers) : Numbers(*static_cast<const Numbers*>(numbers)) {}

    int64_t pooled() const { return width ? 4 : 1; }  // elements of z for one of y
    int64_t plane_bytes() const { return ceil_div(count, 8); }
    uint8_t* plane(int number) const { return code + (kept == BYTE ? count : 0) + number * plane_bytes(); }
    int planes_of_rule() const { return kept != BITS ? 0 : family == MASK ? 1 : family == SIDED ? 2 : 0; }
    int64_t block() const {
        if (!width) return BLOCK;
        const int64_t rows = 8 / std::gcd(int64_t(8), width);  // that fill their bytes
        return rows * width * std::max<int64_t>(1, BLOCK / (rows * width));
    }
};

template <class T>
inline T rounded(Compute x) {
    if constexpr (std::is_same_v<T, Compute>) return x;
    const Compute nan = std::numeric_limits<Compute>::quiet_NaN();  // whose bits survive the rounding
    return narrow_exact<T>(x != x ? nan : Rounding(false)(x));
}

// The memory, where it can be read or written as it is.
inline const Compute* as_computed(const Compute* memory) { return memory; }
inline Compute* as_computed(Compute* memory) { return memory; }
template <class T>
inline const Compute* as_computed(const T*) { return nullptr; }
template <class T>
inline Compute* as_computed(T*) { return nullptr; }

// visit(channel, place, run) of z's elements [first, first + count): runs of one channel, or of channels one by one.
template <class Visit>
inline void each_run(const Call& call, int64_t first, int64_t count, const Visit& visit) {
    const int64_t length = call.inner == 1 ? call.channels : call.inner;
    int64_t run = length - first % length, channel = call.inner == 1 ? first % length : first / length % call.channels;
    for (int64_t at = 0; at < count; at += run, run = length) {
        run = std::min(run, count - at);
        visit(channel, at, run);
        channel = call.inner == 1 ? 0 : channel + 1 == call.channels ? 0 : channel + 1;
    }
}

// exp(−|x| / PER_UNIT) of vectors.
struct HalvingOfDouble {
    static constexpr double PER_UNIT = 1;
    template <class V>
    static V of(V x) { return exponential<double>(x < 0 ? x : -x); }
};
// As a power of two: exponential() is made for results that are right to the last digits, however small. Here what counts
// is the error beside 1, which is below 2^-23.
struct HalvingOfFloat {
    static constexpr double PER_UNIT = 1.4426950408889634;
    template <class V>
    static V of(V x) {
        using I = Simd<float>::IndexVector;
        // x + MAGIC is rounded to an integer n, and its low bits hold n + 127, the exponent of 2^n; 0 at −127, so that 2^n is 0
        constexpr float MAGIC = 0x1.8p23f + 127;
        // the least relative error of 2^f, |f| ≤ 1/2
        constexpr float TERMS[] = {1.327647245e-03f, 9.675541893e-03f, 5.550713092e-02f, 2.402212024e-01f, 6.931469440e-01f, 1.000000000e+00f};
        const V wanted = bit_cast<V>(bit_cast<I>(x) | std::numeric_limits<int32_t>::min());
        const V size = larger(V{} - 127, wanted);  // a NaN stays
        const V shifted = size + MAGIC, f = size - (shifted - MAGIC);
        V y = V{} + TERMS[0];
        for (int i = 1; i < int(std::size(TERMS)); ++i) y = y * f + TERMS[i];
        return y * bit_cast<V>(bit_cast<I>(shifted) << 23);
    }
};
using Halving = std::conditional_t<std::is_same_v<Compute, double>, HalvingOfDouble, HalvingOfFloat>;

// Memory of any content; null where nothing is needed of it.
template <class T>
std::unique_ptr<T[]> buffer(int64_t count) { return std::unique_ptr<T[]>(count ? new T[count] : nullptr); }

// What one thread works with.
class Worker {
 public:
    explicit Worker(const Call& call)
        : call_(call), block_(ceil_div(call.block(), 64) * 64),
          pooled_(call.width ? block_ : 0), x_(buffer<Compute>(block_ * call.pooled())), pairs_(buffer<Compute>(2 * pooled_)),
          m_(buffer<Compute>(block_)), weight_(buffer<Compute>(block_)), dm_(buffer<Compute>(block_)),
          columns_(buffer<Whole>(2 * pooled_)), column_(buffer<Whole>(pooled_)), row_(buffer<Whole>(pooled_)) {}

    void forward(int64_t first, int64_t count) {
        const Compute* const m = maxima(first, count);
        activate(m, count, call_.y + first);
        if (!call_.keeps) return;
        if (call_.kept == M)
            for (int64_t i = 0; i < count; ++i) call_.kept_m[first + i] = rounded<Element>(m[i]);
        if (call_.kept == BYTE) {
            Compute* const share = weight_.get();
            std::fill_n(share, count, Compute(1));
            by_factor(share, m, count, 1, share);
            uint8_t* __restrict__ const code = call_.code + first;
            for (int64_t i = 0; i < count; ++i) {
                const Compute of_255 = share[i] * 255, raised = of_255 > 0 ? of_255 : Compute(0);  // NaN: 0
                code[i] = uint8_t(bit_cast<Whole>(raised + ROUND));
            }
        }
        const int planes = call_.planes_of_rule();
        const Compute low = Compute(call_.low), high = Compute(call_.high);
        if (planes == 1 && call_.is_open)
            write_plane(0, m, first, count, [=](Group x) { return (x > low) & (x <= high); });
        else if (planes == 1)
            write_plane(0, m, first, count, [=](Group x) { return (x >= low) & (x <= high); });
        if (planes == 2) {
            write_plane(0, m, first, count, [=](Group x) { return x >= low; });
            write_plane(1, m, first, count, [=](Group x) { return x <= high; });
        }
        if (call_.width && call_.kept != Z) {
            write_plane(planes, column_.get(), first, count, [](WholeGroup x) { return x; });
            write_plane(planes + 1, row_.get(), first, count, [](WholeGroup x) { return x; });
        }
    }

    void backward(int64_t first, int64_t count) {
        Element* const target = call_.dz + first * call_.pooled();
        Compute *const memory = as_computed(target), *const dx = gradient(first, count, memory);
        count *= call_.pooled();
        first *= call_.pooled();
        if (call_.scale) mapped(dx, first, count);
        if (dx != memory)
            for (int64_t i = 0; i < count; ++i) target[i] = rounded<Element>(dx[i]);
    }

    // += Σ dx and Σ dx (z − center) of a block to [2, channels].
    void add_sums(int64_t first, int64_t count, double* sums) {
        const Compute* const dx = gradient(first, count, nullptr);
        const Element* const z = call_.z + first * call_.pooled();
        add_each(first * call_.pooled(), count * call_.pooled(), call_.center, sums, [=](int64_t i, Compute center) {
            return std::pair(dx[i], dx[i] * (widen<Compute>(z[i]) - center));
        });
    }

    // += Σ (z − center) and Σ (z − center)² of z's elements to [2, channels].
    void add_moments(int64_t first, int64_t count, const double* centers, double* sums) const {
        const Element* const z = call_.z + first;
        add_each(first, count, centers, sums, [=](int64_t i, double center) {
            const double d = double(widen<Compute>(z[i])) - center;
            return std::pair(d, d * d);
        });
    }

 private:
    // to add it rounds to even; the sum's last bits are the whole number's
    static constexpr Compute ROUND = sizeof(Compute) == 8 ? Compute(0x1.8p52) : Compute(0x1.8p23);

    // ---------------------------------------------------------------------------------------- sums

    // += the sums of both numbers that of(place, center of its channel) gives for each element, to [2, channels].
    template <class C, class Of>
    void add_each(int64_t first, int64_t count, const C* centers, double* sums, const Of& of) const {
        double *const firsts = sums, *const seconds = sums + call_.channels;
        each_run(call_, first, count, [&](int64_t c, int64_t at, int64_t run) {
            if (call_.inner == 1) {
                for (int64_t i = 0; i < run; ++i) {
                    const auto [u, v] = of(at + i, centers[c + i]);
                    firsts[c + i] += u;
                    seconds[c + i] += v;
                }
                return;
            }
            constexpr int64_t LANES = 16;
            const C center = centers[c];
            C a[LANES] = {}, b[LANES] = {};
            int64_t i = 0;
            for (; i + LANES <= run; i += LANES)
                for (int64_t l = 0; l < LANES; ++l) {
                    const auto [u, v] = of(at + i + l, center);
                    a[l] += u;
                    b[l] += v;
                }
            for (int64_t l = 0; i < run; ++i, ++l) {
                const auto [u, v] = of(at + i, center);
                a[l] += u;
                b[l] += v;
            }
            for (int64_t half = LANES / 2; half; half /= 2)
                for (int64_t l = 0; l < half; ++l) a[l] += a[l + half], b[l] += b[l + half];
            firsts[c] += a[0];
            seconds[c] += b[0];
        });
    }

    // ---------------------------------------------------------------------------------------- m

    // x of z's elements [first, first + count), in the buffer or where they lie.
    const Compute* affine(int64_t first, int64_t count) {
        const Element* const z = call_.z + first;
        if (!call_.scale && as_computed(z)) return as_computed(z);
        Compute* const x = x_.get();
        if (!call_.scale) {
            for (int64_t i = 0; i < count; ++i) x[i] = widen<Compute>(z[i]);
            return x;
        }
        each_run(call_, first, count, [&](int64_t c, int64_t at, int64_t run) {
            const Compute *const scale = call_.scale + c, *const shift = call_.shift + c;
            if (call_.inner == 1) {
                for (int64_t i = 0; i < run; ++i) x[at + i] = widen<Compute>(z[at + i]) * scale[i] + shift[i];
            } else {
                const Compute by = *scale, plus = *shift;
                for (int64_t i = 0; i < run; ++i) x[at + i] = widen<Compute>(z[at + i]) * by + plus;
            }
        });
        if constexpr (!std::is_same_v<Element, Compute>)
            for (int64_t i = 0; i < count; ++i) x[i] = x[i] != x[i] ? x[i] : Rounding(false)(x[i]);
        return x;
    }

    // m of y's elements [first, first + count); of a pool also which column and row of four, −1 for the second.
    const Compute* maxima(int64_t first, int64_t count) {
        const int64_t width = call_.width;
        if (!width) return affine(first, count);
        const Compute* const x = affine(4 * first, 4 * count);
        Compute* __restrict__ const pairs = pairs_.get();
        Whole* __restrict__ const columns = columns_.get();
        for (int64_t i = 0; i < 2 * count; ++i) {
            const Compute a = x[2 * i], b = x[2 * i + 1];
            const bool wins = (b > a) | (b != b);
            pairs[i] = wins ? b : a;
            columns[i] = wins ? -1 : 0;
        }
        for (int64_t begin = 0; begin < count; begin += width) {
            const Compute *const top = pairs + 2 * begin, *const bottom = top + width;
            const Whole *const of_top = columns + 2 * begin, *const of_bottom = of_top + width;
            Compute* __restrict__ const m = m_.get() + begin;
            Whole *__restrict__ const column = column_.get() + begin, *__restrict__ const row = row_.get() + begin;
            for (int64_t i = 0; i < width; ++i) {
                const Compute a = top[i], b = bottom[i];
                const bool wins = (b > a) | (b != b);
                m[i] = wins ? b : a;
                column[i] = wins ? of_bottom[i] : of_top[i];
                row[i] = wins ? -1 : 0;
            }
        }
        return m_.get();
    }

    void activate(const Compute* m, int64_t count, Element* y) const {
        const Compute n = Compute(call_.steps), fewer = n - 1;
        switch (call_.kind) {
            case SIGN:
                for (int64_t i = 0; i < count; ++i)
                    y[i] = rounded<Element>(m[i] > 0 ? Compute(1) : m[i] <= 0 ? Compute(-1) : m[i]);
                break;
            case STEP:
                for (int64_t i = 0; i < count; ++i)
                    y[i] = rounded<Element>(m[i] > 0 ? Compute(1) : m[i] <= 0 ? Compute(0) : m[i]);
                break;
            case STAIRCASE:
                for (int64_t i = 0; i < count; ++i) {
                    const Compute level = std::ceil(m[i] * fewer), raised = level < 0 ? Compute(0) : level;
                    y[i] = rounded<Element>((raised > n ? n : raised) / n);
                }
                break;
            default:
                for (int64_t i = 0; i < count; ++i) {
                    const Compute raised = m[i] < 0 ? Compute(0) : m[i];
                    y[i] = rounded<Element>(raised > 1 ? Compute(1) : raised);
                }
        }
    }

    // ---------------------------------------------------------------------------------------- rules

    // weight times the factor of sech², whose largest is `height`, or of the ramp; dm may be weight.
    void by_factor(const Compute* weight, const Compute* m, int64_t count, Compute height, Compute* dm) const {
        if (call_.family == RAMP) {
            for (int64_t i = 0; i < count; ++i) {
                const Compute left = 2 - std::abs(m[i]), raised = left < 0 ? Compute(0) : left;
                dm[i] = weight[i] * (raised > 1 ? Compute(1) : raised);
            }
            return;
        }
        // sech²(a) = 4e / (1 + e)², e = exp(−2|a|)
        const Compute slope = Compute(2 * call_.slope * Halving::PER_UNIT), offset = Compute(2 * call_.offset * Halving::PER_UNIT);
        by_vectors<Vector>(weight, count, dm, [=](Vector w, int64_t i, int64_t many) {
            const Vector e = Halving::of(loaded<Vector>(m + i, many) * slope + offset), one_more = e + Compute(1);
            return w * (4 * height * e / (one_more * one_more));
        });
    }

    template <class V>
    static V loaded(const Compute* from, int64_t count) {
        if (count * sizeof(Compute) == sizeof(V)) return load<V>(from);
        V some{};
        std::memcpy(&some, from, count * sizeof(Compute));
        return some;
    }

    // dm = of(vector of weights, its place, how many of it there are).
    template <class V, class Of>
    static void by_vectors(const Compute* weight, int64_t count, Compute* dm, const Of& of) {
        constexpr int64_t MANY = sizeof(V) / sizeof(Compute);
        int64_t i = 0;
        for (; i + MANY <= count; i += MANY) store(dm + i, of(load<V>(weight + i), i, MANY));
        if (i == count) return;
        const V rest = of(loaded<V>(weight + i, count - i), i, count - i);
        std::memcpy(dm + i, &rest, (count - i) * sizeof(Compute));
    }

    // ---------------------------------------------------------------------------------------- planes

    // yes(eight elements): of each 0 or −1.
    template <class T, class Yes>
    void write_plane(int number, const T* from, int64_t first, int64_t count, const Yes& yes) const {
        using V = std::conditional_t<std::is_same_v<T, Compute>, Group, WholeGroup>;
        uint8_t* __restrict__ const plane = call_.plane(number) + first / 8;
        const auto byte = [&](const T* eight) {
            Whole each[8];
            store(each, WholeGroup(yes(load<V>(eight))));
            return as_byte(each);
        };
        int64_t i = 0;
        for (; i + 8 <= count; i += 8) plane[i / 8] = byte(from + i);
        if (i == count) return;
        T rest[8] = {};
        std::copy(from + i, from + count, rest);
        plane[i / 8] = uint8_t(byte(rest) & ((1 << (count - i)) - 1));
    }

    // Elements of 0 and −1, up to a multiple of eight.
    void read_plane(int number, int64_t first, int64_t count, Whole* each) const {
        const uint8_t* const plane = call_.plane(number) + first / 8;
        for (int64_t i = 0; i < count; i += 8) store(each + i, from_byte<Compute>(plane[i / 8]));
    }

    // ---------------------------------------------------------------------------------------- dx

    // dx of y's elements [first, first + count), written there or to a buffer.
    Compute* gradient(int64_t first, int64_t count, Compute* there) {
        const Compute* m = nullptr;
        if (call_.kept == Z) {
            // of a straight-through estimator m does not count, but its winners do
            if (call_.width || call_.family != ALL) m = maxima(first, count);
        } else {
            const int planes = call_.planes_of_rule();
            if (call_.width) {
                read_plane(planes, first, count, column_.get());
                read_plane(planes + 1, first, count, row_.get());
            }
            if (call_.kept == M) m = read_kept(first, count);
        }
        const Compute* const weight = weights(first, count);
        Compute* const dm = !call_.width && there ? there : dm_.get();
        by_rule(weight, m, first, count, dm);
        if (!call_.width) return dm;
        Compute* const dx = there ? there : x_.get();
        at_winners(dm, count, dx);
        return dx;
    }

    const Compute* read_kept(int64_t first, int64_t count) {
        const Element* const memory = call_.kept_m + first;
        if (as_computed(memory)) return as_computed(memory);
        for (int64_t i = 0; i < count; ++i) m_[i] = widen<Compute>(memory[i]);
        return m_.get();
    }

    const Compute* weights(int64_t first, int64_t count) {
        const Element* const dy = call_.dy + first;
        if (call_.weighted && as_computed(dy)) return as_computed(dy);
        Compute* const weight = weight_.get();
        for (int64_t i = 0; i < count; ++i) weight[i] = widen<Compute>(dy[i]);
        if (!call_.weighted)
            for (int64_t i = 0; i < count; ++i)
                weight[i] = weight[i] > 0 ? Compute(1) : weight[i] < 0 ? Compute(-1) : weight[i];
        return weight;
    }

    void by_rule(const Compute* weight, const Compute* m, int64_t first, int64_t count, Compute* __restrict__ dm) const {
        if (call_.kept == BYTE) {
            const uint8_t* const code = call_.code + first;
            const Compute height = Compute(call_.height);
            for (int64_t i = 0; i < count; ++i) dm[i] = weight[i] * (Compute(code[i]) / 255 * height);
            return;
        }
        const Compute low = Compute(call_.low), high = Compute(call_.high);
        switch (call_.family) {
            case ALL:
                std::copy(weight, weight + count, dm);
                return;
            case MASK:
                if (call_.kept == BITS) {
                    const uint8_t* const plane = call_.plane(0) + first / 8;
                    by_vectors<Group>(weight, count, dm, [=](Group w, int64_t i, int64_t) {
                        return bit_cast<Group>(bit_cast<WholeGroup>(w) & from_byte<Compute>(plane[i / 8]));
                    });
                } else if (call_.is_open) {
                    for (int64_t i = 0; i < count; ++i) dm[i] = (m[i] > low) & (m[i] <= high) ? weight[i] : Compute(0);
                } else {
                    for (int64_t i = 0; i < count; ++i) dm[i] = (m[i] >= low) & (m[i] <= high) ? weight[i] : Compute(0);
                }
                return;
            case SIDED:
                if (call_.kept == BITS) {
                    const uint8_t *const above = call_.plane(0) + first / 8, *const below = call_.plane(1) + first / 8;
                    by_vectors<Group>(weight, count, dm, [=](Group w, int64_t i, int64_t) {
                        const WholeGroup falls = (w > 0) & ~from_byte<Compute>(above[i / 8]);
                        const WholeGroup rises = (w < 0) & ~from_byte<Compute>(below[i / 8]);
                        return bit_cast<Group>(bit_cast<WholeGroup>(w) & ~(falls | rises));
                    });
                } else {
                    for (int64_t i = 0; i < count; ++i) {
                        const Compute w = weight[i];
                        const bool stays = ((w > 0) & !(m[i] >= low)) | ((w < 0) & !(m[i] <= high));
                        dm[i] = stays ? Compute(0) : w;
                    }
                }
                return;
            case ADALINE:
                for (int64_t i = 0; i < count; ++i) dm[i] = weight[i] + std::abs(weight[i]) * m[i];
                return;
            default:
                by_factor(weight, m, count, Compute(call_.height), dm);
        }
    }

    void at_winners(const Compute* dm, int64_t count, Compute* dx) const {
        const int64_t width = call_.width;
        for (int64_t begin = 0; begin < count; begin += width) {
            const Compute* const d = dm + begin;
            const Whole *const column = column_.get() + begin, *const row = row_.get() + begin;
            Compute *__restrict__ const top = dx + 4 * begin, *__restrict__ const bottom = top + 2 * width;
            for (int64_t i = 0; i < width; ++i) {
                const Compute left = column[i] ? Compute(0) : d[i], right = column[i] ? d[i] : Compute(0);
                top[2 * i] = row[i] ? Compute(0) : left;
                top[2 * i + 1] = row[i] ? Compute(0) : right;
                bottom[2 * i] = row[i] ? left : Compute(0);
                bottom[2 * i + 1] = row[i] ? right : Compute(0);
            }
        }
    }

    // dz of dx, in place: p dx + q (z − center) + r. Where q is 0 z does not count, infinite as it may be. Without
    // coefficients p is the scale, and the others are 0.
    void mapped(Compute* dx, int64_t first, int64_t count) const {
        if (!call_.coefficients) {
            each_run(call_, first, count, [&](int64_t c, int64_t at, int64_t run) {
                Compute* const d = dx + at;
                const Compute *const scale = call_.scale + c, by = *scale;
                if (call_.inner == 1)
                    for (int64_t i = 0; i < run; ++i) d[i] = scale[i] * d[i];
                else
                    for (int64_t i = 0; i < run; ++i) d[i] = by * d[i];
            });
            return;
        }
        const Compute *const p = call_.coefficients, *const q = p + call_.channels, *const center = q + call_.channels,
                      *const r = center + call_.channels;
        const Element* const z = call_.z + first;
        each_run(call_, first, count, [&](int64_t c, int64_t at, int64_t run) {
            Compute* const d = dx + at;
            if (call_.inner == 1) {
                for (int64_t i = 0; i < run; ++i) {
                    const Compute pull = q[c + i] * (widen<Compute>(z[at + i]) - center[c + i]);
                    d[i] = p[c + i] * d[i] + (q[c + i] == 0 ? Compute(0) : pull) + r[c + i];
                }
                return;
            }
            const Compute by = p[c], slope = q[c], middle = center[c], plus = r[c];
            if (slope == 0)
                for (int64_t i = 0; i < run; ++i) d[i] = by * d[i] + plus;
            else
                for (int64_t i = 0; i < run; ++i) d[i] = by * d[i] + slope * (widen<Compute>(z[at + i]) - middle) + plus;
        });
    }

    const Call& call_;
    const int64_t block_, pooled_;  // elements of y that buffers hold, and those of a pool
    const std::unique_ptr<Compute[]> x_, pairs_, m_, weight_, dm_;
    const std::unique_ptr<Whole[]> columns_, column_, row_;
};

// task(worker, number, first, end) of each task's elements of y.
template <class Task>
void each_task(const Call& call, int64_t size, int64_t tasks, const Task& task) {
    std::atomic<int64_t> next{0};
    in_parallel(int(std::max<int64_t>(1, std::min(call.threads, tasks))), [&](int) {
        Worker worker(call);
        for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
            task(worker, t, t * size, std::min(call.count, (t + 1) * size));
    });
}

template <class Task>
void each_block(const Call& call, const Task& task) {
    const int64_t block = call.block(), size = block * std::max<int64_t>(1, TASK / block);
    each_task(call, size, ceil_div(call.count, size), [&](Worker& worker, int64_t, int64_t first, int64_t end) {
        for (; first < end; first += block) task(worker, first, std::min(block, end - first));
    });
}

// [2, channels], of add(worker, a block's first element, its elements, sums), the same on any number of threads.
template <class Add>
std::vector<double> totals(const Call& call, const Add& add) {
    const int64_t block = call.block(), length = 2 * call.channels;
    const int64_t size = block * std::max<int64_t>(1, std::max(TASK, 64 * call.channels) / block);
    const int64_t tasks = ceil_div(call.count, size);
    std::vector<double> parts(tasks * length), total(length);
    each_task(call, size, tasks, [&](Worker& worker, int64_t t, int64_t first, int64_t end) {
        for (; first < end; first += block) add(worker, first, std::min(block, end - first), parts.data() + t * length);
    });
    for (int64_t t = 0; t < tasks; ++t)
        for (int64_t i = 0; i < length; ++i) total[i] += parts[t * length + i];
    return total;
}

template <class... T>
void take(void* const* addresses, T*&... memory) { ((memory = static_cast<T*>(*addresses++)), ...); }

}  // namespace

// Addresses: z, scale, shift, y, m, code. Whatever a form has not is null.
extern "C" int hard_threshold_forward(const void* numbers, void* const* addresses) noexcept {
    return guarded([&] {
        Call call(numbers);
        take(addresses, call.z, call.scale, call.shift, call.y, call.kept_m, call.code);
        each_block(call, [](Worker& worker, int64_t first, int64_t count) { worker.forward(first, count); });
        return true;
    });
}

// Addresses: dy, z, scale, shift, m, code, dz, two that are not used, and coefficients where dz is mapped by them.
extern "C" int hard_threshold_backward(const void* numbers, void* const* addresses) noexcept {
    return guarded([&] {
        Call call(numbers);
        take(addresses, call.dy, call.z, call.scale, call.shift, call.kept_m, call.code, call.dz);
        if (call.mapped) take(addresses + 9, call.coefficients);
        each_block(call, [](Worker& worker, int64_t first, int64_t count) { worker.backward(first, count); });
        return true;
    });
}

// Addresses: dy, z, scale, shift, center, sums.
extern "C" int hard_threshold_sums(const void* numbers, void* const* addresses) noexcept {
    return guarded([&] {
        Call call(numbers);
        Compute* sums;
        take(addresses, call.dy, call.z, call.scale, call.shift, call.center, sums);
        for (const double sum : totals(call, [](Worker& worker, int64_t first, int64_t count, double* sums) {
                 worker.add_sums(first, count, sums);
             }))
            *sums++ = Compute(sum);
        return true;
    });
}

// Addresses: z, and of each channel the mean and the biased variance.
extern "C" int hard_threshold_statistics(const void* numbers, void* const* addresses) noexcept {
    return guarded([&] {
        Call call(numbers);
        Compute *mean, *variance;
        take(addresses, call.z, mean, variance);
        // the mean can be many times the spread: what is summed, in double, is the difference from some element
        std::vector<double> centers(call.channels);
        for (int64_t c = 0; c < call.channels; ++c) {
            const double some = widen<Compute>(call.z[c * call.inner]);
            centers[c] = some - some == 0 ? some : 0;
        }
        const std::vector<double> moments = totals(call, [&](Worker& worker, int64_t first, int64_t count, double* sums) {
            worker.add_moments(first, count, centers.data(), sums);
        });
        const double count = double(call.count / call.channels);
        for (int64_t c = 0; c < call.channels; ++c) {
            const double off = moments[c] / count, square = moments[call.channels + c] / count - off * off;
            mean[c] = Compute(centers[c] + off);
            variance[c] = Compute(square < 0 ? 0 : square);
        }
        return true;
    });
}
