// Sums of each class's rows: rows are sorted by their labels, and a class's rows added up from memory that is read once.
//
//   order    = the rows by class, each class's in their order
//   segment  = up to SEGMENT rows of one class, a task: its sums go to the result, or, where a class has more segments,
//              to a row of their own, and these are added up in their order
//   step     = rows that are added at once, so that a sum is fetched and put back once for all of them
//
// Every sum is made in the order of the rows, whatever the number of threads and the width of the vectors. Bytes and
// 16-bit integers are added up in lanes of twice their width, which are emptied before they can overflow.

#include "../runtime/native/native.hpp"

#include <cmath>
#include <memory>

namespace {

constexpr bool IS_INTEGER = std::is_integral_v<Element>;
constexpr int64_t SEGMENT = 512;           // rows: as many of int16 fit in int32
constexpr int64_t STEP = 8;                // rows
constexpr int64_t STRIP = 2048;            // columns whose sums lie in the first cache
constexpr int64_t IN_CACHE = 128 << 10;    // bytes of rows that are read a second time while they lie in the second cache
constexpr int64_t AHEAD = 4;               // rows that are asked for before their turn
constexpr double LEAST = 0x1p-900;         // weights of rows in [LEAST, 1 / LEAST] neither overflow nor lose bits

struct Problem {
    int64_t rows, features, classes;
    int64_t of_row;       // stride of x in elements; the columns are contiguous
    int64_t label_bytes;  // of a label; negative where it is unsigned
    int64_t normalised;
    int64_t threads;
};

struct Rows {
    const Element* x;
    int64_t of_row;

    const Element* operator[](int64_t row) const { return x + row * of_row; }
};

// ------------------------------------------------------------------------------------------------ order

// order: the rows by class; begin [classes + 1]: where each class's rows begin. Whether all labels are classes.
template <class Label>
bool sort_rows(const Problem& p, const Label* labels, uint32_t* order, int64_t* begin) {
    const int64_t C = p.classes;
    // a histogram for each piece of the rows, unless these would be more to look at than the rows
    const int64_t pieces = std::max<int64_t>(1, std::min(p.threads, std::min(p.rows >> 13, p.rows / (4 * C))));
    const int64_t piece = ceil_div(p.rows, pieces);
    std::vector<uint32_t> at(pieces * C);
    std::atomic<bool> in_range{true};
    for_each_task(p.threads, pieces, [&](int, int64_t t) {
        uint32_t* const count = at.data() + t * C;
        bool good = true;
        for (int64_t m = t * piece, end = std::min(p.rows, m + piece); m < end; ++m) {
            const auto label = labels[m];
            const bool inside = uint64_t(int64_t(label)) < uint64_t(C);
            good &= inside;
            if (inside) ++count[label];
        }
        if (!good) in_range = false;
    });
    if (!in_range) return false;
    uint32_t next = 0;
    for (int64_t c = 0; c < C; ++c) {
        begin[c] = next;
        for (int64_t t = 0; t < pieces; ++t) {
            const uint32_t count = at[t * C + c];
            at[t * C + c] = next;
            next += count;
        }
    }
    begin[C] = next;
    for_each_task(p.threads, pieces, [&](int, int64_t t) {
        uint32_t* const place = at.data() + t * C;
        for (int64_t m = t * piece, end = std::min(p.rows, m + piece); m < end; ++m) order[place[labels[m]]++] = uint32_t(m);
    });
    return true;
}

bool sort_rows(const Problem& p, const void* labels, uint32_t* order, int64_t* begin) {
    switch (p.label_bytes) {
    case -1: return sort_rows(p, static_cast<const uint8_t*>(labels), order, begin);
    case 1: return sort_rows(p, static_cast<const int8_t*>(labels), order, begin);
    case 2: return sort_rows(p, static_cast<const int16_t*>(labels), order, begin);
    case 4: return sort_rows(p, static_cast<const int32_t*>(labels), order, begin);
    default: return sort_rows(p, static_cast<const int64_t*>(labels), order, begin);
    }
}

// ------------------------------------------------------------------------------------------------ signs

using Bits = std::conditional_t<sizeof(Element) == 8, int64_t, std::conditional_t<sizeof(Element) == 4, int32_t,
             std::conditional_t<sizeof(Element) == 2, int16_t, int8_t>>>;
constexpr bool HAS_SIGN = !std::is_unsigned_v<Element>;

inline bool is_negative(Element x) { return widen<Compute>(x) < 0; }  // −0 is not

// Looks again where some sign was set.
bool has_negative(const Rows& x, const uint32_t* order, int64_t count, int64_t features) {
    for (int64_t m = 0; m < count; ++m)
        for (int64_t d = 0; d < features; ++d)
            if (is_negative(x[order[m]][d])) return true;
    return false;
}

// ------------------------------------------------------------------------------------------------ integers

// acc[d] += the rows' elements d; returns the signs.
template <int R, class Sum>
Bits add_rows(const Element* const* rows, int64_t first, int64_t last, Sum* __restrict__ acc) {
    const Element* row[R];
    std::copy(rows, rows + R, row);
    Bits signs = 0;
    for (int64_t d = first; d < last; ++d) {
        Sum sum = acc[d - first];
        for (int r = 0; r < R; ++r) {
            const Element x = row[r][d];
            sum += Sum(widen<Compute>(x));
            if constexpr (HAS_SIGN) signs |= bit_cast<Bits>(x);
        }
        acc[d - first] = sum;
    }
    return signs;
}

// The sums of bytes, a vector of columns at a time: its even columns in one vector of lanes, its odd ones in another.
struct ByteSums {
    using Lanes = uint16_t __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int64_t WIDTH = VECTOR_BYTES;  // columns
    static constexpr int64_t MOST = 256;            // rows before lanes are emptied: 255 · 257 would fit

