// Counts of pairs (row, column) as CSR, and the sum of two such matrices.
//
//   bin     = 2^s consecutive rows, of which the pairs are counted first
//   group   = consecutive bins with about GROUP pairs, or one bin with more
//   key     = (row − the group's first row) << column_bits | column, in 4 bytes where they suffice
//
// A group is sorted in a core's cache, by as many digits as its keys have, or by counting where it has about as many
// pairs as there are keys. Groups are shared out among threads; what is written does not depend on who writes it, since
// counts are integers and the order of the keys is one.

#include "../runtime/native/native.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <memory>

namespace {

constexpr int64_t MOST_BINS = 1 << 18, MOST_GROUPS = 1 << 11;
// Pairs or keys that are handled at a time: first where each goes, then it goes there. In one loop a processor would
// have to guess whether the place that it reads next is one that it has just written, and takes 1.4 times as long.
constexpr int64_t BLOCK = 256;
constexpr int DIGIT_BITS = 12;
constexpr int64_t FEW = 24;     // keys that are inserted one by one
constexpr std::size_t HUGE_PAGE = 2 << 20;

// Tells the system that these bytes are about to be written: by pages of 2 MB their first touch costs a tenth.
void about_to_write(void* data, std::size_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t begin = (uintptr_t(data) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    const uintptr_t end = (uintptr_t(data) + bytes) / HUGE_PAGE * HUGE_PAGE;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

struct Free {
    void operator()(void* data) const { std::free(data); }
};

template <class T>
class Room {
    std::unique_ptr<T, Free> data;
    int64_t capacity = 0;

public:
    T* of(int64_t count) {
        if (count > capacity) {
            capacity = 0;
            const std::size_t bytes = count * sizeof(T), unit = bytes < 2 * HUGE_PAGE ? CACHE_LINE : HUGE_PAGE;
            data.reset();
            data.reset(static_cast<T*>(std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit)));
            if (!data) throw std::bad_alloc();
            about_to_write(data.get(), bytes);
            capacity = count;
        }
        return data.get();
    }
};

// ------------------------------------------------------------------------------------------------ what comes

struct Indices {
    const void* data;
    int64_t step, type;  // of the elements; the type: the bytes of one, negative where it has a sign

    template <class T>
    void widen_as(int64_t begin, int64_t count, int64_t* wide) const {
        const T* const from = static_cast<const T*>(data) + begin * step;
        if (step == 1)
            for (int64_t i = 0; i < count; ++i) wide[i] = int64_t(from[i]);
        else
            for (int64_t i = 0; i < count; ++i) wide[i] = int64_t(from[i * step]);
    }

    void widen(int64_t begin, int64_t count, int64_t* wide) const {
        switch (type) {
        case 1: return widen_as<uint8_t>(begin, count, wide);
        case 2: return widen_as<uint16_t>(begin, count, wide);
        case 4: return widen_as<uint32_t>(begin, count, wide);
        case -1: return widen_as<int8_t>(begin, count, wide);
        case -2: return widen_as<int16_t>(begin, count, wide);
        case -4: return widen_as<int32_t>(begin, count, wide);
        default: return widen_as<int64_t>(begin, count, wide);
        }
    }
};

// As a row of integers: what by_cpp.py knows of a call.
struct Call {
    int64_t count, rows, columns;
    int64_t step_of_row, type_of_row, step_of_column, type_of_column;
    int64_t group, threads;
};

inline int bits_of(int64_t count) {  // that tell `count` things apart
    int bits = 0;
    while (bits < 63 && (int64_t(1) << bits) < count) ++bits;
    return bits;
}

// ------------------------------------------------------------------------------------------------ sorting a group

template <class Key>
struct Sorter {
    Room<Key> other;
    std::vector<uint32_t> counters;

    void sort(Key* keys, int64_t count, int bits) {
        if (count <= FEW) return insert(keys, count);
        if (bits <= 22 && (int64_t(1) << bits) <= 2 * count + 512) return tally(keys, count, bits);
        by_digits(keys, count, bits);
    }

private:
    void insert(Key* keys, int64_t count) {
        for (int64_t i = 1; i < count; ++i) {
            const Key key = keys[i];
            int64_t j = i;
            for (; j > 0 && keys[j - 1] > key; --j) keys[j] = keys[j - 1];
            keys[j] = key;
        }
    }

    void tally(Key* keys, int64_t count, int bits) {
        counters.assign(std::size_t(1) << bits, 0);
        uint32_t* const times = counters.data();
        for (int64_t i = 0; i < count; ++i) ++times[keys[i]];
        const Key* const end = keys + count;
        for (Key key = 0; keys < end; ++key) {
            const uint32_t n = times[key];
            *keys = key;  // which the next one overwrites where n is 0: most n are 0 or 1
            if (n > 1) std::fill_n(keys + 1, n - 1, key);
            keys += n;
        }
    }

    void by_digits(Key* keys, int64_t count, int bits) {
        const int most = count < 2048 ? 8 : count < 8192 ? 11 : DIGIT_BITS;
        switch ((bits + most - 1) / most) {
        case 1: return by_digits_in<1>(keys, count, bits);
        case 2: return by_digits_in<2>(keys, count, bits);
        case 3: return by_digits_in<3>(keys, count, bits);
        case 4: return by_digits_in<4>(keys, count, bits);
        case 5: return by_digits_in<5>(keys, count, bits);
        case 6: return by_digits_in<6>(keys, count, bits);
        case 7: return by_digits_in<7>(keys, count, bits);
        default: return by_digits_in<8>(keys, count, bits);
        }
    }

    template <int PASSES>
    void by_digits_in(Key* keys, int64_t count, int bits) {
        const int digit = (bits + PASSES - 1) / PASSES;
        const std::size_t values = std::size_t(1) << digit;
        const Key mask = Key(values - 1);
        counters.assign(PASSES * values, 0);
        uint32_t* const times = counters.data();
        for (int64_t i = 0; i < count; ++i) {
            Key key = keys[i];
            for (int pass = 0; pass < PASSES; ++pass, key >>= digit) ++times[pass * values + (key & mask)];
        }
        Key *from = keys, *to = other.of(count);
        for (int pass = 0; pass < PASSES; ++pass) {
            uint32_t* const at = times + pass * values;
            const int shift = pass * digit;
            if (at[from[0] >> shift & mask] == count) continue;
            uint32_t total = 0;
            for (std::size_t v = 0; v < values; ++v) {
                const uint32_t n = at[v];
                at[v] = total;
                total += n;
            }
            uint32_t place[BLOCK];
            for (int64_t begin = 0; begin < count; begin += BLOCK) {
                const int64_t n = std::min(BLOCK, count - begin);
                const Key* const some = from + begin;
                for (int64_t i = 0; i < n; ++i) place[i] = at[some[i] >> shift & mask]++;
                for (int64_t i = 0; i < n; ++i) to[place[i]] = some[i];
            }
            std::swap(from, to);
        }
        if (from != keys) std::memcpy(keys, from, count * sizeof(Key));
    }
};

// ------------------------------------------------------------------------------------------------ counting

struct Counting {
    virtual ~Counting() = default;
    virtual void write(int64_t* crow, void* columns, int64_t* counts) = 0;
    int64_t distinct = 0;
};

struct Group {
    int64_t begin, first_row, first;  // its first key and row, and the first of its distinct keys
    int64_t distinct;
};

// The call is checked before: what bits the keys have, and that there are fewer than 2³¹ pairs.
struct Layout {
    int column_bits, bin_bits;
    int64_t bins, rows_a_group;  // the latter at most
    bool is_wide, is_narrow;     // columns of 8 bytes are written; keys of 4 bytes suffice

    explicit Layout(const Call& c) : column_bits(bits_of(c.columns)), bin_bits(0) {
        const int64_t most = std::min<int64_t>(MOST_BINS, std::max<int64_t>(1024, 2 * c.count));
        while ((c.rows - 1) >> bin_bits >= most) ++bin_bits;
        bins = ((c.rows - 1) >> bin_bits) + 1;
        is_wide = c.columns >= int64_t(1) << 31;
        is_narrow = !is_wide && column_bits + bin_bits <= 32 && c.rows >> (32 - column_bits) <= MOST_GROUPS / 2;
        rows_a_group = int64_t(1) << std::min(62, (is_narrow ? 32 : 63) - column_bits);
    }
};

template <class Key, class Column>
class Count : public Counting {
    const Call call;
    const Layout layout;
    const Indices rows, columns;
    const int threads;
    Room<Key> room;
    Key* keys = nullptr;
    std::vector<Group> groups;    // and one behind the last
    std::vector<int64_t> order;   // of the groups: the largest first

public:
    Count(const Call& c, const Layout& l, const void* row, const void* column)
        : call(c), layout(l), rows{row, c.step_of_row, c.type_of_row},
          columns{column, c.step_of_column, c.type_of_column}, threads(int(c.threads)) {}

    // Sorts the keys; false where a row or column is out of range.
    bool run() {
        const int64_t parts = std::min<int64_t>(threads, ceil_div(call.count, BLOCK));
        std::vector<std::unique_ptr<uint32_t[]>> in_bins(parts);  // how many pairs each part has in each bin
        std::atomic<bool> is_good{true};
        for_each_task(threads, parts, [&](int, int64_t part) {
            in_bins[part].reset(new (std::nothrow) uint32_t[layout.bins]());
            if (!in_bins[part] || !count(part, parts, in_bins[part].get())) is_good = false;
        });
        for (const auto& bins : in_bins)
            if (!bins) throw std::bad_alloc();
        if (!is_good) return false;
        std::vector<uint16_t> group_of(layout.bins);
        make_groups(in_bins, group_of);
        const int64_t number = int64_t(groups.size()) - 1;
        std::vector<std::vector<Target>> targets(parts, std::vector<Target>(number));
        place(in_bins, group_of, targets);
        in_bins.clear();
        keys = room.of(call.count);
        for_each_task(threads, parts, [&](int, int64_t part) { move(part, parts, group_of, targets[part].data()); });
        order.resize(number);
        for (int64_t g = 0; g < number; ++g) order[g] = g;
        std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return size(a) > size(b); });
        std::vector<Sorter<Key>> sorters(threads);
        std::atomic<bool> has_room{true};
        for_each_task(threads, number, [&](int thread, int64_t task) {
            try {
                sort(groups[order[task]], size(order[task]), bits(order[task]), sorters[thread]);
            } catch (const std::bad_alloc&) {
                has_room = false;
            }
        });
        if (!has_room) throw std::bad_alloc();
        for (Group& group : groups) {
            group.first = distinct;
            distinct += group.distinct;
        }
        return true;
    }

