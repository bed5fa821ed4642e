// An elementwise op on the CPU: elementwise.py compiles this file for each op and dtype, with the op's formula.
//
//   PARAMETERS  the operands' names: Compute x, Compute t
//   FORMULA     an expression in them; 16-bit floats are computed in float32 and rounded once
//
// Elements are taken a block at a time. An operand whose block does not lie in memory as the loop wants it is gathered
// into a buffer in the first cache, and the result is made in one: it is no operand's alias, and the loop vectorises, also
// where an operand is overwritten.

#include "native/native.hpp"

#include <cmath>
#include <utility>

#ifndef FORMULA  // for tools that read this file alone
#define PARAMETERS Compute x
#define FORMULA x
#endif

namespace {

inline Compute formula(PARAMETERS) { return Compute(FORMULA); }

template <class... Operands>
constexpr int count_of(Compute (*)(Operands...)) { return sizeof...(Operands); }
constexpr int COUNT = count_of(formula);

constexpr int64_t BLOCK = 512;  // elements
constexpr int64_t DRAWN = 64;   // blocks that a thread takes at a time
constexpr int MOST_DIMENSIONS = 64;

enum Kind { TENSOR, NUMBER };

// A row of integers from elementwise.py, before the sizes, the strides of each operand, and those of the result.
struct Call {
    int64_t rank, size, threads, writes_first, result;  // result: its place among the addresses
    struct { int64_t place, kind; } operands[COUNT];

    const int64_t* sizes() const { return reinterpret_cast<const int64_t*>(this + 1); }
    const int64_t* strides(int operand) const { return sizes() + (operand + 1) * rank; }
};

// visit(offset, stride, count) for each run along the last dimension of elements [first, first + count).
template <class Visit>
void walk(const Call& call, const int64_t* strides, int64_t first, int64_t count, const Visit& visit) {
    const int64_t last = call.rank - 1, *const sizes = call.sizes();
    if (last == 0) return visit(first * strides[0], strides[0], count);
    int64_t at[MOST_DIMENSIONS], offset = 0;
    for (int64_t d = last; d >= 0; --d) {
        at[d] = first % sizes[d];
        first /= sizes[d];
        offset += at[d] * strides[d];
    }
    while (true) {
        const int64_t run = std::min(count, sizes[last] - at[last]);
        visit(offset, strides[last], run);
        count -= run;
        if (count == 0) return;
        offset -= at[last] * strides[last];
        at[last] = 0;
        int64_t d = last - 1;
        for (; at[d] + 1 == sizes[d]; --d) {  // there are elements left, and so a dimension that has not ended
            offset -= at[d] * strides[d];
            at[d] = 0;
        }
        ++at[d];
        offset += strides[d];
    }
}

struct Span {  // of bytes
    const char *begin, *end;
    bool meets(const Span& other) const { return begin < other.end && other.begin < end; }
};

Span span(const Call& call, int operand, const void* address) {
    int64_t last = 0;
    for (int64_t d = 0; d < call.rank; ++d) last += (call.sizes()[d] - 1) * call.strides(operand)[d];
    const auto* const begin = static_cast<const char*>(address);
    return {begin, begin + (last + 1) * int64_t(sizeof(Element))};
}

// Whether the operand that is written shares memory with another, unless each element with its own.
bool is_overwritten(const Call& call, void* const* addresses) {
    const auto* const written = addresses[call.operands[0].place];
    for (int i = 1; i < COUNT; ++i) {
        if (call.operands[i].kind == NUMBER) continue;
        const auto* const read = addresses[call.operands[i].place];
        if (read == written && std::equal(call.strides(i), call.strides(i) + call.rank, call.strides(0))) continue;
        if (span(call, i, read).meets(span(call, 0, written))) return true;
    }
    return false;
}

template <class T>
inline T rounded(Compute x) {
    if constexpr (std::is_same_v<T, Compute>) return x;
    const Compute nan = std::numeric_limits<Compute>::quiet_NaN();  // whose bits survive the rounding
    return narrow_exact<T>(x != x ? nan : Rounding(false)(x));
}

// The memory, where it can be read as it is.
inline const Compute* as_computed(const Compute* memory) { return memory; }
template <class T>
inline const Compute* as_computed(const T*) { return nullptr; }

// What one thread works with.
class Worker {
 public:
    Worker(const Call& call, void* const* addresses) : call_(call) {
        result_ = static_cast<Element*>(addresses[call.result]);
        for (int i = 0; i < COUNT; ++i) {
            const void* const address = addresses[call.operands[i].place];
            memory_[i] = static_cast<const Element*>(address);
            const bool is_number = call.operands[i].kind == NUMBER;
            const int64_t* const strides = call.strides(i);
            is_fixed_[i] = is_number || std::all_of(strides, strides + call.rank, [](int64_t x) { return x == 0; });
            if (!is_fixed_[i]) continue;
            const Compute x = is_number ? Compute(*static_cast<const double*>(address)) : widen<Compute>(*memory_[i]);
            std::fill_n(buffers_[i], std::min(BLOCK, call.size), x);
        }
    }