    Lanes lanes[STRIP / VECTOR_BYTES][2];

    // Columns [first, last), at least WIDTH; where they are no multiple of WIDTH the last vectors overlap.
    template <int R>
    Lanes add(const Element* const* rows, const Element* const* coming, int64_t first, int64_t last, Lanes signs) {
        const uint8_t* row[R];
        const uint8_t* next[R];
        for (int r = 0; r < R; ++r) {
            row[r] = reinterpret_cast<const uint8_t*>(rows[r]);
            next[r] = reinterpret_cast<const uint8_t*>(coming[r]);
        }
        for (int64_t d = first, v = 0; d < last; d += WIDTH, ++v) {
            const int64_t at = std::min(d, last - WIDTH);
            Lanes even = lanes[v][0], odd = lanes[v][1];
            for (int r = 0; r < R; ++r) {
                __builtin_prefetch(next[r] + d);
                const Lanes bytes = load<Lanes>(row[r] + at);
                even += bytes & 0xff;
                odd += bytes >> 8;
                if constexpr (HAS_SIGN) signs |= bytes;
            }
            lanes[v][0] = even;
            lanes[v][1] = odd;
        }
        return signs;
    }

    void empty_into(int64_t* sums, int64_t first, int64_t last) {
        for (int64_t d = first, v = 0; d < last; d += WIDTH, ++v) {
            const int64_t at = std::min(d, last - WIDTH);
            for (int64_t l = (d - at) / 2; l < WIDTH / 2; ++l) {
                if (at + 2 * l >= d) sums[at + 2 * l] += lanes[v][0][l];
                sums[at + 2 * l + 1] += lanes[v][1][l];
            }
            lanes[v][0] = lanes[v][1] = Lanes{};
        }
    }
};

// sums [features], zero: += the rows. Whether no element is negative.
bool add_integers(const Rows& x, const uint32_t* order, int64_t count, int64_t features, int64_t* sums) {
    Bits signs = 0;
    const Element* rows[2 * STEP];
    const auto fetch = [&](int64_t m) {  // the rows of a step, and those of the next
        for (int64_t r = 0; r < 2 * STEP; ++r) rows[r] = x[order[std::min(m + r, count - 1)]];
    };
    if constexpr (sizeof(Element) == 1) {
        if (features >= ByteSums::WIDTH) {
            ByteSums bytes;
            std::memset(&bytes, 0, sizeof bytes);
            ByteSums::Lanes set{};
            // the last strip is no narrower than a vector
            for (int64_t first = 0, last; first < features; first = last) {
                last = features - first < STRIP ? features : std::min(first + STRIP, features - ByteSums::WIDTH);
                for (int64_t m = 0, held = 0; m < count;) {
                    fetch(m);
                    if (count - m >= STEP) {
                        set = bytes.add<STEP>(rows, rows + STEP, first, last, set);
                        m += STEP, held += STEP;
                    } else {
                        set = bytes.add<1>(rows, rows + 1, first, last, set);
                        m += 1, held += 1;
                    }
                    if (held + STEP > ByteSums::MOST || m >= count) bytes.empty_into(sums, first, last), held = 0;
                }
            }
            uint16_t any = 0;
            for (int64_t l = 0; l < ByteSums::WIDTH / 2; ++l) any |= set[l];
            return !(HAS_SIGN && (any & 0x8080)) || !has_negative(x, order, count, features);
        }
    }
    using Sum = std::conditional_t<sizeof(Element) <= 2, int32_t, uint64_t>;  // which may wrap
    Sum partial[STRIP];
    for (int64_t first = 0; first < features; first += STRIP) {
        const int64_t last = std::min(first + STRIP, features);
        std::fill_n(partial, last - first, Sum(0));
        int64_t m = 0;
        for (; m + STEP <= count; m += STEP) {
            fetch(m);
            signs |= add_rows<STEP>(rows, first, last, partial);
        }
        for (; m < count; ++m) {
            rows[0] = x[order[m]];
            signs |= add_rows<1>(rows, first, last, partial);
        }
        for (int64_t d = first; d < last; ++d) sums[d] = int64_t(partial[d - first]);
    }
    return !(HAS_SIGN && signs < 0);
}

// ------------------------------------------------------------------------------------------------ float64 sums

using Eight = double __attribute__((vector_size(64)));
using EightFloats = float __attribute__((vector_size(32)));
using EightInts = int32_t __attribute__((vector_size(32)));
using EightShorts = uint16_t __attribute__((vector_size(16)));

inline EightFloats float_of(EightInts bits) { return bit_cast<EightFloats>(bits); }

// Elements that are widened at once. Bytes come in another order: element 4 l + k in lane l of part k.
constexpr int64_t WIDTH = sizeof(Element) == 1 ? 32 : 8;
constexpr int PARTS = WIDTH / 8;
using RawVector = Bits __attribute__((vector_size(WIDTH * sizeof(Element))));
using Number = std::conditional_t<std::is_class_v<Element>, Bits, Element>;
using NumberVector = Number __attribute__((vector_size(WIDTH * sizeof(Element))));

template <class T, class Raw, class Own>
struct ChunkOf {
    Raw raw;

