// A step on the touched entries of W: g[key] = Σ of the values that share a key, then the rule, once for each key.
//
//   key     = row · columns + column, of W [rows, columns, width]; a value is one element, or a row of `width` elements
//   bucket  = keys of one range; entries are moved there in the order of the list, so that what follows stays in cache
//   table   = open addressing inside a bucket: which entry of the bucket holds the sum of a key
//   marks   = of single values: two bits, listed and listed again, of each key, or of those that a hash takes for one.
//             Only entries that are listed again need the table, and a bucket is a thread's share of W
//
// Values are added in the order of the list whatever the number of threads, which share out buckets: always the same
// bits. All indices are looked at before anything is written, and operands may lie in one another: the step is that on
// copies of what it reads. A step that is to be finite is first made without a write, and looked at.
//
// What a rule moves is gathered, and moved in batches: roots and quotients of single numbers take longer than they do.
// Several W are stepped in one call, of which all or none are written.

#include "../runtime/native/native.hpp"

#include <cmath>
#include <iterator>
#include <memory>

namespace {

enum Rule { SGD, MOMENTUM, ADAGRAD, POLYAK, ADAM, RMSPROP };  // RULES of definition.py

constexpr int64_t MOST_BUCKETS = 1 << 11;
constexpr int64_t AHEAD = 16;  // entries whose place in W is asked for before their turn
constexpr std::size_t MOST_KEPT = 32 << 20;  // bytes of each kind of buffer that a thread keeps for its next call
constexpr int64_t STEPS_WITH_KEPT_ROOM = 4;  // of a call
constexpr int64_t SHORT = 1 << 12;  // numbers whose places in W a core's cache holds until their turn
constexpr int64_t BATCH = 256;               // numbers that are moved together
constexpr int64_t MARKS = 16;  // for an entry, so that few keys share one by chance
constexpr uint32_t LAST = UINT32_MAX;
constexpr int64_t NO_KEY = INT64_MAX, NO_ENTRY = -1;

struct Problem {
    int64_t count, rows, columns, width;
    const void *row_index, *column_index;  // [count]; no column_index: an index names a row
    const Element* values;                 // [count, width], contiguous
    Element* param;
    int64_t of_row, of_column, of_inner;   // strides of param
    int64_t entries_a_bucket;
    bool has_marks;  // of single values, and not by Polyak's rule, whose norm is summed bucket by bucket
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
T* room(int64_t which, int64_t count, std::unique_ptr<T[]>& own) {
    struct Kept {
        std::unique_ptr<T[]> first;
        int64_t capacity = 0;
    };
    thread_local Kept kept[STEPS_WITH_KEPT_ROOM];
    if (which >= STEPS_WITH_KEPT_ROOM || count * sizeof(T) > MOST_KEPT) {
        own.reset(new T[count]);
        return own.get();
    }
    Kept& here = kept[which];
    if (count > here.capacity) {
        here.capacity = 0;
        here.first.reset(new T[count]);
        here.capacity = count;
    }
    return here.first.get();
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

inline bool is_finite(Compute x) { return std::abs(x) <= std::numeric_limits<Compute>::max(); }

// Numbers of W, with their gradients and their state, apart from their places.
struct Batch {
    alignas(CACHE_LINE) Compute g[BATCH], weight[BATCH], moment[BATCH], square[BATCH], decay[BATCH];

    static constexpr bool has_moment(Rule rule) { return rule == MOMENTUM || rule == ADAGRAD || rule == ADAM; }
    static constexpr bool has_square(Rule rule) { return rule == ADAM || rule == RMSPROP; }

    template <Rule RULE>
    void move(int64_t count, const Problem& p, const Rates& rates) {
        const Compute lr = rates.lr, eps = Compute(p.eps), constant = Compute(p.decay);
        // lr · x / (√v + eps). √v ≥ √(1 − decay) |g|, but where v is too small to be told from 0; nothing by 0 is no step
        const auto over_root = [&](Compute from, Compute x, Compute v, Compute g) {
            const Compute root = std::sqrt(v), least = rates.root * std::abs(g);
            const bool is_small = (v < std::numeric_limits<Compute>::min()) & (least > root);
            const Compute below = (is_small ? least : root) + eps, to = from - lr * (x / below);
            return below == 0 ? from : to;
        };
        for (int64_t u = 0; u < count; ++u) {
            const Compute x = g[u], w = weight[u];
            if constexpr (RULE == MOMENTUM) {
                moment[u] = decay[u] * moment[u] + x;
                weight[u] = w - lr * moment[u];
            } else if constexpr (RULE == ADAGRAD) {
                moment[u] = moment[u] + x * x;
                // √q ≥ |g|, but where g² is too small to be told from 0; without eps it would be 0 / 0 where g is 0
                const Compute to = w - lr * (x / (std::max(std::sqrt(moment[u]), std::abs(x)) + eps));
                weight[u] = x == 0 ? w : to;
            } else if constexpr (RULE == ADAM) {
                const Compute m = moment[u], v = square[u], following = v + (x * x - v) * rates.square;
                const bool is_full = v == std::numeric_limits<Compute>::infinity();  // ∞ − ∞ would be NaN
                moment[u] = m + (x - m) * rates.mean;
                square[u] = is_full ? v : following;
                weight[u] = over_root(w, moment[u], square[u], x);
            } else if constexpr (RULE == RMSPROP) {
                square[u] = square[u] * constant + rates.square * x * x;
                weight[u] = over_root(w, x, square[u], x);
            } else if constexpr (RULE == POLYAK) {
                weight[u] = w - lr * (x / rates.norm);
            } else {
                weight[u] = w - lr * x;
            }
        }
    }

    template <Rule RULE>
    bool is_finite_at(int64_t u) const {
        bool all = is_finite(weight[u]) & is_finite(Rounding(false)(weight[u]));  // a NaN has no rounding
        if constexpr (has_moment(RULE)) all &= is_finite(moment[u]);
        if constexpr (has_square(RULE)) all &= is_finite(square[u]);
        return all;
    }
    template <Rule RULE>
    bool all_finite(int64_t count) const {
        int bad = 0;
        for (int64_t u = 0; u < count; ++u) bad |= !is_finite_at<RULE>(u);
        return !bad;
    }
};

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

// The step of one W of a call, in three parts.
struct AnyStep {
    virtual ~AnyStep() = default;
    virtual bool sort() = 0;       // reads the indices; whether all are in range
    virtual int64_t culprit() = 0; // an entry of the least key that would not be finite, or NO_ENTRY
    virtual void write() = 0;
};

// SCALAR: an entry carries its value, and sums grow in place. Otherwise it carries its position in the list, and the
// positions that share a key are chained: a row without a duplicate is never copied.
template <bool SCALAR>
class Step final : public AnyStep {
    using Payload = std::conditional_t<SCALAR, Compute, uint32_t>;
    struct Entry {
        uint32_t low;  // the key's bits below its bucket's number
        Payload payload;
    };

    const Problem& p;
    const int64_t which;  // of the steps of this call
    int shift = 0;
    int64_t buckets = 1, chunks;
    std::vector<int64_t> ends;           // [chunks][buckets], then of the buckets
    std::vector<int64_t> begins, sizes;  // [buckets]
    struct Slot { uint32_t entry; };     // 1 + the entry of a key, or 0
    struct Link { uint32_t position; };  // that follows in a chain, or LAST
    std::unique_ptr<Entry[]> own_entries;
    std::unique_ptr<Slot[]> own_slots;
    std::unique_ptr<Link[]> own_links;
    std::unique_ptr<Compute[]> own_results;
    Entry* entries = nullptr;
    Link* next = nullptr;                // [count]
    Compute* results = nullptr;          // of single numbers that were looked at: by batches, weights and then state
    Rates rates;
    struct Marks { uint64_t listed, again; };  // 64 of each
    std::unique_ptr<Marks[]> marks;              // [buckets][2^mark_bits / 64]; null: entries go to buckets
    int mark_bits = 6;
    std::vector<int64_t> alone;                  // [buckets]: entries, at the front of the bucket, whose key is listed once
    bool is_reduced = false, rests = false;  // rests: where Polyak's g is 0

    struct Scratch {
        Slot* table;
        std::vector<uint32_t> tail;      // entry -> the last position of its chain
        std::vector<Compute> sum;
    };
    std::vector<Scratch> scratch;

public:
    Step(const Problem& problem, int64_t which) : p(problem), which(which), chunks(p.threads) {
        const int64_t keys = p.rows * p.columns;
        const int64_t wanted =
            p.has_marks ? p.threads : std::clamp<int64_t>(p.count / p.entries_a_bucket, 1, MOST_BUCKETS);
        while (wanted == 1 ? (keys - 1) >> shift > 0 : keys >> shift > wanted) ++shift;
        shift = std::min(shift, 32);
        buckets = std::max<int64_t>(1, ((keys - 1) >> shift) + 1);
        if (p.has_marks && shift >= mark_bits) {
            while (mark_bits < shift && buckets << mark_bits < MARKS * p.count) ++mark_bits;
            marks.reset(new Marks[buckets << (mark_bits - 6)]());
        }
        alone.resize(buckets);
    }

    bool sort() override {
        if (!(p.has_wide_indices ? partition<int64_t>() : partition<int32_t>())) return false;
        int64_t longest = 0;
        for (int64_t b = 0; b < buckets; ++b) longest = std::max(longest, sizes[b] - alone[b]);
        scratch.resize(p.threads);
        Slot* table = room(which, p.threads * slots(longest), own_slots);
        for (Scratch& s : scratch) {
            s.table = table;
            table += slots(longest);
            if constexpr (!SCALAR) {
                s.tail.resize(longest);
                s.sum.resize(p.width);
            }
        }
        double lr = p.lr, norm = 1;
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
            is_reduced = true;
            norm = 0;
            for (const double x : squares) norm += x;
            rests = norm == 0;
            norm = rests ? 1 : std::sqrt(norm);
            lr = rests ? 0 : lr / norm;  // once more by the norm is g: lr / ‖g‖² can be infinite where the step is not
        }
        if (p.rule == ADAM) lr = lr * std::sqrt(1 - std::pow(p.decay, p.step)) / (1 - std::pow(p.momentum, p.step));
        rates = {Compute(lr), Compute(norm), Compute(1 - p.momentum), Compute(1 - p.decay),
                 Compute(std::sqrt(1 - p.decay))};
        return true;
    }

    int64_t culprit() override {
        std::vector<int64_t> bad(buckets, NO_KEY);
        if constexpr (SCALAR) results = room(which, begins.back() * kept() + sizes.back() * kept(), own_results);
        for_each_task(p.threads, buckets, [&](int thread, int64_t b) {
            if (!is_reduced) reduce(b, scratch[thread]);
            with_constant(p.rule, [&](auto rule) {
                Batch batch;
                if constexpr (SCALAR) {
                    each_batch(b, [&](int64_t first, int64_t count) {
                        gather<rule>(batch, b, first, count);
                        batch.move<rule>(count, p, rates);
                        for_each_kept<rule>(batch, [&](int64_t i, Compute* x) {
                            std::copy_n(x, count, result(b, first, count, i));
                        });
                        if (batch.all_finite<rule>(count)) return;
                        for (int64_t u = 0; u < count; ++u)
                            if (!batch.is_finite_at<rule>(u)) bad[b] = std::min(bad[b], key_of(b, first + u));
                    });
                } else {
                    visit(b, scratch[thread], [&](int64_t key, const auto* g) {
                        if (!move_row<rule, false>(batch, key, g)) bad[b] = std::min(bad[b], key);
                    });
                }
            });
        });
        is_reduced = true;
        const int64_t least = *std::min_element(bad.begin(), bad.end());
        if (least == NO_KEY) return NO_ENTRY;
        return p.has_wide_indices ? entry_of<int64_t>(least) : entry_of<int32_t>(least);
    }

    void write() override {
        if (rests) return;
        for_each_task(p.threads, buckets, [&](int thread, int64_t b) {
            if (!is_reduced) reduce(b, scratch[thread]);
            with_constant(p.rule, [&](auto rule) {
                if constexpr (SCALAR) {
                    if (results) {
                        each_batch(b, [&](int64_t first, int64_t count) {
                            scatter<rule>(b, first, count, [&](int64_t i) { return result(b, first, count, i); });
                        });
                        return;
                    }
                }
                Batch batch;
                if constexpr (SCALAR) {
                    each_batch(b, [&](int64_t first, int64_t count) {
                        gather<rule>(batch, b, first, count);
                        batch.move<rule>(count, p, rates);
                        Compute* all[MOST_RESULTS];
                        for_each_kept<rule>(batch, [&](int64_t i, Compute* x) { all[i] = x; });
                        scatter<rule>(b, first, count, [&](int64_t i) { return all[i]; });
                    });
                } else {
                    visit(b, scratch[thread], [&](int64_t key, const auto* g) { move_row<rule, true>(batch, key, g); });
                }
            });
        });
    }

private:
    static constexpr int64_t MOST_RESULTS = 3;

    // use(i, x) for the weights and whatever state the rule has.
    template <Rule RULE, class Use>
    static void for_each_kept(Batch& batch, const Use& use) {
        int64_t i = 0;
        use(i++, batch.weight);
        if constexpr (Batch::has_moment(RULE)) use(i++, batch.moment);
        if constexpr (Batch::has_square(RULE)) use(i++, batch.square);
    }
    int64_t kept() const { return 1 + Batch::has_moment(p.rule) + Batch::has_square(p.rule); }
    Compute* result(int64_t b, int64_t first, int64_t count, int64_t i) const {
        return results + (begins[b] + first) * kept() + i * count;
    }

    int64_t mask() const { return (int64_t(1) << shift) - 1; }  // of the bits below a bucket's number

    int64_t key_of(int64_t b, int64_t entry) const { return (b << shift) + entries[begins[b] + entry].low; }

    void ask_for(int64_t key) const {
        __builtin_prefetch(at(p, key), 1);
        if (p.moment) __builtin_prefetch(p.moment + key * p.width, 1);
        if (p.square) __builtin_prefetch(p.square + key * p.width, 1);
        if (p.touched) __builtin_prefetch(p.touched + key, 1);
    }

    Compute decay(int64_t key) const {
        const int32_t since = p.step - p.touched[key];
        return since == 1 ? Compute(p.momentum) : power(p.momentum, since);
    }

    // use(first, count) for the entries of a reduced bucket.
    template <class Use>
    void each_batch(int64_t b, const Use& use) const {
        for (int64_t first = 0; first < sizes[b]; first += BATCH) use(first, std::min(BATCH, sizes[b] - first));
    }

    template <Rule RULE>
    void gather(Batch& batch, int64_t b, int64_t first, int64_t count) const {
        const Entry* const e = entries + begins[b];
        for (int64_t u = 0; u < count; ++u) {
            const int64_t key = key_of(b, first + u);
            ask_for(key_of(b, std::min(first + u + AHEAD, sizes[b] - 1)));
            if constexpr (SCALAR) batch.g[u] = e[first + u].payload;
            batch.weight[u] = widen<Compute>(*at(p, key));
            if constexpr (Batch::has_moment(RULE)) batch.moment[u] = p.moment[key];
            if constexpr (Batch::has_square(RULE)) batch.square[u] = p.square[key];
            if constexpr (RULE == MOMENTUM) batch.decay[u] = decay(key);
        }
    }

    // of(i): the weights or the state that are written to the places of these entries.
    template <Rule RULE, class Of>
    void scatter(int64_t b, int64_t first, int64_t count, const Of& of) const {
        int64_t i = 0;
        const Compute* const weight = of(i++);
        const Compute* const moment = Batch::has_moment(RULE) ? of(i++) : nullptr;
        const Compute* const square = Batch::has_square(RULE) ? of(i++) : nullptr;
        for (int64_t u = 0; u < count; ++u) {
            const int64_t key = key_of(b, first + u);
            *at(p, key) = rounded(weight[u]);
            if constexpr (Batch::has_moment(RULE)) p.moment[key] = moment[u];
            if constexpr (Batch::has_square(RULE)) p.square[key] = square[u];
            if constexpr (RULE == MOMENTUM) p.touched[key] = p.step;
        }
    }

    // The rule on the row of W at `key`; G is Element or Compute. Where WRITES is false nothing is written, and returned
    // is whether all that would be is finite.
    template <Rule RULE, bool WRITES, class G>
    bool move_row(Batch& batch, int64_t key, const G* g) const {
        const int64_t of_inner = p.of_inner;
        bool is_finite = true;
        if constexpr (RULE == MOMENTUM) {
            std::fill_n(batch.decay, std::min(BATCH, p.width), decay(key));
            if constexpr (WRITES) p.touched[key] = p.step;
        }
        for (int64_t first = 0; first < p.width; first += BATCH) {
            const int64_t count = std::min(BATCH, p.width - first);
            Element* const w = at(p, key) + first * of_inner;
            Compute *const moment = p.moment + key * p.width + first, *const square = p.square + key * p.width + first;
            for (int64_t j = 0; j < count; ++j) batch.g[j] = widen<Compute>(g[first + j]);
            for (int64_t j = 0; j < count; ++j) batch.weight[j] = widen<Compute>(w[j * of_inner]);
            if constexpr (Batch::has_moment(RULE)) std::copy_n(moment, count, batch.moment);
            if constexpr (Batch::has_square(RULE)) std::copy_n(square, count, batch.square);
            batch.move<RULE>(count, p, rates);
            if constexpr (WRITES) {
                for (int64_t j = 0; j < count; ++j) w[j * of_inner] = rounded(batch.weight[j]);
                if constexpr (Batch::has_moment(RULE)) std::copy_n(batch.moment, count, moment);
                if constexpr (Batch::has_square(RULE)) std::copy_n(batch.square, count, square);
            } else {
                is_finite &= batch.all_finite<RULE>(count);
            }
        }
        return is_finite;
    }

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
        if (marks) return mark<Index>();
        return buckets == 1 && chunks == 1 ? collect<Index>() : distribute<Index>();
    }

