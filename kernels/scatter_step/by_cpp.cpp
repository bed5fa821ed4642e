// A step on the touched entries of W: g[key] = Σ of the values that share a key, then the rule, once for each key.
//
//   key     = row · columns + column, of W [rows, columns, width]; a value is one element, or a row of `width` elements
//   bucket  = keys of one range; entries are moved there in the order of the list, so that what follows stays in cache
//   table   = open addressing inside a bucket: which entry of the bucket holds the sum of a key
//
// Values are added in the order of the list whatever the number of threads, which share out buckets: always the same
// bits. All indices are looked at before anything is written, and operands may lie in one another: the step is that on
// copies of what it reads. A step that is to be finite is first made without a write, and looked at.

#include "../runtime/native/native.hpp"

#include <cmath>
#include <iterator>
#include <memory>

namespace {

enum Rule { SGD, MOMENTUM, ADAGRAD, POLYAK, ADAM, RMSPROP };  // RULES of definition.py

constexpr int64_t MOST_BUCKETS = 1 << 11;
constexpr int64_t AHEAD = 16;  // entries whose place in W is asked for before their turn
constexpr std::size_t MOST_KEPT = 32 << 20;  // bytes of each kind of buffer that a thread keeps for its next call
constexpr uint32_t LAST = UINT32_MAX;
constexpr int64_t NO_KEY = INT64_MAX, NO_ENTRY = -1;

struct Problem {
    int64_t count, rows, columns, width;
    const void *row_index, *column_index;  // [count]; no column_index: an index names a row
    const Element* values;                 // [count, width], contiguous
    Element* param;
    int64_t of_row, of_column, of_inner;   // strides of param
    int64_t entries_a_bucket;
    Rule rule;
    bool has_wide_indices, must_be_finite;
    double lr, momentum, decay, eps;
    Compute *moment, *square;              // velocity, sum or mean, and mean square [rows · columns, width], contiguous
    int32_t* touched;                      // [rows · columns]: the step of the last touch
    int32_t step;                          // the number of this one
    int threads;
};

struct Span {  // of bytes
    const char *begin, *end;