    void write(int64_t* crow, void* column, int64_t* counts) override {
        about_to_write(crow, (call.rows + 1) * sizeof *crow);
        about_to_write(column, distinct * sizeof(Column));
        about_to_write(counts, distinct * sizeof *counts);
        crow[0] = 0;
        for_each_task(threads, int64_t(order.size()), [&](int, int64_t task) {
            write(order[task], crow, static_cast<Column*>(column), counts);
        });
    }

private:
    struct Target { Key at, first; };  // where a part's next key of a group goes, and the group's first key

    int64_t size(int64_t g) const { return groups[g + 1].begin - groups[g].begin; }
    int bits(int64_t g) const { return layout.column_bits + bits_of(groups[g + 1].first_row - groups[g].first_row); }

    // see(count, rows, columns) for the blocks of a part.
    template <class See>
    void visit(int64_t part, int64_t parts, const See& see) const {
        int64_t row[BLOCK], column[BLOCK];
        const int64_t end = call.count * (part + 1) / parts;
        for (int64_t i = call.count * part / parts; i < end; i += BLOCK) {
            const int64_t n = std::min(BLOCK, end - i);
            rows.widen(i, n, row);
            columns.widen(i, n, column);
            see(n, row, column);
        }
    }

    bool count(int64_t part, int64_t parts, uint32_t* in_bin) const {
        const int bin_bits = layout.bin_bits;
        const uint64_t last_row = call.rows - 1, last_column = call.columns - 1;
        uint64_t outside = 0;  // its highest bit is set once an index was below 0 or above the last
        visit(part, parts, [&](int64_t n, const int64_t* row, const int64_t* column) {
            uint64_t any = 0;
            for (int64_t i = 0; i < n; ++i) {
                const uint64_t r = row[i], c = column[i];
                any |= r | (last_row - r) | c | (last_column - c);
            }
            outside |= any;
            if (int64_t(any) < 0) return;
            for (int64_t i = 0; i < n; ++i) ++in_bin[row[i] >> bin_bits];
        });
        return int64_t(outside) >= 0;
    }

