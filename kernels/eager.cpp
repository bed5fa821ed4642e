// Calls seen before, found and run without Python: what eager.py says of `recall`, `remember` and `prepared`.
//
// Python asks torch one question at a time, each for 30 to 60 ns, and a small call has some thirty of them. This is an
// extension module, built against torch's own headers; while there is none, Python answers.

#include <torch/csrc/autograd/python_variable.h>

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <unordered_map>
#include <vector>

namespace {

// ---------------------------------------------------------------------------------------------- what was seen before

struct Flag {  // a variable of a Python module, and the value it has while nobody looks
  PyObject* variables;
  PyObject* name;
  PyObject* quiet;
};
struct Scope {  // a context variable, likewise
  PyObject* variable;
  PyObject* quiet;
};
std::vector<Flag> flags;
std::vector<Scope> scopes;
unsigned long long quiet_keys[2];  // that a thread adds to every call, outside and inside inference mode

// The questions of eager._nobody_looks; false with an exception set where Python raised one.
bool nobody_looks() {
  const uint64_t included = c10::impl::tls_local_dispatch_key_set().included_.raw_repr();
  if ((included != quiet_keys[0] && included != quiet_keys[1]) || at::impl::torch_function_mode_enabled()) return false;
  for (const auto& flag : flags) {
    PyObject* value = PyDict_GetItemWithError(flag.variables, flag.name);
    if (value != flag.quiet) {
      const int equal = value == nullptr ? 0 : PyObject_RichCompareBool(value, flag.quiet, Py_EQ);
      if (equal != 1) return false;
    }
  }
  for (const auto& scope : scopes) {
    PyObject* value = nullptr;
    if (PyContextVar_Get(scope.variable, scope.quiet, &value) != 0) return false;
    Py_DECREF(value);  // somebody else holds it
    if (value != scope.quiet) return false;
  }
  return true;
}

struct Key {
  PyObject* options = nullptr;  // a tuple; held by the table
  c10::SmallVector<int64_t, 24> layout;
  size_t hash = 0;
};
struct Hash {
  size_t operator()(const Key& key) const { return key.hash; }
};
struct Equal {
  bool operator()(const Key& x, const Key& y) const {
    return x.hash == y.hash && x.layout == y.layout && PyObject_RichCompareBool(x.options, y.options, Py_EQ) == 1;
  }
};
std::unordered_map<Key, PyObject*, Hash, Equal> calls;
size_t most_calls = 0;

unsigned long long plain_keys[2];  // of a dense CPU tensor, made outside and inside inference mode

// Whether this is a dense CPU tensor and nothing else, or None; then its layout joins the key.
bool add_tensor(Key& key, PyObject* object, bool& requires_grad) {
  if (object == Py_None) {
    key.layout.push_back(-1);
    return true;
  }
  if (!THPVariable_CheckExact(object)) return false;
  const at::Tensor& x = THPVariable_Unpack(object);
  const uint64_t keys = x.key_set().raw_repr();
  if (keys != plain_keys[0] && keys != plain_keys[1]) return false;
  key.layout.push_back(x.dim() * 256 + static_cast<int64_t>(x.scalar_type()));
  key.layout.append(x.sizes().begin(), x.sizes().end());
  key.layout.append(x.strides().begin(), x.strides().end());
  requires_grad = requires_grad || x.requires_grad();
  return true;
}

// The key of a call on these tensors; false where the call is not to be remembered.
bool make_key(Key& key, PyObject* options, PyObject* tensors) {
  if (!nobody_looks()) return false;
  bool requires_grad = false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tensors); ++i)
    if (!add_tensor(key, PyTuple_GET_ITEM(tensors, i), requires_grad)) return false;
  key.layout.push_back(at::get_num_threads() * 2 + (requires_grad && c10::GradMode::is_enabled()));
  const Py_hash_t hashed = PyObject_Hash(options);
  if (hashed == -1) return false;
  key.options = options;
  key.hash = static_cast<size_t>(hashed);
  for (const int64_t x : key.layout) key.hash = (key.hash ^ static_cast<size_t>(x)) * 0x9E3779B97F4A7C15u;
  key.hash ^= key.hash >> 32;
  return true;
}

void forget_all() {
  decltype(calls) gone;
  gone.swap(calls);  // first: a destructor may run Python, which may call here
  for (const auto& [key, call] : gone) {
    Py_DECREF(key.options);
    Py_DECREF(call);
  }
}

bool are_tuples(PyObject* const* args, Py_ssize_t count, Py_ssize_t expected, Py_ssize_t first) {
  if (count == expected && PyTuple_CheckExact(args[first]) && PyTuple_CheckExact(args[first + 1])) return true;
  PyErr_SetString(PyExc_TypeError, "expected a tuple of options and a tuple of tensors");
  return false;
}

PyObject* recall(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!are_tuples(args, count, 2, 0)) return nullptr;
  Key key;
  if (!make_key(key, args[0], args[1])) return PyErr_Occurred() ? nullptr : Py_NewRef(Py_False);
  const auto found = calls.find(key);
  if (PyErr_Occurred()) return nullptr;
  return Py_NewRef(found == calls.end() ? Py_None : found->second);
}