    bool meets(const Span& other) const { return begin < other.end && other.begin < end; }
};

template <class T>
Span span(const T* first, int64_t count) {
    const auto* const begin = reinterpret_cast<const char*>(first);
    return {begin, begin + (first ? count * int64_t(sizeof(T)) : 0)};
}

// From the first element of W to behind the last.
Span span_of_param(const Problem& p) {
    return span(p.param, (p.rows - 1) * p.of_row + (p.columns - 1) * p.of_column + (p.width - 1) * p.of_inner + 1);
}

// Whether an element of W, which may have gaps, lies in these bytes.
bool param_lies_in(const Problem& p, const Span& bytes) {
    if (!span_of_param(p).meets(bytes)) return false;
    for (int64_t r = 0; r < p.rows; ++r)
        for (int64_t c = 0; c < p.columns; ++c)
            for (int64_t j = 0; j < p.width; ++j)
                if (span(p.param + r * p.of_row + c * p.of_column + j * p.of_inner, 1).meets(bytes)) return true;
    return false;
}

// Memory of the last call of this thread, unless it is much: touching fresh pages can cost more than the step.
template <class T>
T* room(int64_t count, std::unique_ptr<T[]>& own) {
    thread_local std::unique_ptr<T[]> kept;
    thread_local int64_t capacity = 0;
    if (count * sizeof(T) > MOST_KEPT) {
        own.reset(new T[count]);
        return own.get();
    }
    if (count > capacity) {
        capacity = 0;
        kept.reset(new T[count]);
        capacity = count;
    }
    return kept.get();
}

inline Element rounded(Compute x) {
    if (x != x) return narrow_exact<Element>(x);
    return narrow_exact<Element>(Rounding(false)(x));
}

// The row of W at `key`.
inline Element* at(const Problem& p, int64_t key) {
    if (p.of_row == p.columns * p.of_column) return p.param + key * p.of_column;  // divisions are dear
    return p.param + key / p.columns * p.of_row + key % p.columns * p.of_column;
}

struct Rates {  // of one step, as the rules take them
    Compute lr, norm;  // ‖g‖ is of Polyak's alone
    Compute mean, square, root;  // 1 − momentum, 1 − decay and its root
};

__attribute__((noinline)) Compute power(double base, int32_t exponent) { return Compute(std::pow(base, exponent)); }

// The rule on the row of W at `key`; G is Element or Compute. Where WRITES is false nothing is written, and returned is
// whether all that would be is finite.
template <Rule RULE, bool WRITES, class G>
bool move(const Problem& p, int64_t key, const G* g, const Rates& rates) {
    Element* const w = at(p, key);
    const int64_t width = p.width, of_inner = p.of_inner;
    Compute *const moment = p.moment + key * width, *const square = p.square + key * width;
    const Compute lr = rates.lr, eps = Compute(p.eps);
    bool is_finite = true;
    const auto keep = [&](Compute& place, Compute x) {
        if constexpr (WRITES) place = x;
        else is_finite &= bool(std::isfinite(x));
        return x;
    };
    const auto put = [&](int64_t j, Compute x) {
        if constexpr (WRITES) w[j * of_inner] = rounded(x);
        else is_finite &= std::isfinite(x) && std::isfinite(Rounding(false)(x));  // a NaN has no rounding
    };
    const auto weight = [&](int64_t j) { return widen<Compute>(w[j * of_inner]); };
    const auto step = [&](int64_t j, Compute delta) { put(j, weight(j) - delta); };
    // lr · x / (√v + eps). √v ≥ √(1 − decay) |g|, but where v is too small to be told from 0; nothing by 0 is no step
    const auto step_over_root = [&](int64_t j, Compute x, Compute v, Compute g) {
        const Compute root = std::sqrt(v), least = rates.root * std::abs(g);
        const Compute below = (v < std::numeric_limits<Compute>::min() && least > root ? least : root) + eps;
        const Compute from = weight(j), to = from - lr * (x / below);
        put(j, below == 0 ? from : to);
    };
    if constexpr (RULE == MOMENTUM) {
        const int32_t since = p.step - p.touched[key];
        // expected: the registers that a call needs are then saved only where there is one
        const Compute decay = __builtin_expect(since == 1, 1) ? Compute(p.momentum) : power(p.momentum, since);
        if constexpr (WRITES) p.touched[key] = p.step;
        for (int64_t j = 0; j < width; ++j)
            step(j, lr * keep(moment[j], decay * moment[j] + widen<Compute>(g[j])));
    } else if constexpr (RULE == ADAGRAD) {
        for (int64_t j = 0; j < width; ++j) {
            const Compute x = widen<Compute>(g[j]), sum = keep(moment[j], moment[j] + x * x);
            if (x == 0) {  // without eps it would be 0 / 0
                if constexpr (!WRITES) put(j, weight(j));
                continue;
            }
            // √q ≥ |g|, but where g² is too small to be told from 0
            step(j, lr * (x / (std::max(std::sqrt(sum), std::abs(x)) + eps)));
        }
    } else if constexpr (RULE == ADAM) {
        for (int64_t j = 0; j < width; ++j) {
            const Compute x = widen<Compute>(g[j]), m = moment[j], v = square[j];
            const Compute mean = keep(moment[j], m + (x - m) * rates.mean);
            const Compute following = v + (x * x - v) * rates.square;
            const bool is_full = v == std::numeric_limits<Compute>::infinity();  // ∞ − ∞ would be NaN
            step_over_root(j, mean, keep(square[j], is_full ? v : following), x);
        }
    } else if constexpr (RULE == RMSPROP) {
        for (int64_t j = 0; j < width; ++j) {
            const Compute x = widen<Compute>(g[j]);
            const Compute v = keep(square[j], square[j] * Compute(p.decay) + rates.square * x * x);
            step_over_root(j, x, v, x);
        }
    } else if constexpr (RULE == POLYAK) {
        for (int64_t j = 0; j < width; ++j) step(j, lr * (widen<Compute>(g[j]) / rates.norm));
    } else {
        for (int64_t j = 0; j < width; ++j) step(j, lr * widen<Compute>(g[j]));
    }
    return is_finite;
}

// work(rule), with the rule as a constant: each has a loop of its own.
template <class Work>
void with_constant(Rule rule, const Work& work) {
    switch (rule) {
    case MOMENTUM: return work(std::integral_constant<Rule, MOMENTUM>());
    case ADAGRAD: return work(std::integral_constant<Rule, ADAGRAD>());
    case POLYAK: return work(std::integral_constant<Rule, POLYAK>());
    case ADAM: return work(std::integral_constant<Rule, ADAM>());
    case RMSPROP: return work(std::integral_constant<Rule, RMSPROP>());
    default: return work(std::integral_constant<Rule, SGD>());
    }
}

// SCALAR: an entry carries its value, and sums grow in place. Otherwise it carries its position in the list, and the
// positions that share a key are chained: a row without a duplicate is never copied.
template <bool SCALAR>
class Step {
    using Payload = std::conditional_t<SCALAR, Compute, uint32_t>;
    struct Entry {
        uint32_t low;  // the key's bits below its bucket's number
        Payload payload;
    };