    template <class InBins>
    void make_groups(const InBins& in_bins, std::vector<uint16_t>& group_of) {
        const int64_t wanted = std::max(call.group, ceil_div(call.count, MOST_GROUPS / 2));
        int64_t begin = 0, pairs = 0, first_bin = 0;
        groups.push_back({0, 0, 0, 0});
        for (int64_t bin = 0; bin < layout.bins; ++bin) {
            int64_t more = 0;
            for (const auto& part : in_bins) more += part[bin];
            const bool is_wide = (bin + 1 - first_bin) << layout.bin_bits > layout.rows_a_group;
            if (bin > first_bin && (is_wide || (pairs && pairs + more > wanted + wanted / 2))) {
                begin += pairs;
                pairs = 0;
                first_bin = bin;
                groups.push_back({begin, bin << layout.bin_bits, 0, 0});
            }
            pairs += more;
            group_of[bin] = uint16_t(groups.size() - 1);
            if (pairs >= wanted && bin + 1 < layout.bins) {
                begin += pairs;
                pairs = 0;
                first_bin = bin + 1;
                groups.push_back({begin, first_bin << layout.bin_bits, 0, 0});
            }
        }
        groups.push_back({call.count, call.rows, 0, 0});
    }

    template <class InBins, class Targets>
    void place(const InBins& in_bins, const std::vector<uint16_t>& group_of, Targets& targets) const {
        for (std::size_t part = 0; part < targets.size(); ++part)
            for (int64_t bin = 0; bin < layout.bins; ++bin) targets[part][group_of[bin]].at += in_bins[part][bin];
        for (std::size_t g = 0; g + 1 < groups.size(); ++g) {
            int64_t at = groups[g].begin;
            for (auto& of_part : targets) {
                const int64_t n = of_part[g].at;
                of_part[g] = {Key(at), Key(groups[g].first_row) << layout.column_bits};
                at += n;
            }
        }
    }