PyObject* remember(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!are_tuples(args, count, 3, 1)) return nullptr;
  Key key;
  if (make_key(key, args[1], args[2])) {
    if (calls.size() >= most_calls) forget_all();
    const auto [place, is_new] = calls.emplace(key, args[0]);
    if (is_new) {
      Py_INCREF(key.options);
    } else {
      Py_DECREF(std::exchange(place->second, args[0]));
    }
    Py_INCREF(args[0]);
  }
  return PyErr_Occurred() ? nullptr : Py_NewRef(Py_None);
}

PyObject* forget(PyObject*, PyObject*) {
  forget_all();
  return Py_NewRef(Py_None);
}

// ---------------------------------------------------------------------------------------------- prepared calls

constexpr size_t MOST_POINTERS = 8;
PyObject* not_plain = nullptr;  // eager.NotPlain

struct Output {
  std::vector<int64_t> shape;
  at::ScalarType dtype;
  bool is_wanted;
};

struct Prepared {
  PyObject_HEAD
  vectorcallfunc vectorcall;
  void* run;          // int(const void* always, void*...): the inputs, then the outputs
  PyObject* always;   // an array or a structure of ctypes
  Py_buffer buffer;   // on it
  PyObject* check;    // called with a status that is not 0: it raises
  std::vector<Py_ssize_t>* writes;  // the places of inputs
  bool gathers;       // run takes the addresses in one array
  std::vector<Output>* outputs;
};

using Pointers = c10::SmallVector<void*, 64>;

template <size_t... I>
int run_with(void* run, const void* always, const Pointers& p, std::index_sequence<I...>) {
  return reinterpret_cast<int (*)(const void*, decltype((void)I, (void*)nullptr)...)>(run)(always, p[I]...);
}

int run_kernel(void* run, const void* always, const Pointers& p, size_t count) {
  switch (count) {
    case 1: return run_with(run, always, p, std::make_index_sequence<1>());
    case 2: return run_with(run, always, p, std::make_index_sequence<2>());
    case 3: return run_with(run, always, p, std::make_index_sequence<3>());
    case 4: return run_with(run, always, p, std::make_index_sequence<4>());
    case 5: return run_with(run, always, p, std::make_index_sequence<5>());
    case 6: return run_with(run, always, p, std::make_index_sequence<6>());
    case 7: return run_with(run, always, p, std::make_index_sequence<7>());
    default: return run_with(run, always, p, std::make_index_sequence<8>());
  }
}