    void block(int64_t first) {
        const int64_t count = std::min(BLOCK, call_.size - first);
        const Compute* operands[COUNT];
        for (int i = 0; i < COUNT; ++i) operands[i] = gathered(i, first, count);
        evaluate(operands, count, std::make_index_sequence<COUNT>());
        const Compute* next = made_;
        walk(call_, call_.strides(COUNT), first, count, [&](int64_t offset, int64_t stride, int64_t run) {
            Element* const target = result_ + offset;
            if (stride == 1)
                for (int64_t i = 0; i < run; ++i) target[i] = rounded<Element>(next[i]);
            else
                for (int64_t i = 0; i < run; ++i) target[i * stride] = rounded<Element>(next[i]);
            next += run;
        });
    }

 private:
    const Compute* gathered(int i, int64_t first, int64_t count) {
        if (is_fixed_[i]) return buffers_[i];
        const int64_t* const strides = call_.strides(i);
        const Compute *const memory = as_computed(memory_[i]), *as_it_lies = nullptr;
        Compute* next = buffers_[i];
        walk(call_, strides, first, count, [&](int64_t offset, int64_t stride, int64_t run) {
            const Element* const source = memory_[i] + offset;
            if (memory && stride == 1 && run == count) {
                as_it_lies = memory + offset;
                return;
            }
            if (stride == 1)
                for (int64_t j = 0; j < run; ++j) next[j] = widen<Compute>(source[j]);
            else
                for (int64_t j = 0; j < run; ++j) next[j] = widen<Compute>(source[j * stride]);
            next += run;
        });
        return as_it_lies ? as_it_lies : buffers_[i];
    }

    template <std::size_t... I>
    void evaluate(const Compute* const* operands, int64_t count, std::index_sequence<I...>) {
        evaluate_all(count, made_, operands[I]...);
    }

    template <class... Operands>
    static void evaluate_all(int64_t count, Compute* __restrict__ made, const Operands*... operands) {
        for (int64_t i = 0; i < count; ++i) made[i] = formula(operands[i]...);
    }

    const Call& call_;
    Element* result_;
    const Element* memory_[COUNT];
    bool is_fixed_[COUNT];  // to one value for all elements
    Compute buffers_[COUNT][BLOCK];
    Compute made_[BLOCK];
};

}  // namespace

// INDEX_OUT_OF_RANGE stands for an operand that would be overwritten before it is read; nothing was written then.
extern "C" int elementwise(const Call* call, void* const* addresses) noexcept {
    if (call->writes_first && is_overwritten(*call, addresses)) return INDEX_OUT_OF_RANGE;
    std::atomic<int64_t> next{0};
    const int64_t blocks = ceil_div(call->size, BLOCK);
    in_parallel(int(std::min(call->threads, ceil_div(blocks, DRAWN))), [&](int) {
        Worker worker(*call, addresses);
        for (int64_t first; (first = next.fetch_add(DRAWN, std::memory_order_relaxed)) < blocks;)
            for (int64_t b = first; b < std::min(blocks, first + DRAWN); ++b) worker.block(b * BLOCK);
    });
    return DONE;
}
