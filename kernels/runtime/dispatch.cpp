// Registers the operators' CPU kernels and autograd with torch's dispatcher from C++, as torch registers its own.
//
// dispatch.py defines the operators. It registers the same from Python, for machines where nothing compiles. From C++ a
// call costs little more than the dispatcher itself: Python works out a kernel's arguments once for each layout of its
// tensors, and this file keeps them as a row of integers (`Plan`).

#include <torch/library.h>

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using torch::jit::Stack;

c10::OperatorHandle operator_named(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
}

std::atomic<int64_t> generation{0};  // calls of `forget` so far: each drops all plans
std::atomic<int64_t> scopes{0};      // open blocks, in any thread, that choose a backend or a config: none is kept then

// ---------------------------------------------------------------------------------------------- CPU kernels

constexpr int64_t UNWANTED = -1;  // in place of an output's rank: the caller did not ask for it

// dispatch.py's `Plan`, read from its row of integers.
struct Plan {
  struct Output {
    at::ScalarType dtype;
    std::vector<int64_t> shape;
    at::Tensor nothing;  // returned if the caller did not ask for it; to make one each time took a tenth of a call
  };
  int (*run)(const void* constants, void* const* addresses);
  std::vector<Output> outputs;
  std::vector<int64_t> constants;

  explicit Plan(const std::vector<int64_t>& row) {
    size_t at = 0;
    run = reinterpret_cast<int (*)(const void*, void* const*)>(row[at++]);
    outputs.resize(row[at++]);
    for (auto& output : outputs) {
      output.dtype = static_cast<at::ScalarType>(row[at++]);
      const int64_t rank = row[at++];
      if (rank == UNWANTED) {
        output.nothing = at::detail::empty_cpu({0}, output.dtype);
        continue;
      }
      output.shape.assign(row.begin() + at, row.begin() + at + rank);
      at += rank;
    }
    constants.assign(row.begin() + at, row.end());
  }
};

// The arguments of a call, in the schema's order: the key of its plan, and the addresses that its kernel takes.
// Numbers of type float are not part of the key: the kernel reads them at their addresses.
struct Arguments {
  c10::SmallVector<int64_t, 64> key;
  c10::SmallVector<void*, 32> addresses;

  void add(const at::Tensor& x) {
    if (!x.defined()) {
      key.push_back(-1);
      addresses.push_back(nullptr);
      return;
    }
    key.push_back(x.dim() * 256 + static_cast<int64_t>(x.scalar_type()));
    key.append(x.sizes().begin(), x.sizes().end());
    key.append(x.strides().begin(), x.strides().end());
    addresses.push_back(const_cast<void*>(x.const_data_ptr()));
  }

  uint64_t hash() const {
    uint64_t hash = key.size();
    for (const int64_t x : key) hash = (hash ^ static_cast<uint64_t>(x)) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 32;
  }

  // Adds an argument; false if its type has no place in a plan. `number` holds a float.
  bool add(const c10::IValue& value, double& number) {
    if (value.isTensor()) {
      add(value.toTensor());
    } else if (value.isNone()) {
      key.push_back(-1);
      addresses.push_back(nullptr);
    } else if (value.isInt()) {
      key.push_back(value.toInt());
    } else if (value.isBool()) {
      key.push_back(value.toBool());
    } else if (value.isDouble()) {
      number = value.toDouble();
      addresses.push_back(&number);
    } else if (value.isString()) {
      const auto& text = value.toStringRef();
      key.push_back(static_cast<int64_t>(text.size()));
      for (size_t i = 0; i < text.size(); i += 8) {
        int64_t letters = 0;
        std::memcpy(&letters, text.data() + i, std::min<size_t>(8, text.size() - i));
        key.push_back(letters);
      }
    } else if (value.isTensorList()) {
      const auto list = value.toTensorList();
      key.push_back(static_cast<int64_t>(list.size()));
      for (const at::Tensor& x : list) add(x);
    } else if (value.isIntList()) {
      const auto list = value.toIntList();
      key.push_back(static_cast<int64_t>(list.size()));
      for (const int64_t x : list) key.push_back(x);
    } else if (value.isBoolList()) {
      const auto list = value.toBoolList();
      key.push_back(static_cast<int64_t>(list.size()));
      for (const bool x : list) key.push_back(x);
    } else {
      return false;
    }
    return true;
  }
};