    void make_room(int64_t count) {
        entries = room(which, count, own_entries);
        if constexpr (!SCALAR) next = room(which, p.count, own_links);
    }

    Entry entry(int64_t k, int64_t i) const {
        const uint32_t low = uint32_t(k & mask());
        if constexpr (SCALAR)
            return {low, widen<Compute>(p.values[i])};
        else
            return {low, uint32_t(i)};
    }

    template <class Index>
    bool collect() {
        make_room(p.count);
        const bool is_short = p.count * p.width <= SHORT;
        int64_t found = 0;
        bool in_range = true;
        for (int64_t i = 0; i < p.count; ++i) {
            const int64_t k = key<Index>(i, in_range);
            entries[found] = entry(k, i);
            found += k >= 0;
            if (is_short && k >= 0 && in_range) ask_for(k);
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

    // Every bucket looks at the whole list and takes its own entries: first those alone with their key, then the others,
    // both in the order of the list.
    template <class Index>
    bool mark() {
        std::atomic<bool> good{true};
        sizes.assign(buckets, 0);
        for_each_task(p.threads, buckets, [&](int, int64_t b) {
            Marks* const own = marks.get() + (b << (mark_bits - 6));
            bool in_range = true;
            int64_t found = 0;
            for (int64_t i = 0; i < p.count; ++i) {
                const int64_t k = key<Index>(i, in_range);
                if (!in_range) break;
                if (k < 0 || k >> shift != b) continue;
                const uint64_t place = hashed(k & mask(), mark_bits), bit = uint64_t(1) << (place & 63);
                Marks& at = own[place >> 6];
                at.again |= at.listed & bit;
                at.listed |= bit;
                ++found;
            }
            sizes[b] = found;
            if (!in_range) good = false;
        });
        if (!good) return false;
        int64_t total = 0;
        for (int64_t b = 0; b < buckets; ++b) {
            begins.push_back(total);
            total += sizes[b];
        }
        make_room(total);
        for_each_task(p.threads, buckets, [&](int, int64_t b) {
            const Marks* const own = marks.get() + (b << (mark_bits - 6));
            Entry *front = entries + begins[b], *back = front + sizes[b];
            bool in_range = true;
            for (int64_t i = 0; front < back; ++i) {
                const int64_t k = key<Index>(i, in_range);
                if (k < 0 || k >> shift != b) continue;
                const uint64_t place = hashed(k & mask(), mark_bits);
                const bool is_again = own[place >> 6].again >> (place & 63) & 1;
                const Entry x = entry(k, i);
                back -= is_again;
                *(is_again ? back : front) = x;
                front += !is_again;
            }
            alone[b] = back - (entries + begins[b]);
            std::reverse(back, entries + begins[b] + sizes[b]);
        });
        return true;
    }

    // A place of its own for every key of a bucket, or one by Fibonacci hashing: the top bits of a product, either way.
    uint64_t hashed(uint64_t low, int bits) const {
        const uint64_t factor = bits >= shift ? uint64_t(1) << (64 - bits) : 0x9e3779b97f4a7c15u;
        return (low * factor) >> (64 - bits);
    }

    int table_bits(int64_t size) const {
        int bits = 1;
        while (bits < 33 && (int64_t(1) << bits) < 2 * size) ++bits;
        return std::min(bits, std::max(shift, 1));  // no more slots than there are keys in a bucket
    }
    int64_t slots(int64_t size) const { return int64_t(1) << table_bits(size); }

    // One entry for each key, at the front of its bucket, in the order of first appearance.
    void reduce(int64_t b, Scratch& s) {
        const int64_t size = sizes[b] - alone[b];
        if (size == 0) return;
        Entry* const e = entries + begins[b] + alone[b];
        const int bits = table_bits(size);
        const uint64_t mask = (uint64_t(1) << bits) - 1;
        Slot* const table = s.table;
        std::fill_n(table, mask + 1, Slot{0});
        uint32_t found = 0;
        for (int64_t i = 0; i < size; ++i) {
            const Entry x = e[i];
            uint64_t slot = hashed(x.low, bits);
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
        sizes[b] = alone[b] + found;
    }

    // see(key, g) for each key of a reduced bucket.
    template <class See>
    void visit(int64_t b, Scratch& s, const See& see) {
        const Entry* const e = entries + begins[b];
        const int64_t size = sizes[b];
        for (int64_t u = 0; u < size; ++u) {
            const int64_t key = (b << shift) + e[u].low;
            ask_for(key_of(b, std::min(u + AHEAD, size - 1)));
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

constexpr int STATE_OVERLAPS = 3, RATE_IS_NOT_FINITE = 4, STEPS_OVERLAP = 5;  // statuses beside those of native.hpp

}  // namespace

// What by_cpp.py lays out once for calls of the same shapes and strides, as a row of integers: of each W.
struct Call {
    int64_t count, rows, columns, width, of_row, of_column, of_inner, entries_a_bucket, has_marks, has_columns,
        has_wide_indices, rule, must_be_finite, threads;
};

namespace {

// A W, as a call's addresses tell it.
struct Operands {
    Problem p;
    int32_t* number;         // of the steps there were
    std::vector<Element> own;  // values, where they lie in what is written
    Span written[5];         // W and its state

    Operands(const Call& c, void* param, void* const* indices, const void* values, const double (&numbers)[4], void* const* kept)
        : p{c.count, c.rows, c.columns, c.width, indices[0], c.has_columns ? indices[1] : nullptr,
            static_cast<const Element*>(values), static_cast<Element*>(param), c.of_row, c.of_column, c.of_inner,
            c.entries_a_bucket, c.has_marks != 0, Rule(c.rule), c.has_wide_indices != 0, c.must_be_finite != 0, numbers[0], numbers[1],
            numbers[2], numbers[3], nullptr, nullptr, nullptr, 0, int(c.threads)} {
        const Rule rule = p.rule;
        p.moment = static_cast<Compute*>(Batch::has_moment(rule) ? kept[0] : nullptr);
        p.square = static_cast<Compute*>(rule == ADAM ? kept[1] : rule == RMSPROP ? kept[0] : nullptr);
        p.touched = static_cast<int32_t*>(rule == MOMENTUM ? kept[1] : nullptr);
        number = static_cast<int32_t*>(rule == MOMENTUM || rule == ADAM ? kept[2] : nullptr);
        p.step = number ? *number + 1 : 0;
        const int64_t keys = p.rows * p.columns;
        written[0] = span_of_param(p);
        written[1] = span(p.moment, keys * p.width), written[2] = span(p.square, keys * p.width);
        written[3] = span(p.touched, keys), written[4] = span(number, 1);
    }

    Span read() const { return span(p.values, p.count * p.width); }
    bool writes(const Span& bytes) const {
        return std::any_of(std::begin(written), std::end(written), [&](const Span& x) { return x.meets(bytes); });
    }
    bool state_overlaps() const {
        for (const Span* x = written + 1; x != std::end(written); ++x) {
            if (x->begin == x->end) continue;
            if (param_lies_in(p, *x)) return true;
            for (const Span* y = written + 1; y != x; ++y)
                if (x->meets(*y)) return true;
        }
        return false;
    }
    // Whether another's step may change what this one reads or writes; single values are all read before any write.
    bool meets(const Operands& other) const {
        return (p.width > 1 && other.writes(read())) ||
               std::any_of(std::begin(written), std::end(written), [&](const Span& x) { return other.writes(x); });
    }
    void copy_values() {
        if (p.width == 1 || !writes(read())) return;
        own.assign(p.values, p.values + p.count * p.width);
        p.values = own.data();
    }
};

int64_t kept_of(Rule rule) { return rule == MOMENTUM || rule == ADAM ? 3 : rule == ADAGRAD || rule == RMSPROP ? 1 : 0; }

}  // namespace

// `constants`: how many W there are, and the Call of each. addresses: of all W; of the row indices of each, and of the
// column indices if it has any; of all values; of lr, a rate that takes its place (or null), momentum, decay and eps;
// then of what the rule keeps of each W, in the order of STATE of definition.py, whose number of steps is counted up
// here. What is written must not overlap; what is read may overlap it. Returns −1 − the culprit where the step of the
// one W there is must be finite and is not. Where it is not DONE nothing was written.
extern "C" int scatter_step(const int64_t* constants, void* const* addresses) noexcept {
    const int64_t steps = constants[0];
    const Call* const calls = reinterpret_cast<const Call*>(constants + 1);
    void* const* const indices = addresses + steps;
    int64_t lists = 0;
    for (int64_t i = 0; i < steps; ++i) lists += calls[i].has_columns ? 2 : 1;
    void* const* const values = indices + lists;
    void* const* const numbers = values + steps;
    const auto number_at = [&](int i) { return *static_cast<const double*>(numbers[i]); };
    const double options[4] = {number_at(numbers[1] ? 1 : 0), number_at(2), number_at(3), number_at(4)};
    if (!std::isfinite(options[0])) return RATE_IS_NOT_FINITE;
    int other = DONE;
    int64_t culprit = NO_ENTRY;
    const int status = guarded([&] {
        std::vector<Operands> all;
        all.reserve(steps);
        void* const* index = indices;
        void* const* kept = numbers + 5;
        for (int64_t i = 0; i < steps; ++i) {
            all.emplace_back(calls[i], addresses[i], index, values[i], options, kept);
            index += calls[i].has_columns ? 2 : 1;
            kept += kept_of(all[i].p.rule);
            if (all[i].state_overlaps()) other = STATE_OVERLAPS;
            for (int64_t j = 0; j < i; ++j)
                if (all[i].meets(all[j]) || all[j].meets(all[i])) other = STEPS_OVERLAP;
            if (other != DONE) return false;
            all[i].copy_values();
        }
        std::vector<std::unique_ptr<AnyStep>> each;
        for (int64_t i = 0; i < steps; ++i) {
            if (all[i].p.width == 1) each.emplace_back(new Step<true>(all[i].p, i));
            else each.emplace_back(new Step<false>(all[i].p, i));
            if (!each[i]->sort()) return false;
        }
        for (int64_t i = 0; i < steps; ++i)
            if (all[i].p.must_be_finite && (culprit = each[i]->culprit()) != NO_ENTRY) return true;
        for (int64_t i = 0; i < steps; ++i) {
            each[i]->write();
            if (all[i].number) ++*all[i].number;
        }
        return true;
    });
    if (culprit != NO_ENTRY) return int(-1 - culprit);
    return other != DONE ? other : status;
}
