// The only unit that touches NumPy's API.
#include "arguments.h"

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "tape.h"

namespace inferplane {
namespace {

[[noreturn]] void fail(const std::string& text) { throw Invalid(text); }

// bfloat16 is a user-defined type of ml_dtypes: known by its name.
bool is_bfloat16(PyArray_Descr* type) {
    if (type->kind != 'V' || PyDataType_ELSIZE(type) != 2 || !type->typeobj) return false;
    const char* name = std::strrchr(type->typeobj->tp_name, '.');
    return std::strcmp(name ? name + 1 : type->typeobj->tp_name, "bfloat16") == 0;
}

Element element_of(const Array& array, PyArray_Descr* type) {
    if (PyDataType_ISBYTESWAPPED(type)) fail(array.name() + " is not in the machine's byte order");
    switch (type->type_num) {
        case NPY_FLOAT32: return Element::float32;
        case NPY_FLOAT16: return Element::float16;
        case NPY_UINT8: return Element::uint8;
        case NPY_INT8: return Element::int8;
        default: break;
    }
    if ((type->kind == 'i' || type->kind == 'u') && PyDataType_ELSIZE(type) == 4) return Element::int32;
    if (is_bfloat16(type)) return Element::bfloat16;
    fail(array.name() + " has elements of type '" + type->typeobj->tp_name + "'; known: float32, float16, ml_dtypes.bfloat16, int32, uint8, int8");
}

Array view(PyObject* value, const char* function, const char* argument, bool writable, int index = -1) {
    Array made{function, argument, index, nullptr, Element::uint8, 0, {}};
    if (!PyArray_Check(value)) fail(made.name() + " is " + Py_TYPE(value)->tp_name + ", not a NumPy array");
    PyArrayObject* array = reinterpret_cast<PyArrayObject*>(value);
    if (!PyArray_IS_C_CONTIGUOUS(array)) fail(made.name() + " is not C-contiguous; pass numpy.ascontiguousarray of it");
    if (writable && !PyArray_ISWRITEABLE(array)) fail(made.name() + " is read-only, and the result goes there");
    if (!PyArray_ISALIGNED(array)) fail(made.name() + " is not aligned to its elements");
    made.rank = PyArray_NDIM(array);
    if (made.rank < 1 || made.rank > most_dims) fail(made.name() + " has " + std::to_string(made.rank) + " dimensions; expected 1 to 8");
    for (int i = 0; i < made.rank; ++i) made.shape[i] = PyArray_DIM(array, i);
    made.data = PyArray_DATA(array);
    made.element = element_of(made, PyArray_DESCR(array));
    return made;
}

void free_bytes(PyObject* capsule) {
    free_pages(PyCapsule_GetPointer(capsule, nullptr), reinterpret_cast<int64_t>(PyCapsule_GetContext(capsule)));
}

// The pages of one result, until nobody needs it.
struct Loan {
    std::shared_ptr<IdlePages> from;
    Pages pages;

    Loan(std::shared_ptr<IdlePages> from_, int64_t bytes) : from(std::move(from_)), pages(from->take(bytes)) {}
    ~Loan() { from->give_back(pages); }
    Loan(const Loan&) = delete;
};

int64_t power_of_two(int64_t bytes) {
    int64_t power = 4096;  // a page
    while (power < bytes) power *= 2;
    return power;
}

void end_loan(PyObject* capsule) { delete static_cast<Loan*>(PyCapsule_GetPointer(capsule, nullptr)); }

// A tuple or list as borrowed items; anything else as itself.
std::vector<PyObject*> items(PyObject* value) {
    if (!PyTuple_Check(value) && !PyList_Check(value)) return {value};
    std::vector<PyObject*> found;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(value); ++i) found.push_back(PySequence_Fast_GET_ITEM(value, i));
    return found;
}

}  // namespace

const char* name_of(Element element) {
    constexpr const char* names[] = {"float32", "bfloat16", "float16", "int32", "uint8", "int8"};
    return names[int(element)];
}

Element element_of(DType type) { return Element(int(type)); }