constexpr size_t MOST_PLANS = 1 << 12;  // per operator: where layouts never repeat, nothing is gained by keeping all
constexpr size_t MOST_INTEGERS = 1 << 22;  // in all the rows of an operator: 32 MiB

// The CPU kernel of one operator. It runs the plan of the call's layouts, which Python makes at the first such call.
// If there is no plan, or the kernel failed, Python serves the call and raises the error.
class CpuKernel final : public c10::OperatorKernel {
 public:
  explicit CpuKernel(const std::string& name) : planner_(operator_named(name + "_plan")) {
    const auto schema = operator_named(name).schema();
    const auto& arguments = schema.arguments();
    count_ = arguments.size();
    returns_list_ = schema.returns().size() == 1 && schema.returns()[0].type()->kind() == c10::TypeKind::ListType;
    for (size_t i = 0; i < count_; ++i)
      if (arguments[i].alias_info() != nullptr && arguments[i].alias_info()->isWrite()) written_.push_back(i);
  }

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
    const size_t first = stack->size() - count_;
    Arguments arguments;
    c10::SmallVector<double, 16> numbers(count_);  // never resized: `arguments` has addresses of its elements
    bool is_plannable = true;
    for (size_t i = 0; i < count_; ++i) is_plannable &= arguments.add((*stack)[first + i], numbers[i]);
    arguments.key.push_back(at::get_num_threads());
    const auto plan = is_plannable ? plan_of(arguments, *stack) : nullptr;
    if (plan == nullptr) return op.callBoxedForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd, *stack);
    c10::SmallVector<at::Tensor, 3> made;
    for (const auto& output : plan->outputs) {
      if (output.nothing.defined()) {
        made.push_back(output.nothing);
        arguments.addresses.push_back(nullptr);
        continue;
      }
      made.push_back(at::detail::empty_cpu(output.shape, output.dtype));
      arguments.addresses.push_back(made.back().mutable_data_ptr());
    }
    if (plan->run(plan->constants.data(), arguments.addresses.data()) != 0)
      return op.callBoxedForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd, *stack);
    for (const size_t i : written_) tell_autograd((*stack)[first + i]);
    torch::jit::drop(*stack, count_);
    if (returns_list_) {
      stack->emplace_back(c10::List<at::Tensor>(at::ArrayRef<at::Tensor>(made)));
      return;
    }
    for (auto& x : made) stack->emplace_back(std::move(x));
  }

 private:
  struct Kept {
    std::vector<int64_t> key;
    std::shared_ptr<const Plan> plan;
  };

  std::shared_ptr<const Plan> plan_of(const Arguments& arguments, const Stack& stack) {
    const uint64_t hash = arguments.hash();
    const bool keeps = scopes == 0;
    const int64_t now = generation;
    if (keeps) {
      std::lock_guard lock(mutex_);
      if (now != generation_ || plans_.size() >= MOST_PLANS || kept_ >= MOST_INTEGERS) plans_.clear(), kept_ = 0;
      generation_ = now;
      for (auto [at, end] = plans_.equal_range(hash); at != end; ++at)
        if (std::equal(at->second.key.begin(), at->second.key.end(), arguments.key.begin(), arguments.key.end()))
          return at->second.plan;
    }
    Stack asked(stack.end() - static_cast<std::ptrdiff_t>(count_), stack.end());
    {
      at::RecordFunctionGuard unseen(false);  // a profiler must see the first call like the hundredth
      planner_.callBoxed(asked);
    }
    const std::vector<int64_t> row = asked.back().toIntVector();
    if (row.empty()) return nullptr;
    auto plan = std::make_shared<const Plan>(row);
    if (keeps && scopes == 0) {
      std::lock_guard lock(mutex_);
      if (now == generation_) {
        plans_.emplace(hash, Kept{{arguments.key.begin(), arguments.key.end()}, plan});
        kept_ += row.size();
      }
    }
    return plan;
  }

  static void tell_autograd(const c10::IValue& written) {
    const auto tell = [](const at::Tensor& x) {
      if (x.defined() && !x.is_inference()) x.unsafeGetTensorImpl()->bump_version();
    };
    if (written.isTensorList()) {
      for (const at::Tensor& x : written.toTensorList()) tell(x);
    } else if (written.isTensor()) {
      tell(written.toTensor());
    }
  }

  c10::OperatorHandle planner_;
  size_t count_;
  bool returns_list_;
  std::vector<size_t> written_;
  std::mutex mutex_;
  std::unordered_multimap<uint64_t, Kept> plans_;  // by the hash of the key
  size_t kept_ = 0;  // integers in the rows of all plans
  int64_t generation_ = 0;
};