    const Problem& p;
    int shift = 0;
    int64_t buckets = 1, chunks;
    std::vector<int64_t> ends;           // [chunks][buckets], then of the buckets
    std::vector<int64_t> begins, sizes;  // [buckets]
    struct Slot { uint32_t entry; };     // 1 + the entry of a key, or 0
    struct Link { uint32_t position; };  // that follows in a chain, or LAST
    std::unique_ptr<Entry[]> own_entries;
    std::unique_ptr<Slot[]> own_slots;
    std::unique_ptr<Link[]> own_links;
    Entry* entries = nullptr;
    Link* next = nullptr;                // [count]

    struct Scratch {
        Slot* table;
        std::vector<uint32_t> tail;      // entry -> the last position of its chain
        std::vector<Compute> sum;
    };
    std::vector<Scratch> scratch;

public:
    explicit Step(const Problem& problem) : p(problem), chunks(p.threads) {
        const int64_t keys = p.rows * p.columns;
        const int64_t wanted = std::clamp<int64_t>(p.count / p.entries_a_bucket, 1, MOST_BUCKETS);
        while (keys >> shift > wanted) ++shift;
        shift = std::min(shift, 32);
        buckets = std::max<int64_t>(1, ((keys - 1) >> shift) + 1);
    }

    // Returns whether all indices are in range. culprit: an entry of the least key that would not be finite, if one is.
    bool run(int64_t& culprit) {
        if (!(p.has_wide_indices ? partition<int64_t>() : partition<int32_t>())) return false;
        int64_t longest = 0;
        for (const int64_t size : sizes) longest = std::max(longest, size);
        scratch.resize(p.threads);
        Slot* table = room(p.threads * slots(longest), own_slots);
        for (Scratch& s : scratch) {
            s.table = table;
            table += slots(longest);
            if constexpr (!SCALAR) {
                s.tail.resize(longest);
                s.sum.resize(p.width);
            }
        }
        double lr = p.lr, norm = 1;
        bool rests = false;  // where Polyak's g is 0
        if (p.rule == POLYAK) {
            std::vector<double> squares(buckets, 0.0);
            for_each_task(p.threads, buckets, [&](int thread, int64_t b) {
                reduce(b, scratch[thread]);
                visit(b, scratch[thread], [&](int64_t, const auto* g) {
                    for (int64_t j = 0; j < p.width; ++j) {
                        const double x = widen<Compute>(g[j]);
                        squares[b] += x * x;
                    }
                });
            });
            norm = 0;
            for (const double x : squares) norm += x;
            rests = norm == 0;
            norm = rests ? 1 : std::sqrt(norm);
            lr = rests ? 0 : lr / norm;  // once more by the norm is g: lr / ‖g‖² can be infinite where the step is not
        }
        if (p.rule == ADAM) lr = lr * std::sqrt(1 - std::pow(p.decay, p.step)) / (1 - std::pow(p.momentum, p.step));
        const Rates rates{Compute(lr), Compute(norm), Compute(1 - p.momentum), Compute(1 - p.decay),
                          Compute(std::sqrt(1 - p.decay))};
        bool is_reduced = p.rule == POLYAK;
        if (p.must_be_finite) {
            std::vector<int64_t> bad(buckets, NO_KEY);
            for_each_task(p.threads, buckets, [&](int thread, int64_t b) {
                if (!is_reduced) reduce(b, scratch[thread]);
                with_constant(p.rule, [&](auto rule) {
                    visit(b, scratch[thread], [&](int64_t key, const auto* g) {
                        if (!move<rule, false>(p, key, g, rates)) bad[b] = std::min(bad[b], key);
                    });
                });
            });
            is_reduced = true;
            const int64_t least = *std::min_element(bad.begin(), bad.end());
            if (least != NO_KEY) {
                culprit = p.has_wide_indices ? entry_of<int64_t>(least) : entry_of<int32_t>(least);
                return true;
            }
        }
        if (rests) return true;
        for_each_task(p.threads, buckets, [&](int thread, int64_t b) {
            if (!is_reduced) reduce(b, scratch[thread]);
            with_constant(p.rule, [&](auto rule) {
                visit(b, scratch[thread], [&](int64_t key, const auto* g) { move<rule, true>(p, key, g, rates); });
            });
        });
        return true;
    }

private:
    // The key of an entry, −1 where it is skipped; in_range is cleared where it names nothing.
    template <class Index>
    int64_t key(int64_t i, bool& in_range) const {
        const auto *const rows = static_cast<const Index*>(p.row_index), *const columns = static_cast<const Index*>(p.column_index);
        const int64_t row = rows[i], column = columns ? int64_t(columns[i]) : 0;
        in_range &= row >= -1 && row < p.rows && column >= -1 && column < p.columns;
        return row < 0 || column < 0 ? -1 : row * p.columns + column;
    }