    explicit ChunkOf(const T* x) : raw(load<Raw>(x)) {}

    template <int K>
    void part(Eight& wide) const {
        if constexpr (sizeof(T) == 1) {
            const EightInts four = bit_cast<EightInts>(raw);
            if constexpr (HAS_SIGN)
                wide = __builtin_convertvector(four << (24 - 8 * K) >> 24, Eight);
            else
                wide = __builtin_convertvector(four >> 8 * K & 0xff, Eight);
        } else if constexpr (std::is_same_v<T, Brain>) {
            wide = __builtin_convertvector(bit_cast<EightFloats>(bits() << 16), Eight);
        } else if constexpr (std::is_same_v<T, Half>) {
            const EightInts sign = (bits() & 0x8000) << 16, magnitude = bits() & 0x7fff;
            const EightInts rebias = magnitude < 0x7c00 ? EightInts{} + (112 << 23) : EightInts{} + (224 << 23);
            const EightFloats subnormal = __builtin_convertvector(magnitude, EightFloats) * 0x1p-24f;
            const EightInts chosen = magnitude < 0x0400 ? bit_cast<EightInts>(subnormal) : (magnitude << 13) + rebias;
            wide = __builtin_convertvector(bit_cast<EightFloats>(sign | chosen), Eight);
        } else if constexpr (sizeof(T) == 2) {
            wide = __builtin_convertvector(__builtin_convertvector(bit_cast<Own>(raw), EightInts), Eight);
        } else {
            wide = __builtin_convertvector(bit_cast<Own>(raw), Eight);
        }
    }

    EightInts bits() const { return __builtin_convertvector(bit_cast<EightShorts>(raw), EightInts); }