    void move(int64_t part, int64_t parts, const std::vector<uint16_t>& group_of, Target* targets) const {
        const uint16_t* const of = group_of.data();
        const int bin_bits = layout.bin_bits, column_bits = layout.column_bits;
        visit(part, parts, [&](int64_t n, const int64_t* row, const int64_t* column) {
            uint16_t group[BLOCK];
            Key key[BLOCK], place[BLOCK];  // keys may overflow until the group's first is subtracted
            for (int64_t i = 0; i < n; ++i) key[i] = Key(row[i]) << column_bits | Key(column[i]);
            for (int64_t i = 0; i < n; ++i) group[i] = of[row[i] >> bin_bits];
            for (int64_t i = 0; i < n; ++i) {
                Target& target = targets[group[i]];
                place[i] = target.at++;
                key[i] -= target.first;
            }
            for (int64_t i = 0; i < n; ++i) keys[place[i]] = key[i];
        });
    }

    void sort(Group& group, int64_t count, int bits, Sorter<Key>& sorter) const {
        if (count == 0) return;
        Key* const k = keys + group.begin;
        sorter.sort(k, count, bits);
        int64_t distinct = 1;
        for (int64_t i = 1; i < count; ++i) distinct += k[i] != k[i - 1];
        group.distinct = distinct;
    }