    // The first entry of a key that is listed.
    template <class Index>
    int64_t entry_of(int64_t wanted) const {
        bool in_range = true;
        int64_t i = 0;
        while (key<Index>(i, in_range) != wanted) ++i;
        return i;
    }

    // Entries into the order of their buckets, and within one in the order of the list; false: an index out of range.
    template <class Index>
    bool partition() {
        return buckets == 1 && chunks == 1 ? collect<Index>() : distribute<Index>();
    }

    void make_room(int64_t count) {
        entries = room(count, own_entries);
        if constexpr (!SCALAR) next = room(p.count, own_links);
    }

    Entry entry(int64_t k, int64_t i) const {
        const uint32_t low = uint32_t(k & ((int64_t(1) << shift) - 1));
        if constexpr (SCALAR)
            return {low, widen<Compute>(p.values[i])};
        else
            return {low, uint32_t(i)};
    }

    template <class Index>
    bool collect() {
        make_room(p.count);
        int64_t found = 0;
        bool in_range = true;
        for (int64_t i = 0; i < p.count; ++i) {
            const int64_t k = key<Index>(i, in_range);
            entries[found] = entry(k, i);
            found += k >= 0;
        }
        begins = {0};
        sizes = {found};
        return in_range;
    }

    template <class Index>
    bool distribute() {
        ends.assign(chunks * buckets, 0);
        std::atomic<bool> good{true};
        for_each_task(p.threads, chunks, [&](int, int64_t c) {
            int64_t* const counts = ends.data() + c * buckets;
            bool in_range = true;
            for (int64_t i = c * p.count / chunks; i < (c + 1) * p.count / chunks; ++i) {
                const int64_t k = key<Index>(i, in_range);
                if (k >= 0 && in_range) ++counts[k >> shift];
            }
            if (!in_range) good = false;
        });
        if (!good) return false;
        int64_t total = 0;
        for (int64_t b = 0; b < buckets; ++b) {
            begins.push_back(total);
            for (int64_t c = 0; c < chunks; ++c) {
                const int64_t count = ends[c * buckets + b];
                ends[c * buckets + b] = total;
                total += count;
            }
            sizes.push_back(total - begins[b]);
        }
        make_room(total);
        for_each_task(p.threads, chunks, [&](int, int64_t c) {
            int64_t* const at = ends.data() + c * buckets;
            bool in_range = true;
            for (int64_t i = c * p.count / chunks; i < (c + 1) * p.count / chunks; ++i) {
                const int64_t k = key<Index>(i, in_range);
                if (k >= 0) entries[at[k >> shift]++] = entry(k, i);
            }
        });
        return true;
    }