std::string Array::name() const {
    return std::string(function) + ": " + argument + (index < 0 ? "" : "[" + std::to_string(index) + "]");
}

std::string Array::describe() const {
    std::string text = std::string(name_of(element)) + "[";
    for (int i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

int64_t Array::size() const {
    int64_t product = 1;
    for (int i = 0; i < rank; ++i) product *= shape[i];
    return product;
}

DType Array::dtype() const {
    if (element > Element::float16) fail(name() + " is " + describe() + "; expected float32, bfloat16 or float16");
    return DType(int(element));
}

const Array& Array::expect(Element wanted) const {
    if (element != wanted) fail(name() + " is " + describe() + "; expected " + name_of(wanted));
    return *this;
}

const Array& Array::expect(std::initializer_list<int64_t> wanted) const {
    bool same = int64_t(wanted.size()) == rank;
    const int64_t* have = shape;
    for (auto n = wanted.begin(); same && n != wanted.end(); ++n, ++have) same = *n < 0 || *n == *have;
    if (same) return *this;
    std::string text;
    for (const int64_t n : wanted) text += (text.empty() ? "" : ", ") + (n < 0 ? std::string("any") : std::to_string(n));
    fail(name() + " is " + describe() + "; expected the shape [" + text + "]");
}

const Array& Array::expect_like(const Array& other) const {
    bool same = element == other.element && rank == other.rank;
    for (int i = 0; same && i < rank; ++i) same = shape[i] == other.shape[i];
    if (!same) fail(name() + " is " + describe() + "; expected " + other.describe() + " like " + other.argument);
    return *this;
}

const int32_t* Array::int32() const { return static_cast<const int32_t*>(expect(Element::int32).data); }
const float* Array::float32() const { return static_cast<const float*>(expect(Element::float32).data); }

Arguments::Arguments(const char* function, PyObject* const* values, Py_ssize_t count, Py_ssize_t wanted)
    : function_(function), values_(values) {
    if (count == wanted) return;
    PyErr_Format(PyExc_TypeError, "%s takes %zd positional arguments, got %zd", function, wanted, count);
    throw PythonError();
}

static std::string full(const char* function, const char* name) { return std::string(function) + ": " + name; }

Array Arguments::array(int i, const char* name) const { return view(values_[i], function_, name, false); }
Array Arguments::output(int i, const char* name) const { return view(values_[i], function_, name, true); }

std::optional<Array> Arguments::optional_array(int i, const char* name) const {
    if (values_[i] == Py_None) return std::nullopt;
    return array(i, name);
}

std::optional<Array> Arguments::optional_output(int i, const char* name) const {
    if (values_[i] == Py_None) return std::nullopt;
    return output(i, name);
}

std::vector<Array> Arguments::views(int i, const char* name, bool writable) const {
    std::vector<Array> found;
    const std::vector<PyObject*> values = items(values_[i]);
    for (size_t j = 0; j < values.size(); ++j) found.push_back(view(values[j], function_, name, writable, values.size() > 1 ? int(j) : -1));
    return found;
}

std::vector<Array> Arguments::arrays(int i, const char* name) const { return views(i, name, false); }
std::vector<Array> Arguments::outputs(int i, const char* name) const { return views(i, name, true); }

std::vector<std::optional<Array>> Arguments::optional_arrays(int i, const char* name, size_t count) const {
    std::vector<std::optional<Array>> found(count);
    if (values_[i] == Py_None) return found;
    const std::vector<PyObject*> values = items(values_[i]);
    if (values.size() != count) {
        fail(full(function_, name) + " has " + std::to_string(values.size()) + " entries; expected " + std::to_string(count));
    }
    for (size_t j = 0; j < count; ++j) {
        if (values[j] != Py_None) found[j] = view(values[j], function_, name, false, count > 1 ? int(j) : -1);
    }
    return found;
}

int64_t Arguments::integer(int i, const char* name) const {
    const long long value = PyLong_AsLongLong(values_[i]);
    if (value == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        fail(full(function_, name) + " is " + Py_TYPE(values_[i])->tp_name + "; expected an integer of 64 bits");
    }
    return value;
}

double Arguments::number(int i, const char* name) const {
    const double value = PyFloat_AsDouble(values_[i]);
    if (value == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        fail(full(function_, name) + " is " + Py_TYPE(values_[i])->tp_name + "; expected a number");
    }
    return value;
}

std::string Arguments::text(int i, const char* name) const {
    const char* value = PyUnicode_Check(values_[i]) ? PyUnicode_AsUTF8(values_[i]) : nullptr;
    if (!value) {
        PyErr_Clear();
        fail(full(function_, name) + " is " + Py_TYPE(values_[i])->tp_name + "; expected text");
    }
    return value;
}

bool Arguments::flag(int i) const {
    const int value = PyObject_IsTrue(values_[i]);
    if (value < 0) throw PythonError();
    return value == 1;
}

bool import_numpy() { return _import_array() >= 0; }

PyObject* new_bytes_array(int64_t bytes, void** address) {
    if (bytes <= 0) fail("cannot allocate " + std::to_string(bytes) + " bytes; expected at least 1");
    void* memory = allocate_pages(bytes);
    npy_intp shape[1] = {bytes};
    PyObject* array = PyArray_SimpleNewFromData(1, shape, NPY_UINT8, memory);
    PyObject* owner = array ? PyCapsule_New(memory, nullptr, free_bytes) : nullptr;
    if (!owner) {
        Py_XDECREF(array);
        free_pages(memory, bytes);
        throw PythonError();
    }
    PyCapsule_SetContext(owner, reinterpret_cast<void*>(bytes));
    PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(array), owner);
    if (address) *address = memory;
    return array;
}

std::vector<PyObject*> arrays_in(PyObject* value) {
    std::vector<PyObject*> found = items(value);
    found.erase(std::remove_if(found.begin(), found.end(), [](PyObject* one) { return !PyArray_Check(one); }), found.end());
    return found;
}

const void* memory_of(PyObject* array) { return PyArray_DATA(reinterpret_cast<PyArrayObject*>(array)); }

PyObject* new_result(PyObject* wanted, PyObject* dtype) {
    constexpr int64_t small_bytes = 1 << 16;  // NumPy's own allocator has pages for these
    Tape* const tape = Tape::recording;
    PyArray_Descr* type = nullptr;
    PyArray_Dims shape{nullptr, 0};
    if (!PyArray_DescrConverter(dtype, &type)) throw PythonError();
    if (!PyArray_IntpConverter(wanted, &shape)) {
        Py_DECREF(type);
        throw PythonError();
    }
    const int64_t bytes = PyArray_MultiplyList(shape.ptr, shape.len) * PyDataType_ELSIZE(type);
    PyObject* array = nullptr;
    if (bytes < (tape ? 1 : small_bytes)) {
        array = PyArray_Empty(shape.len, shape.ptr, type, 0);
    } else {
        // Pages of tapes stay: whole powers of two serve batches that grow by a row at a time.
        auto loan = tape ? std::make_unique<Loan>(tape->pages(), power_of_two(bytes)) : std::make_unique<Loan>(result_pages(), bytes);
        if (tape) tape->made(loan->pages.memory);
        array = PyArray_NewFromDescr(&PyArray_Type, type, shape.len, shape.ptr, nullptr, loan->pages.memory, NPY_ARRAY_CARRAY, nullptr);
        PyObject* owner = array ? PyCapsule_New(loan.get(), nullptr, end_loan) : nullptr;
        if (owner) {
            loan.release();
            PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(array), owner);
        } else {
            Py_CLEAR(array);
        }
    }
    PyDimMem_FREE(shape.ptr);
    if (!array) throw PythonError();
    return array;
}

PyObject* guarded(Body body, const char* name, PyObject* const* values, Py_ssize_t count, Py_ssize_t wanted) {
    try {
        PyObject* answer = body(Arguments(name, values, count, wanted));
        if (Tape::recording && answer == Py_None) std::for_each(values, values + count, [](PyObject* value) { Tape::recording->hold(value); });
        return answer;
    } catch (const PythonError&) {
    } catch (const Invalid& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

}  // namespace inferplane