    void write(int64_t g, int64_t* crow, Column* column, int64_t* counts) const {
        const Group& group = groups[g];
        const int64_t n = size(g), rows = groups[g + 1].first_row - group.first_row;
        const Key* const k = keys + group.begin;
        const Key mask = Key((uint64_t(1) << layout.column_bits) - 1);
        int64_t* const ends = crow + group.first_row + 1;  // of the rows
        std::fill_n(ends, rows, 0);
        column += group.first;
        counts += group.first;
        int64_t j = 0;
        for (int64_t i = 0; i < n; ++i) {  // the last of equal keys writes what stays
            column[j] = Column(k[i] & mask);
            counts[j] = i + 1;
            ends[int64_t(k[i] >> layout.column_bits)] = group.first + j + 1;
            j += i + 1 < n && k[i + 1] != k[i];
        }
        for (j = group.distinct - 1; j > 0; --j) counts[j] -= counts[j - 1];
        int64_t end = group.first;
        for (int64_t r = 0; r < rows; ++r) ends[r] = end = std::max(end, ends[r]);
    }
};

template <class Key, class Column>
bool sorted(const Call& c, const Layout& layout, const void* row, const void* column,
            std::unique_ptr<Counting>& result) {
    auto count = std::make_unique<Count<Key, Column>>(c, layout, row, column);
    const bool is_good = count->run();
    result = std::move(count);
    return is_good;
}

// ------------------------------------------------------------------------------------------------ the sum of two

template <class Column>
struct Matrix {
    const int64_t* crow;
    const Column* column;
    const int64_t* counts;
};

// see(column, count) for the sum of two rows. Without branches that depend on the columns.
template <class Column, class See>
inline void merge_row(const Matrix<Column>& a, const Matrix<Column>& b, int64_t row, const See& see) {
    int64_t i = a.crow[row], j = b.crow[row];
    const int64_t i_end = a.crow[row + 1], j_end = b.crow[row + 1];
    while (i < i_end && j < j_end) {
        const Column x = a.column[i], y = b.column[j];
        const bool takes_x = x <= y, takes_y = y <= x;
        see(takes_x ? x : y, (takes_x ? a.counts[i] : 0) + (takes_y ? b.counts[j] : 0));
        i += takes_x;
        j += takes_y;
    }
    for (; i < i_end; ++i) see(a.column[i], a.counts[i]);
    for (; j < j_end; ++j) see(b.column[j], b.counts[j]);
}

// Parts of rows with about as many entries each.
template <class Column>
std::vector<int64_t> parts_of(const Matrix<Column>& a, const Matrix<Column>& b, int64_t rows, int threads) {
    const int64_t parts = threads == 1 ? 1 : threads * 8, total = a.crow[rows] + b.crow[rows] + rows;
    std::vector<int64_t> begins(parts + 1, rows);
    for (int64_t part = 0; part < parts; ++part) {
        int64_t low = 0, high = rows;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (a.crow[middle] + b.crow[middle] + middle < total / parts * part) low = middle + 1;
            else high = middle;
        }
        begins[part] = low;
    }
    return begins;
}