    // What `part` has exchanged, put back: WIDTH elements.
    static void put_back(double* x) {
        if constexpr (sizeof(T) == 1) {
            double of[WIDTH];
            std::copy(x, x + WIDTH, of);
            for (int64_t i = 0; i < WIDTH; ++i) x[i] = of[i % 4 * 8 + i / 4];
        }
    }
};
using Chunk = ChunkOf<Element, RawVector, NumberVector>;

template <bool WEIGHTED>
inline void add_to(Eight& sum, const Eight& part, const double* weight) {
    Eight factor;
    if (WEIGHTED) std::memcpy(&factor, weight, sizeof factor);
    sum += WEIGHTED ? factor * part : part;
}

struct Bytes { uint8_t at[2 * VECTOR_BYTES]; };
constexpr Bytes zeros_and_ones() {
    Bytes bytes{};
    for (int i = VECTOR_BYTES; i < 2 * VECTOR_BYTES; ++i) bytes.at[i] = 0xff;
    return bytes;
}
constexpr Bytes MASKS = zeros_and_ones();
constexpr const uint8_t* LAST_BYTES = MASKS.at;  // a vector from the n-th of them on has its last n bytes set

// Σ x in as many parts on every processor; that of integers below 2^53 is exact.
double sum_of(const Element* x, int64_t count, const Element* coming) {
    int64_t i = 0;
    double sum = 0;
    if constexpr (sizeof(Element) == 1) {
        using Lanes = ByteSums::Lanes;
        using Longs = uint32_t __attribute__((vector_size(VECTOR_BYTES)));
        const auto add = [](Longs& total, Lanes bytes) {  // in lanes of 16 bits, then of 32
            const Longs pairs = bit_cast<Longs>((bytes & 0xff) + (bytes >> 8));
            total += (pairs & 0xffff) + (pairs >> 16);
        };
        Longs total{};
        for (; i + VECTOR_BYTES <= count; i += VECTOR_BYTES) {
            __builtin_prefetch(reinterpret_cast<const char*>(coming + i));
            add(total, load<Lanes>(x + i));
        }
        if (count >= VECTOR_BYTES) {
            add(total, load<Lanes>(x + count - VECTOR_BYTES) & load<Lanes>(LAST_BYTES + (count - i)));
            i = count;
        }
        uint32_t sums[VECTOR_BYTES / 4], all = 0;  // of up to 2^24 bytes
        std::memcpy(sums, &total, sizeof sums);
        for (const uint32_t each : sums) all += each;
        sum = all;
    } else {
        Eight parts{};
        for (; i + 8 <= count; i += 8) {
            __builtin_prefetch(reinterpret_cast<const char*>(coming + i));
            Eight wide;
            Chunk(x + i).template part<0>(wide);
            parts += wide;
        }
        sum = ((parts[0] + parts[4]) + (parts[2] + parts[6])) + ((parts[1] + parts[5]) + (parts[3] + parts[7]));
    }
    for (; i < count; ++i) sum += double(widen<Compute>(x[i]));
    return sum;
}

// acc[d] += weight[r] · the rows' elements d, row after row, acc in the order of Chunk; returns the signs. Columns
// [first, last), but for those behind the last whole chunk.
template <int R, bool WEIGHTED>
Bits add_weighted(const Element* const* rows, const double* weights, int64_t first, int64_t last, double* acc) {
    const Element* row[R];
    double weight[R][8];  // eight times in memory, as compilers are slow to spread a number over two vectors
    for (int r = 0; r < R; ++r) {
        row[r] = rows[r];
        using Vector = Simd<double>::Vector;
        for (int l = 0; WEIGHTED && l < 8; l += Simd<double>::WIDTH) store(weight[r] + l, Vector{} + weights[r]);
    }
    RawVector signs{};
    for (int64_t d = first; d + WIDTH <= last; d += WIDTH) {
        Eight sums[PARTS], wide;
        for (int k = 0; k < PARTS; ++k) std::memcpy(&sums[k], acc + d + 8 * k, sizeof(Eight));
        for (int r = 0; r < R; ++r) {
            const Chunk x(row[r] + d);
            if constexpr (HAS_SIGN) signs |= x.raw;
            x.template part<0>(wide);
            add_to<WEIGHTED>(sums[0], wide, weight[r]);
            if constexpr (PARTS == 4) {
                x.template part<1>(wide);
                add_to<WEIGHTED>(sums[1], wide, weight[r]);
                x.template part<2>(wide);
                add_to<WEIGHTED>(sums[2], wide, weight[r]);
                x.template part<3>(wide);
                add_to<WEIGHTED>(sums[3], wide, weight[r]);
            }
        }
        for (int k = 0; k < PARTS; ++k) std::memcpy(acc + d + 8 * k, &sums[k], sizeof(Eight));
    }
    Bits any = 0;
    for (int64_t l = 0; l < WIDTH; ++l) any |= signs[l];
    return any;
}

// The same of rows that are narrower than a chunk, acc in the order of the elements.
template <int R, bool WEIGHTED>
Bits add_few(const Element* const* rows, const double* weights, int64_t features, double* acc) {
    Bits signs = 0;
    for (int64_t d = 0; d < features; ++d)
        for (int r = 0; r < R; ++r) {
            const double wide = double(widen<Compute>(rows[r][d]));
            acc[d] += WEIGHTED ? weights[r] * wide : wide;
            if constexpr (HAS_SIGN) signs |= bit_cast<Bits>(rows[r][d]);
        }
    return signs;
}

struct Normalisation {
    double scale, offset;
};

// A row whose sum, or its inverse, is beyond what a float64 holds: times a power of two. Whether it has a sum.
bool add_odd_row(const Element* x, int64_t features, const Normalisation& to, double* acc, double* shift) {
    double largest = to.offset;
    for (int64_t d = 0; d < features; ++d) largest = std::max(largest, double(widen<Compute>(x[d])));
    if (!(largest > 0 && largest <= std::numeric_limits<double>::max())) return false;
    const double power = std::ldexp(1.0, -std::max(-1000, std::min(1000, std::ilogb(largest))));
    double sum = double(features) * (to.offset * power);
    for (int64_t d = 0; d < features; ++d) sum += double(widen<Compute>(x[d])) * power;
    for (int64_t d = 0; d < features; ++d) acc[d] += to.scale * (double(widen<Compute>(x[d])) * power / sum);
    *shift += to.scale * (to.offset * power / sum);
    return true;
}

// sums [features], zero: += the rows, with a normalisation or without. Whether all elements are finite and none is
// negative, and each row has a sum, where it needs one.
template <bool WEIGHTED>
bool add_floats(const Rows& x, const uint32_t* order, int64_t count, int64_t features, const Normalisation& to,
                double* sums) {
    const int64_t most = WEIGHTED ? std::max(STEP, IN_CACHE / (features * int64_t(sizeof(Element)) + 1) / STEP * STEP) : SEGMENT;
    // the columns behind the last whole chunk are a part of one more chunk, with sums of its own
    const int64_t whole = features - features % WIDTH, rest = features < WIDTH || whole == features ? 0 : features - WIDTH;
    double rest_sums[WIDTH] = {};
    double weights[SEGMENT];
    double shift = 0;
    bool has_odd = false;
    Bits signs = 0;
    for (int64_t begin = 0; begin < count; begin += most) {
        const int64_t end = std::min(count, begin + most);
        for (int64_t m = begin; WEIGHTED && m < end; ++m) {
            const Element* const coming = x[order[std::min(m + AHEAD, count - 1)]];
            const double weight = to.scale / (sum_of(x[order[m]], features, coming) + double(features) * to.offset);
            const bool is_odd = !(weight >= LEAST && weight <= 1 / LEAST);
            weights[m - begin] = is_odd ? 0 : weight;
            shift += weights[m - begin] * to.offset;
            has_odd |= is_odd;
        }
        const Element* rows[STEP];
        for (int64_t first = 0; first < features; first += STRIP) {
            const int64_t last = std::min(first + STRIP, features);
            const auto add = [&](auto step, int64_t m) {
                constexpr int R = decltype(step)::value;
                for (int64_t r = 0; r < R; ++r) rows[r] = x[order[m + r]];
                if (features < WIDTH) {
                    signs |= add_few<R, WEIGHTED>(rows, weights + m - begin, features, sums);
                    return;
                }
                signs |= add_weighted<R, WEIGHTED>(rows, weights + m - begin, first, last, sums);
                if (rest && last == features)
                    signs |= add_weighted<R, WEIGHTED>(rows, weights + m - begin, rest, features, rest_sums - rest);
            };
            int64_t m = begin;
            for (; m + STEP <= end; m += STEP) add(std::integral_constant<int, STEP>{}, m);
            for (; m < end; ++m) add(std::integral_constant<int, 1>{}, m);
        }
    }
    for (int64_t d = 0; d < whole; d += WIDTH) Chunk::put_back(sums + d);
    if (rest) {
        Chunk::put_back(rest_sums);
        std::copy(rest_sums + (whole - rest), rest_sums + WIDTH, sums + whole);
    }
    for (int64_t m = 0; has_odd && m < count; ++m) {
        const Element* const row = x[order[m]];
        const double weight = to.scale / (sum_of(row, features, row) + double(features) * to.offset);
        const bool is_odd = !(weight >= LEAST && weight <= 1 / LEAST);
        if (is_odd && !add_odd_row(row, features, to, sums, &shift)) return false;
    }
    double worst = 0;
    for (int64_t d = 0; d < features; ++d) {
        sums[d] += shift;
        worst += sums[d] - sums[d];  // NaN where one is not finite
    }
    return worst == 0 && !(HAS_SIGN && signs < 0 && has_negative(x, order, count, features));
}

// ------------------------------------------------------------------------------------------------ all

struct Segment {
    int64_t first, count;  // in the order
    int64_t row;           // of the result, or of `parts`
    bool is_part;
};

template <class Sum, class Add>
bool sums_of(const Problem& p, const uint32_t* order, const int64_t* begin, Sum* result, const Add& add) {
    std::vector<Segment> segments;
    std::vector<int64_t> split;  // classes of several segments
    int64_t parts = 0;
    for (int64_t c = 0; c < p.classes; ++c) {
        const int64_t count = begin[c + 1] - begin[c];
        if (count <= SEGMENT) {
            segments.push_back({begin[c], count, c, false});
            continue;
        }
        split.push_back(c);
        for (int64_t m = 0; m < count; m += SEGMENT)
            segments.push_back({begin[c] + m, std::min(SEGMENT, count - m), parts++, true});
    }
    // in the order of their rows in memory: threads, and one segment after the other, read what lies close together
    std::stable_sort(segments.begin(), segments.end(), [&](const Segment& a, const Segment& b) {
        return a.count && b.count ? order[a.first] < order[b.first] : a.count > b.count;
    });
    const std::unique_ptr<Sum[]> partial(new Sum[parts * p.features]);
    std::atomic<bool> good{true};
    for_each_task(p.threads, int64_t(segments.size()), [&](int, int64_t t) {
        const Segment& s = segments[t];
        Sum* const sums = (s.is_part ? partial.get() : result) + s.row * p.features;
        std::fill_n(sums, p.features, Sum(0));
        if (s.count && !add(order + s.first, s.count, sums)) good = false;
    });
    const Sum* from = partial.get();
    for (const int64_t c : split) {
        const int64_t count = ceil_div(begin[c + 1] - begin[c], SEGMENT);
        Sum* const sums = result + c * p.features;
        const int64_t tasks = ceil_div(p.features, STRIP);
        for_each_task(count > 64 ? p.threads : 1, tasks, [&](int, int64_t t) {
            const int64_t first = t * STRIP, last = std::min(first + STRIP, p.features);
            std::copy(from + first, from + last, sums + first);
            for (int64_t part = 1; part < count; ++part)
                for (int64_t d = first; d < last; ++d) sums[d] += from[part * p.features + d];
        });
        from += count * p.features;
    }
    return good;
}

}  // namespace