    int table_bits(int64_t size) const {
        int bits = 1;
        while (bits < 33 && (int64_t(1) << bits) < 2 * size) ++bits;
        return std::min(bits, std::max(shift, 1));  // no more slots than there are keys in a bucket
    }
    int64_t slots(int64_t size) const { return int64_t(1) << table_bits(size); }

    // One entry for each key, at the front of its bucket, in the order of first appearance.
    void reduce(int64_t b, Scratch& s) {
        const int64_t size = sizes[b];
        if (size == 0) return;
        Entry* const e = entries + begins[b];
        const int bits = table_bits(size);
        const uint64_t mask = (uint64_t(1) << bits) - 1;
        // a slot for every key, or by Fibonacci hashing: the top bits of a product, either way
        const uint64_t factor = bits >= shift ? uint64_t(1) << (64 - bits) : 0x9e3779b97f4a7c15u;
        Slot* const table = s.table;
        std::fill_n(table, mask + 1, Slot{0});
        uint32_t found = 0;
        for (int64_t i = 0; i < size; ++i) {
            const Entry x = e[i];
            uint64_t slot = (x.low * factor) >> (64 - bits);
            while (table[slot].entry && e[table[slot].entry - 1].low != x.low) slot = (slot + 1) & mask;
            const bool is_new = !table[slot].entry;
            if (is_new) {
                e[found] = x;
                table[slot].entry = ++found;
            }
            const uint32_t which = table[slot].entry - 1;
            if constexpr (SCALAR) {
                if (!is_new) e[which].payload += x.payload;
            } else {
                if (!is_new) next[s.tail[which]].position = x.payload;
                s.tail[which] = x.payload;
                next[x.payload].position = LAST;
            }
        }
        sizes[b] = found;
    }

    // see(key, g) for each key of a reduced bucket.
    template <class See>
    void visit(int64_t b, Scratch& s, const See& see) {
        const Entry* const e = entries + begins[b];
        const int64_t size = sizes[b];
        for (int64_t u = 0; u < size; ++u) {
            const int64_t key = (b << shift) + e[u].low;
            const int64_t ahead = (b << shift) + e[std::min(u + AHEAD, size - 1)].low;
            __builtin_prefetch(at(p, ahead), 1);
            if (p.moment) __builtin_prefetch(p.moment + ahead * p.width, 1);
            if (p.square) __builtin_prefetch(p.square + ahead * p.width, 1);
            if (p.touched) __builtin_prefetch(p.touched + ahead, 1);
            if constexpr (SCALAR) {
                see(key, &e[u].payload);
            } else {
                uint32_t position = e[u].payload;
                const Element* const first = p.values + position * p.width;
                if (next[position].position == LAST) {
                    see(key, first);
                    continue;
                }
                for (int64_t j = 0; j < p.width; ++j) s.sum[j] = widen<Compute>(first[j]);
                while ((position = next[position].position) != LAST) {
                    const Element* const g = p.values + position * p.width;
                    for (int64_t j = 0; j < p.width; ++j) s.sum[j] += widen<Compute>(g[j]);
                }
                see(key, const_cast<const Compute*>(s.sum.data()));
            }
        }
    }
};

constexpr int STATE_OVERLAPS = 3, RATE_IS_NOT_FINITE = 4;  // statuses beside those of native.hpp

}  // namespace