// ---------------------------------------------------------------------------------------------- autograd

// dispatch.py's `Gradient` of one operator.
struct Gradient {
  std::string name;                     // the node's: MatmulBackward
  c10::OperatorHandle backward;         // (Tensor?[] grads, Tensor?[] saved, SymInt[] sizes, bool[] needs, ...) -> Tensor[]
  std::vector<size_t> inputs, outputs;  // the saved ones, by their places in the schema
  std::vector<size_t> conditional;      // inputs that are saved only if the string argument `asked` is `answer`
  std::vector<size_t> detached;         // outputs that carry no gradient though their dtype could
  size_t asked;
  std::string answer;
  int64_t flag;                         // the bool argument that is set when a gradient is recorded, or -1
};

class Recorded final : public torch::autograd::Node {
 public:
  explicit Recorded(std::shared_ptr<const Gradient> gradient) : gradient_(std::move(gradient)) {}

  std::string name() const override { return gradient_->name; }

  // Gradients of the inputs, in the order of their edges. Those of outputs that no gradient reaches come undefined.
  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    c10::List<std::optional<at::Tensor>> given, kept;
    if (std::none_of(grads.begin(), grads.end(), [](const at::Tensor& x) { return x.defined(); }))
      return variable_list(num_outputs());
    for (auto& x : grads) given.push_back(x.defined() ? std::optional<at::Tensor>(std::move(x)) : std::nullopt);
    TORCH_CHECK(!released_, torch::autograd::ERR_BACKWARD_TWICE);
    for (const auto& x : saved) {
      at::Tensor y = x.unpack(getptr());
      kept.push_back(y.defined() ? std::optional<at::Tensor>(std::move(y)) : std::nullopt);
    }
    c10::List<bool> needs;
    for (size_t i = 0; i < num_outputs(); ++i) needs.push_back(task_should_compute_output(i));
    Stack stack{std::move(given), std::move(kept), sizes, needs};
    stack.insert(stack.end(), options.begin(), options.end());
    gradient_->backward.callBoxed(stack);
    const auto found = stack.back().toTensorVector();
    variable_list result(num_outputs());
    size_t next = 0;
    for (size_t i = 0; i < num_outputs(); ++i)
      if (needs.get(i)) result[i] = found.at(next++);
    return result;
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    saved.clear();
    released_ = true;
  }

  std::vector<SavedVariable> saved;
  std::vector<c10::SymInt> sizes;  // of the input tensors, one after the other
  Stack options;                   // the arguments that are not tensors

 private:
  std::shared_ptr<const Gradient> gradient_;
  bool released_ = false;
};

#if __has_include(<torch/csrc/autograd/node.h>)
auto recorded(std::shared_ptr<const Gradient> gradient) { return c10::make_intrusive<Recorded>(std::move(gradient)); }
#else  // before torch 2.12
auto recorded(std::shared_ptr<const Gradient> gradient) {
  return std::shared_ptr<Recorded>(new Recorded(std::move(gradient)), torch::autograd::deleteNode);
}
#endif