// The crow of the sum.
template <class Column>
void merged_rows(const Matrix<Column>& a, const Matrix<Column>& b, int64_t rows, int threads, int64_t* crow) {
    const auto begins = parts_of(a, b, rows, threads);
    about_to_write(crow, (rows + 1) * sizeof *crow);
    for_each_task(threads, int64_t(begins.size()) - 1, [&](int, int64_t part) {
        int64_t total = 0;
        for (int64_t r = begins[part]; r < begins[part + 1]; ++r) {
            merge_row(a, b, r, [&](Column, int64_t) { ++total; });
            crow[r + 1] = total;
        }
    });
    crow[0] = 0;
    int64_t before = 0;
    for (std::size_t part = 0; part + 1 < begins.size(); ++part) {
        for (int64_t r = begins[part]; r < begins[part + 1]; ++r) crow[r + 1] += before;
        before = crow[begins[part + 1]];
    }
}

template <class Column>
void merged(const Matrix<Column>& a, const Matrix<Column>& b, int64_t rows, int threads, const int64_t* crow,
            Column* column, int64_t* counts) {
    const auto begins = parts_of(a, b, rows, threads);
    about_to_write(column, crow[rows] * sizeof *column);
    about_to_write(counts, crow[rows] * sizeof *counts);
    for_each_task(threads, int64_t(begins.size()) - 1, [&](int, int64_t part) {
        int64_t at = crow[begins[part]];
        for (int64_t r = begins[part]; r < begins[part + 1]; ++r)
            merge_row(a, b, r, [&](Column c, int64_t n) {
                column[at] = c;
                counts[at++] = n;
            });
    });
}

template <class Column>
int merge(void* const* a, void* const* b, int64_t rows, int threads, int64_t* crow, void* column, int64_t* counts) {
    const auto matrix = [](void* const* x) {
        return Matrix<Column>{static_cast<const int64_t*>(x[0]), static_cast<const Column*>(x[1]),
                              static_cast<const int64_t*>(x[2])};
    };
    return guarded([&] {
        if (column) merged(matrix(a), matrix(b), rows, threads, crow, static_cast<Column*>(column), counts);
        else merged_rows(matrix(a), matrix(b), rows, threads, crow);
        return true;
    });
}

}  // namespace

// Sorts the pairs, of which there is one at least, into memory of its own: the handle, which pair_counts_write takes and
// pair_counts_free frees. Rows and columns have at most 63 bits together. distinct: how many pairs differ.
extern "C" int pair_counts_sort(const Call* call, const void* rows, const void* columns, Counting** handle,
                                int64_t* distinct) noexcept {
    *handle = nullptr;
    return guarded([&] {
        const Layout layout(*call);
        std::unique_ptr<Counting> result;
        const bool is_good = layout.is_narrow ? sorted<uint32_t, int32_t>(*call, layout, rows, columns, result)
                             : layout.is_wide ? sorted<uint64_t, int64_t>(*call, layout, rows, columns, result)
                                              : sorted<uint64_t, int32_t>(*call, layout, rows, columns, result);
        *distinct = result->distinct;
        *handle = result.release();
        return is_good;
    });
}

// crow [rows + 1], columns (int32, or int64 where there are 2³¹ or more) and counts [distinct].
extern "C" int pair_counts_write(Counting* handle, int64_t* crow, void* columns, int64_t* counts) noexcept {
    return guarded([&] {
        handle->write(crow, columns, counts);
        return true;
    });
}

extern "C" void pair_counts_free(Counting* handle) noexcept { delete handle; }

// The sum of two: a and b are the addresses of crow, columns and counts. Without room for columns it writes crow alone.
extern "C" int pair_counts_merge(void* const* a, void* const* b, int64_t rows, int64_t is_wide, int64_t threads,
                                 int64_t* crow, void* columns, int64_t* counts) noexcept {
    return is_wide ? merge<int64_t>(a, b, rows, int(threads), crow, columns, counts)
                   : merge<int32_t>(a, b, rows, int(threads), crow, columns, counts);
}
