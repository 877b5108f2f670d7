// The extension module inferplane.platforms.cpu._native: its entries about the machine, and its method table.
#include "arguments.h"
#include "limits.h"
#include "path.h"
#include "pool.h"

namespace inferplane {
namespace {

// Steals the value; a null one, or a failed insertion, raises.
void put(PyObject* dict, const char* key, PyObject* value) {
    const bool failed = !value || PyDict_SetItemString(dict, key, value) < 0;
    Py_XDECREF(value);
    if (failed) throw PythonError();
}

PyObject* py_features(const Arguments&) {
    const Path& active = active_path();
    PyObject* features = PyDict_New();
    if (!features) throw PythonError();
    PyObject* supported = PyList_New(0);
    for (const PathEntry& entry : paths) {
        PyObject* name = entry.supported() ? PyUnicode_FromString(entry.table().name) : nullptr;
        if (name) PyList_Append(supported, name);
        Py_XDECREF(name);
    }
    put(features, "paths", supported);
    put(features, "path", PyUnicode_FromString(active.name));
    put(features, "threads", PyLong_FromLong(thread_count()));
    const std::string few = active.codes[0].product, many = active.many_codes[0].multiply ? active.many_codes[0].product : few;
    put(features, "quantized_linear.int8", PyUnicode_FromString((few == many ? few : few + ", of many rows " + many).c_str()));
    for (const DType type : {DType::float32, DType::bfloat16, DType::float16}) {
        const std::string key = std::string("linear.") + name_of(element_of(type));
        put(features, key.c_str(), PyUnicode_FromString(active.linear[int(type)].product));
        put(features, ("quantized_" + key).c_str(), PyUnicode_FromString(active.floats[int(type)].product));
    }
    return features;
}

PyObject* py_select(const Arguments& a) {
    const std::string name = a.text(0, "path");
    {
        WithoutGil free;
        select_path(name);
    }
    Py_RETURN_NONE;
}

PyObject* py_self_check(const Arguments& a) {
    const std::string name = a.text(0, "path");
    for (const PathEntry& entry : paths) {
        if (name != entry.table().name) continue;
        if (!entry.supported()) throw Invalid("self_check: this processor lacks the instructions of '" + name + "'");
        std::string found;
        {
            WithoutGil free;
            found = self_check(entry.table());
        }
        if (!found.empty()) return PyUnicode_FromString(found.c_str());
        Py_RETURN_NONE;
    }
    throw Invalid("self_check: unknown path '" + name + "'");
}

PyObject* py_measure_limits(const Arguments&) {
    Limits limits;
    {
        WithoutGil free;
        limits = measure_limits();
    }
    return Py_BuildValue("{s:d,s:d,s:d,s:d}", "read_bytes_per_second", limits.read_bytes_per_second, "float32_flops", limits.f32_flops,
                         "bfloat16_flops", limits.bf16_flops, "int8_ops", limits.int8_ops);
}

PyObject* py_set_threads(const Arguments& a) {
    const int64_t count = a.integer(0, "threads");
    if (count < 0 || count > 4096) throw Invalid("set_threads: " + std::to_string(count) + " threads; expected 1 to 4096, or 0 for all allowed cores");
    set_thread_count(int(count));
    Py_RETURN_NONE;
}

PyObject* py_get_threads(const Arguments&) { return PyLong_FromLong(thread_count()); }

}  // namespace

PyMethodDef* machine_methods() {
    static PyMethodDef methods[] = {
        INFERPLANE_METHOD(features, 0, "features() -> dict: what the processor has, and which kernels are used."),
        INFERPLANE_METHOD(select, 1, "select(path): 'auto', or a path of this build that the machine has."),
        INFERPLANE_METHOD(self_check, 1, "self_check(path) -> None, or what differs from the portable path."),
        INFERPLANE_METHOD(measure_limits, 0, "measure_limits() -> dict: read bandwidth and multiply-add peaks of all threads."),
        INFERPLANE_METHOD(set_threads, 1, "set_threads(threads): 0 for as many as the process may use."),
        INFERPLANE_METHOD(get_threads, 0, "get_threads() -> int."),
        {nullptr, nullptr, 0, nullptr}};
    return methods;
}

}  // namespace inferplane

PyMODINIT_FUNC PyInit__native() {
    static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", "Kernels of the cpu platform; see native/README.md.", -1,
                                     nullptr, nullptr, nullptr, nullptr, nullptr};
    if (!inferplane::import_numpy()) return nullptr;
    PyObject* module = PyModule_Create(&definition);
    if (!module) return nullptr;
    for (PyMethodDef* methods : {inferplane::matrix_methods(), inferplane::attention_methods(), inferplane::quantized_methods(), inferplane::row_methods(), inferplane::tape_methods(),
                                 inferplane::machine_methods()}) {
        if (PyModule_AddFunctions(module, methods) < 0) {
            Py_DECREF(module);
            return nullptr;
        }
    }
    return module;
}