class AutogradKernel final : public c10::OperatorKernel {
 public:
  explicit AutogradKernel(std::shared_ptr<const Gradient> gradient) : gradient_(std::move(gradient)) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    const size_t count = op.schema().arguments().size();
    bool wanted = false;
    for (size_t i = stack->size() - count; i < stack->size(); ++i) {
      if (!(*stack)[i].isTensor()) continue;
      const at::Tensor& x = std::as_const((*stack)[i]).toTensor();
      wanted |= x.defined() && x.requires_grad();
      TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(x), op.schema().operator_name().name,
                                  " has no forward-mode derivative; use reverse mode");
    }
    if (!(wanted && at::GradMode::is_enabled())) return below(op, keys, stack);

    const Stack arguments(stack->end() - static_cast<std::ptrdiff_t>(count), stack->end());
    variable_list inputs;
    for (const auto& argument : arguments)
      if (argument.isTensor()) inputs.push_back(argument.toTensor());
    const Gradient& rule = *gradient_;
    const auto node = recorded(gradient_);
    node->set_next_edges(torch::autograd::collect_next_edges(inputs));
    for (const auto& x : inputs)
      if (x.defined()) for (const auto& size : x.sym_sizes()) node->sizes.push_back(size);
    for (const auto& argument : arguments)
      if (!argument.isTensor() && !argument.isNone()) node->options.push_back(argument);
    if (rule.flag >= 0) (*stack)[stack->size() - count + rule.flag] = true;
    below(op, keys, stack);

    const size_t made = op.schema().returns().size();
    const auto output = [&](size_t i) { return (*stack)[stack->size() - made + i].toTensor(); };
    const auto carries = [&](size_t i) {
      return torch::autograd::isDifferentiableType(output(i).scalar_type()) &&
             std::find(rule.detached.begin(), rule.detached.end(), i) == rule.detached.end();
    };
    for (size_t i = 0; i < made; ++i)
      if (carries(i)) torch::autograd::set_history(output(i), node);
    const auto save = [&](size_t i) {
      const auto& argument = arguments[i];
      node->saved.emplace_back(argument.isTensor() ? argument.toTensor() : at::Tensor(), false);
    };
    for (const size_t i : rule.inputs) save(i);
    if (!rule.conditional.empty() && arguments[rule.asked].toStringRef() == rule.answer)
      for (const size_t i : rule.conditional) save(i);
    for (const size_t i : rule.outputs) node->saved.emplace_back(output(i), carries(i));
  }

 private:
  static void below(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  }

  std::shared_ptr<const Gradient> gradient_;
};

// ---------------------------------------------------------------------------------------------- registration

template <class Kernel>
void register_kernel(const char* name, c10::DispatchKey key, std::unique_ptr<Kernel> kernel) {
  auto* library = new torch::Library(torch::Library::IMPL, "tropigrad", key, __FILE__, __LINE__);  // never deleted
  library->impl(name, torch::CppFunction::makeFromBoxedFunctor(std::move(kernel)));
}

thread_local std::string complaint;

template <class Work>
const char* complaint_of(const Work& work) {
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    complaint = error.what();
    return complaint.c_str();
  }
}

}  // namespace

// Each function returns null, or an error's message, which is valid until the thread's next call.

extern "C" const char* tropigrad_register_cpu(const char* name) {
  return complaint_of([&] {
    register_kernel(name, c10::DispatchKey::CPU, std::make_unique<CpuKernel>(std::string("tropigrad::") + name));
  });
}

// places: the four lists of `Gradient` (inputs, outputs, conditional, detached), each preceded by its length.
extern "C" const char* tropigrad_register_gradient(const char* name, const char* node, const int64_t* places,
                                                   int64_t asked, const char* answer, int64_t flag) {
  return complaint_of([&] {
    std::vector<size_t> lists[4];
    for (auto& list : lists) {
      const int64_t count = *places++;
      list.assign(places, places + count);
      places += count;
    }
    auto gradient = std::make_shared<const Gradient>(
        Gradient{node, operator_named(std::string("tropigrad::") + name + "_gradient"), lists[0], lists[1], lists[2],
                 lists[3], static_cast<size_t>(asked), answer, flag});
    register_kernel(name, c10::DispatchKey::Autograd, std::make_unique<AutogradKernel>(std::move(gradient)));
  });
}

extern "C" void tropigrad_forget() { ++generation; }

extern "C" void tropigrad_scope(int change) { scopes += change; }
