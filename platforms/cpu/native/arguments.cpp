// The only unit that touches NumPy's API.
#include "arguments.h"

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>

#include <cstring>
#include <new>

#include "memory.h"

namespace inferplane {
namespace {

[[noreturn]] void fail(const std::string& text) { throw Invalid(text); }

// bfloat16 is a user-defined type of ml_dtypes: known by its name.
bool is_bfloat16(PyArray_Descr* type) {
    if (type->kind != 'V' || PyDataType_ELSIZE(type) != 2 || !type->typeobj) return false;
    const char* name = std::strrchr(type->typeobj->tp_name, '.');
    return std::strcmp(name ? name + 1 : type->typeobj->tp_name, "bfloat16") == 0;
}

Element element_of(PyArray_Descr* type, const std::string& name) {
    if (PyDataType_ISBYTESWAPPED(type)) fail(name + " is not in the machine's byte order");
    switch (type->type_num) {
        case NPY_FLOAT32: return Element::float32;
        case NPY_FLOAT16: return Element::float16;
        case NPY_UINT8: return Element::uint8;
        default: break;
    }
    if ((type->kind == 'i' || type->kind == 'u') && PyDataType_ELSIZE(type) == 4) return Element::int32;
    if (is_bfloat16(type)) return Element::bfloat16;
    fail(name + " has elements of type '" + type->typeobj->tp_name + "'; known: float32, float16, ml_dtypes.bfloat16, int32, uint8");
}

Array view(PyObject* value, const std::string& name, bool writable) {
    if (!PyArray_Check(value)) fail(name + " is " + Py_TYPE(value)->tp_name + ", not a NumPy array");
    PyArrayObject* array = reinterpret_cast<PyArrayObject*>(value);
    if (!PyArray_IS_C_CONTIGUOUS(array)) fail(name + " is not C-contiguous; pass numpy.ascontiguousarray of it");
    if (writable && !PyArray_ISWRITEABLE(array)) fail(name + " is read-only, and the result goes there");
    const npy_intp* dims = PyArray_DIMS(array);
    return {name, PyArray_DATA(array), element_of(PyArray_DESCR(array), name), {dims, dims + PyArray_NDIM(array)}};
}

void free_bytes(PyObject* capsule) {
    free_pages(PyCapsule_GetPointer(capsule, nullptr), reinterpret_cast<int64_t>(PyCapsule_GetContext(capsule)));
}

// A tuple or list as borrowed items; anything else as itself.
std::vector<PyObject*> items(PyObject* value) {
    if (!PyTuple_Check(value) && !PyList_Check(value)) return {value};
    std::vector<PyObject*> found;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(value); ++i) found.push_back(PySequence_Fast_GET_ITEM(value, i));
    return found;
}

std::string numbered(const std::string& name, size_t i, size_t count) {
    return count > 1 ? name + "[" + std::to_string(i) + "]" : name;
}

}  // namespace

const char* name_of(Element element) {
    constexpr const char* names[] = {"float32", "bfloat16", "float16", "int32", "uint8"};
    return names[int(element)];
}

Element element_of(DType type) { return Element(int(type)); }

int64_t Array::size() const {
    int64_t product = 1;
    for (int64_t n : shape) product *= n;
    return product;
}

DType Array::dtype() const {
    if (element > Element::float16) fail(name + " is " + describe() + "; expected float32, bfloat16 or float16");
    return DType(int(element));
}

std::string Array::describe() const {
    std::string text = std::string(name_of(element)) + "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

const Array& Array::expect(Element wanted) const {
    if (element != wanted) fail(name + " is " + describe() + "; expected " + name_of(wanted));
    return *this;
}

const Array& Array::expect(std::initializer_list<int64_t> wanted) const {
    bool same = wanted.size() == shape.size();
    std::string text;
    size_t i = 0;
    for (int64_t n : wanted) {
        same = same && (n < 0 || n == shape[i]);
        text += (i++ ? ", " : "") + (n < 0 ? std::string("any") : std::to_string(n));
    }
    if (!same) fail(name + " is " + describe() + "; expected the shape [" + text + "]");
    return *this;
}

const Array& Array::expect_like(const Array& other) const {
    if (element != other.element || shape != other.shape) fail(name + " is " + describe() + "; expected " + other.describe() + " like " + other.name);
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

Array Arguments::array(int i, const char* name) const { return view(values_[i], full(function_, name), false); }
Array Arguments::output(int i, const char* name) const { return view(values_[i], full(function_, name), true); }

std::optional<Array> Arguments::optional_array(int i, const char* name) const {
    if (values_[i] == Py_None) return std::nullopt;
    return array(i, name);
}

std::vector<Array> Arguments::outputs(int i, const char* name) const {
    std::vector<Array> found;
    const std::vector<PyObject*> values = items(values_[i]);
    for (size_t j = 0; j < values.size(); ++j) found.push_back(view(values[j], numbered(full(function_, name), j, values.size()), true));
    return found;
}

std::vector<Array> Arguments::arrays(int i, const char* name) const {
    std::vector<Array> found;
    const std::vector<PyObject*> values = items(values_[i]);
    for (size_t j = 0; j < values.size(); ++j) found.push_back(view(values[j], numbered(full(function_, name), j, values.size()), false));
    return found;
}

std::vector<std::optional<Array>> Arguments::optional_arrays(int i, const char* name, size_t count) const {
    std::vector<std::optional<Array>> found(count);
    if (values_[i] == Py_None) return found;
    const std::vector<PyObject*> values = items(values_[i]);
    if (values.size() != count) {
        fail(full(function_, name) + " has " + std::to_string(values.size()) + " entries; expected " + std::to_string(count));
    }
    for (size_t j = 0; j < count; ++j) {
        if (values[j] != Py_None) found[j] = view(values[j], numbered(full(function_, name), j, count), false);
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

PyObject* guarded(Body body, const char* name, PyObject* const* values, Py_ssize_t count, Py_ssize_t wanted) {
    try {
        return body(Arguments(name, values, count, wanted));
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