// ------------------------------------------------------------------------------------------------ C interface
// result [classes, features]: int64 where integers are not normalised, else double. INDEX_OUT_OF_RANGE means that a label
// is no class, or an element negative or not finite, or a row without a sum, or a sum beyond float64: whoever calls
// looks for the first.

extern "C" int cooccurrence_sums(const Problem* problem, const Element* x, const void* labels, double scale,
                                 double offset, void* result) noexcept {
    return guarded([&] {
        const Problem& p = *problem;
        const std::unique_ptr<uint32_t[]> order(new uint32_t[p.rows]);
        std::vector<int64_t> begin(p.classes + 1);
        if (!sort_rows(p, labels, order.get(), begin.data())) return false;
        const Rows rows{x, p.of_row};
        const Normalisation to{scale, offset};
        const auto floats = [&](auto weighted) {
            return sums_of(p, order.get(), begin.data(), static_cast<double*>(result),
                           [&](const uint32_t* of, int64_t count, double* sums) {
                               return add_floats<decltype(weighted)::value>(rows, of, count, p.features, to, sums);
                           });
        };
        if (p.normalised) return floats(std::true_type{});
        if constexpr (IS_INTEGER)
            return sums_of(p, order.get(), begin.data(), static_cast<int64_t*>(result),
                           [&](const uint32_t* of, int64_t count, int64_t* sums) {
                               return add_integers(rows, of, count, p.features, sums);
                           });
        else
            return floats(std::false_type{});
    });
}
