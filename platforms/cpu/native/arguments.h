// Python arguments as plain C++: arrays are checked for type, shape and order before a kernel sees them.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "dtype.h"
#include "invalid.h"
#include "rows.h"

namespace inferplane {

enum class Element { float32, bfloat16, float16, int32, uint8, int8 };

constexpr int most_dims = 8;

// A C-contiguous array that the caller keeps alive. Plain data: describing it costs only where it is wrong.
struct Array {
    const char *function, *argument;
    int index;  // in a sequence of arrays, or -1
    void* data;
    Element element;
    int rank;
    int64_t shape[most_dims];

    std::string name() const;      // "attention: q"
    std::string describe() const;  // "bfloat16[16, 32, 64]"
    int64_t size() const;
    int64_t last() const { return shape[rank - 1]; }
    DType dtype() const;  // throws where the elements are not floats of ours

    // -1 in `wanted` accepts any size.
    const Array& expect(Element element) const;
    const Array& expect(std::initializer_list<int64_t> wanted) const;
    const Array& expect_like(const Array& other) const;  // type and shape
    const int32_t* int32() const;
    const float* float32() const;
};

const char* name_of(Element element);
Element element_of(DType type);

// The positional arguments of one call.
class Arguments {
  public:
    Arguments(const char* function, PyObject* const* values, Py_ssize_t count, Py_ssize_t wanted);

    Array array(int i, const char* name) const;
    Array output(int i, const char* name) const;  // writable
    std::optional<Array> optional_array(int i, const char* name) const;
    std::optional<Array> optional_output(int i, const char* name) const;  // writable
    std::vector<Array> arrays(int i, const char* name) const;   // one array, or a tuple or list of them
    std::vector<Array> outputs(int i, const char* name) const;  // likewise, writable
    std::vector<std::optional<Array>> optional_arrays(int i, const char* name, size_t count) const;  // None instead of any or all
    int64_t integer(int i, const char* name) const;
    double number(int i, const char* name) const;
    std::string text(int i, const char* name) const;
    bool flag(int i) const;
    PyObject* object(int i) const { return values_[i]; }

  private:
    std::vector<Array> views(int i, const char* name, bool writable) const;

    const char* function_;
    PyObject* const* values_;
};

// The error indicator is already set.
struct PythonError {};

// Other Python threads run while a kernel does.
class WithoutGil {
  public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    ~WithoutGil() { PyEval_RestoreThread(state_); }

  private:
    PyThreadState* state_;
};

bool import_numpy();
PyObject* new_bytes_array(int64_t bytes, void** memory = nullptr);  // uint8, zeroed, 64-byte aligned, huge pages; owns its memory

std::vector<PyObject*> arrays_in(PyObject* value);  // borrowed: an array, those of a tuple or list, or none
const void* memory_of(PyObject* array);
PyObject* new_result(PyObject* shape, PyObject* dtype);  // not zeroed; a large one takes over the pages of one that is gone

Activation named_activation(const std::string& name);
RopeJob rope_job(const Array& x, const Array& positions, const Array& table, bool interleaved, void* out);
void check_positions(const RopeJob& job, const Array& positions, const Array& table);

using Body = PyObject* (*)(const Arguments&);
using FastFunction = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* guarded(Body body, const char* name, PyObject* const* values, Py_ssize_t count, Py_ssize_t wanted);

PyMethodDef* matrix_methods();
PyMethodDef* attention_methods();
PyMethodDef* quantized_methods();
PyMethodDef* row_methods();
PyMethodDef* machine_methods();
PyMethodDef* tape_methods();

// One entry of a method table: checks the number of arguments and turns C++ exceptions into Python's.
#define INFERPLANE_METHOD(function, count, doc)                                                                        \
    {#function,                                                                                                        \
     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(static_cast<FastFunction>(                                \
         [](PyObject*, PyObject* const* values, Py_ssize_t n) { return guarded(py_##function, #function, values, n, count); }))), \
     METH_FASTCALL, PyDoc_STR(doc)}

}  // namespace inferplane