// What by_cpp.py lays out once for calls of the same shapes and strides, as a row of integers.
struct Call {
    int64_t count, rows, columns, width, of_row, of_column, of_inner, entries_a_bucket, has_wide_indices, rule,
        must_be_finite, threads;
};

// addresses: param, row and column indices, values, lr, a rate that takes its place, momentum, decay, eps; null for what
// a call is without. Then what the rule keeps, in the order of STATE of definition.py; the number of steps there were is
// counted up here. What is written must not overlap; what is read may overlap it. Returns −1 − the culprit where a step
// that must be finite is not.
extern "C" int scatter_step(const Call* call, void* const* addresses) noexcept {
    const auto number_at = [&](int i) { return *static_cast<const double*>(addresses[i]); };
    const double lr = number_at(addresses[5] ? 5 : 4), momentum = number_at(6), decay = number_at(7), eps = number_at(8);
    void* const param = addresses[0];
    const void *const row_index = addresses[1], *const column_index = addresses[2], *const values = addresses[3];
    const Rule rule = Rule(call->rule);
    void* const* const kept = addresses + 9;
    void* const moment = rule == MOMENTUM || rule == ADAGRAD || rule == ADAM ? kept[0] : nullptr;
    void* const square = rule == ADAM ? kept[1] : rule == RMSPROP ? kept[0] : nullptr;
    auto* const touched = static_cast<int32_t*>(rule == MOMENTUM ? kept[1] : nullptr);
    auto* const number = static_cast<int32_t*>(rule == MOMENTUM || rule == ADAM ? kept[2] : nullptr);
    if (!std::isfinite(lr)) return RATE_IS_NOT_FINITE;
    bool overlaps = false;
    int64_t culprit = NO_ENTRY;
    const int status = guarded([&] {
        const Call& c = *call;
        Problem p{c.count, c.rows, c.columns, c.width, row_index, column_index,
                        static_cast<const Element*>(values), static_cast<Element*>(param), c.of_row, c.of_column,
                        c.of_inner, c.entries_a_bucket, rule, c.has_wide_indices != 0, c.must_be_finite != 0, lr, momentum, decay, eps,
                        static_cast<Compute*>(moment), static_cast<Compute*>(square), touched,
                        number ? *number + 1 : 0, int(c.threads)};
        const int64_t keys = c.rows * c.columns;
        const Span state[] = {span(p.moment, keys * c.width), span(p.square, keys * c.width), span(touched, keys),
                              span(number, 1)};
        for (const Span* x = std::begin(state); x != std::end(state); ++x) {
            if (x->begin == x->end) continue;
            overlaps = overlaps || param_lies_in(p, *x);
            for (const Span* y = std::begin(state); y != x; ++y) overlaps = overlaps || x->meets(*y);
        }
        if (overlaps) return false;
        std::vector<Element> own;
        const Span values_span = span(p.values, c.count * c.width);
        bool is_written = values_span.meets(span_of_param(p));
        for (const Span& x : state) is_written = is_written || values_span.meets(x);
        if (is_written && c.width > 1) {  // single values, like indices, are all read before anything is written
            own.assign(p.values, p.values + c.count * c.width);
            p.values = own.data();
        }
        return c.width == 1 ? Step<true>(p).run(culprit) : Step<false>(p).run(culprit);
    });
    if (culprit != NO_ENTRY) return int(-1 - culprit);
    if (number && status == DONE) ++*number;
    return overlaps ? STATE_OVERLAPS : status;
}