PyObject* call_prepared(PyObject* self, PyObject* const* args, size_t flagged_count, PyObject*) {
  auto& call = *reinterpret_cast<Prepared*>(self);
  const size_t inputs = PyVectorcall_NARGS(flagged_count);
  if (!call.gathers && inputs + call.outputs->size() > MOST_POINTERS) {
    PyErr_SetString(PyExc_TypeError, "more tensors came than the kernel takes");
    return nullptr;
  }
  Pointers pointers(std::max(MOST_POINTERS, inputs + call.outputs->size()), nullptr);
  c10::SmallVector<double, MOST_POINTERS> numbers(inputs);  // whole from the start: addresses are taken
  size_t count = 0;
  for (; count < inputs; ++count) {
    PyObject* const given = args[count];
    if (THPVariable_Check(given)) {
      pointers[count] = const_cast<void*>(THPVariable_Unpack(given).const_data_ptr());
      if (pointers[count] == nullptr) {
        PyErr_SetNone(not_plain);
        return nullptr;
      }
    } else if (given != Py_None) {
      numbers[count] = PyFloat_AsDouble(given);
      if (numbers[count] == -1 && PyErr_Occurred()) return nullptr;
      pointers[count] = &numbers[count];
    }
  }
  try {
    c10::SmallVector<at::Tensor, 2> made(call.outputs->size());
    size_t wanted = 0;
    for (const auto& output : *call.outputs) {
      if (output.is_wanted) {
        made[wanted] = at::detail::empty_cpu(output.shape, output.dtype);
        pointers[count] = made[wanted++].mutable_data_ptr();
      }
      ++count;
    }
    PyThreadState* state = PyEval_SaveThread();
    const int status = call.gathers
        ? reinterpret_cast<int (*)(const void*, void* const*)>(call.run)(call.buffer.buf, pointers.data())
        : run_kernel(call.run, call.buffer.buf, pointers, count);
    PyEval_RestoreThread(state);
    if (status != 0) {
      PyObject* checked = PyObject_CallFunction(call.check, "i", status);
      if (checked == nullptr) return nullptr;
      Py_DECREF(checked);
    }
    for (const Py_ssize_t i : *call.writes) {
      if (static_cast<size_t>(i) >= inputs || !THPVariable_Check(args[i])) continue;
      const at::Tensor& x = THPVariable_Unpack(args[i]);
      if (!x.is_inference()) x.unsafeGetTensorImpl()->bump_version();  // which such a tensor does not have
    }
    if (wanted == 1) return THPVariable_Wrap(std::move(made[0]));
    PyObject* results = PyTuple_New(static_cast<Py_ssize_t>(wanted));
    for (size_t i = 0; results != nullptr && i < wanted; ++i) {
      PyObject* result = THPVariable_Wrap(std::move(made[i]));
      if (result == nullptr) {
        Py_CLEAR(results);
      } else {
        PyTuple_SET_ITEM(results, static_cast<Py_ssize_t>(i), result);
      }
    }
    return results;
  } catch (const std::exception& error) {  // no memory
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

void free_prepared(PyObject* self) {
  auto& call = *reinterpret_cast<Prepared*>(self);
  if (call.always != nullptr) PyBuffer_Release(&call.buffer);
  Py_XDECREF(call.always);
  Py_XDECREF(call.check);
  delete call.outputs;
  delete call.writes;
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
}

PyTypeObject prepared_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

// prepared(run, always, outputs, check, writes, gathers): see eager.prepared
PyObject* prepared(PyObject*, PyObject* args) {
  unsigned long long run = 0;
  int gathers = 0;
  PyObject *always = nullptr, *outputs = nullptr, *check = nullptr, *writes = nullptr;
  if (!PyArg_ParseTuple(args, "KOO!OO!p", &run, &always, &PyTuple_Type, &outputs, &check, &PyTuple_Type, &writes,
                        &gathers))
    return nullptr;
  auto* call = PyObject_New(Prepared, &prepared_type);
  if (call == nullptr) return nullptr;
  call->vectorcall = call_prepared;
  call->run = reinterpret_cast<void*>(run);
  call->always = nullptr;
  call->gathers = gathers != 0;
  call->writes = new std::vector<Py_ssize_t>;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(writes); ++i)
    call->writes->push_back(PyLong_AsSsize_t(PyTuple_GET_ITEM(writes, i)));
  call->check = Py_NewRef(check);
  call->outputs = new std::vector<Output>;
  auto* object = reinterpret_cast<PyObject*>(call);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(outputs); ++i) {
    PyObject* like = PyTuple_GET_ITEM(outputs, i);
    if (THPVariable_Check(like)) {
      const at::Tensor& x = THPVariable_Unpack(like);
      call->outputs->push_back({x.sizes().vec(), x.scalar_type(), true});
    } else {
      call->outputs->push_back({{}, at::kFloat, false});
    }
  }
  if (PyObject_GetBuffer(always, &call->buffer, PyBUF_SIMPLE) != 0) {
    Py_DECREF(object);
    return nullptr;
  }
  call->always = Py_NewRef(always);
  return object;
}

// watch(quiet keys, plain keys, ((variables, name, quiet), ...), ((variable, quiet), ...), most_calls, NotPlain):
// what nobody_looks and add_tensor ask for
PyObject* watch(PyObject*, PyObject* args) {
  PyObject *flagged = nullptr, *scoped = nullptr, *error = nullptr;
  Py_ssize_t most = 0;
  if (!PyArg_ParseTuple(args, "(KK)(KK)O!O!nO", &quiet_keys[0], &quiet_keys[1], &plain_keys[0], &plain_keys[1],
                        &PyTuple_Type, &flagged, &PyTuple_Type, &scoped, &most, &error))
    return nullptr;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(flagged); ++i) {
    Flag flag{};
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(flagged, i), "O!UO", &PyDict_Type, &flag.variables, &flag.name, &flag.quiet))
      return nullptr;
    Py_INCREF(flag.variables), Py_INCREF(flag.name), Py_INCREF(flag.quiet);  // as long as the process
    flags.push_back(flag);
  }
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(scoped); ++i) {
    Scope scope{};
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(scoped, i), "OO", &scope.variable, &scope.quiet)) return nullptr;
    Py_INCREF(scope.variable), Py_INCREF(scope.quiet);
    scopes.push_back(scope);
  }
  most_calls = static_cast<size_t>(most);
  not_plain = Py_NewRef(error);
  return Py_NewRef(Py_None);
}

template <typename F>
PyCFunction as_function(F* f) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(f)); }

PyMethodDef methods[] = {
    {"recall", as_function(recall), METH_FASTCALL, nullptr},
    {"remember", as_function(remember), METH_FASTCALL, nullptr},
    {"forget", forget, METH_NOARGS, nullptr},
    {"prepared", prepared, METH_VARARGS, nullptr},
    {"watch", watch, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "eager", nullptr, -1, methods};
}  // namespace

PyMODINIT_FUNC PyInit_eager() {
  prepared_type.tp_name = "tropigrad.kernels.eager.Prepared";
  prepared_type.tp_basicsize = sizeof(Prepared);
  prepared_type.tp_dealloc = free_prepared;
  prepared_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL;
  prepared_type.tp_call = PyVectorcall_Call;
  prepared_type.tp_vectorcall_offset = offsetof(Prepared, vectorcall);
  return PyType_Ready(&prepared_type) == 0 ? PyModule_Create(&module) : nullptr;
}
