// Python entries of linear: shapes are checked here, and never again.
#include "bind_linear.h"
#include "tape.h"

namespace inferplane {
namespace {

DType named_dtype(const std::string& name) {
    if (name == "float32") return DType::float32;
    if (name == "bfloat16") return DType::bfloat16;
    if (name == "float16") return DType::float16;
    throw Invalid("dtype '" + name + "' is unknown; known: float32, bfloat16, float16");
}

void expect_packed(const Array& packed, int64_t outputs, int64_t inputs, DType type) {
    const int64_t wanted = packed_bytes(outputs, inputs, type);
    packed.expect(Element::uint8).expect({-1});
    INFERPLANE_REQUIRE(packed.size() == wanted, packed.name() + " holds " + std::to_string(packed.size()) + " bytes; [" + std::to_string(outputs) +
            ", " + std::to_string(inputs) + "] of " + name_of(element_of(type)) + " packs into " + std::to_string(wanted));
    INFERPLANE_REQUIRE(reinterpret_cast<uintptr_t>(packed.data) % cache_line_bytes == 0, packed.name() + " is not aligned to 64 bytes; use allocate()");
}

PyObject* py_allocate(const Arguments& a) { return new_bytes_array(a.integer(0, "bytes")); }

PyObject* py_packed_bytes(const Arguments& a) {
    const int64_t outputs = a.integer(0, "outputs"), inputs = a.integer(1, "inputs");
    INFERPLANE_REQUIRE(outputs > 0 && inputs > 0, "packed_bytes: outputs and inputs must be at least 1");
    return PyLong_FromLongLong(packed_bytes(outputs, inputs, named_dtype(a.text(2, "dtype"))));
}

PyObject* py_pack_part(const Arguments& a) {
    const Array packed = a.output(0, "packed"), weight = a.array(3, "weight");
    const int64_t outputs = a.integer(1, "outputs"), first = a.integer(2, "first");
    weight.expect({-1, -1});
    const int64_t rows = weight.shape[0], inputs = weight.shape[1];
    INFERPLANE_REQUIRE(outputs > 0 && inputs > 0, "pack_part: outputs and inputs must be at least 1");
    INFERPLANE_REQUIRE(first >= 0 && rows <= outputs - first, "pack_part: rows " + std::to_string(first) + " .. " + std::to_string(first + rows) +
            " do not fit into " + std::to_string(outputs) + " outputs");
    expect_packed(packed, outputs, inputs, weight.dtype());
    {
        WithoutGil free;
        pack_linear(packed.data, first, weight.data, rows, inputs, weight.dtype());
    }
    Py_RETURN_NONE;
}

PyObject* py_pack_linear(const Arguments& a) {
    const std::vector<Array> parts = a.arrays(0, "parts");
    INFERPLANE_REQUIRE(!parts.empty(), "pack_linear: no parts");
    const DType type = parts[0].dtype();
    const int64_t inputs = parts[0].expect({-1, -1}).last();
    int64_t outputs = 0;
    for (const Array& part : parts) outputs += part.expect(element_of(type)).expect({-1, inputs}).shape[0];
    INFERPLANE_REQUIRE(outputs > 0 && inputs > 0, "pack_linear: outputs and inputs must be at least 1");
    void* memory = nullptr;
    PyObject* packed = new_bytes_array(packed_bytes(outputs, inputs, type), &memory);
    {
        WithoutGil free;
        int64_t first = 0;
        for (const Array& part : parts) {
            pack_linear(memory, first, part.data, part.shape[0], inputs, type);
            first += part.shape[0];
        }
    }
    return packed;
}

PyObject* run(LinearJob& job, const Array& packed) {
    expect_packed(packed, job.outputs, job.inputs, job.dtype);
    return launch([job]() mutable { linear(job); });
}

PyObject* py_linear(const Arguments& a) {
    LinearJob job{};
    const Array packed = take_linear(job, a);
    return run(job, packed);
}

PyObject* py_gated_linear(const Arguments& a) {
    LinearJob job{};
    const Array packed = take_gated(job, a);
    return run(job, packed);
}

}  // namespace

PyMethodDef* matrix_methods() {
    static PyMethodDef methods[] = {
        INFERPLANE_METHOD(allocate, 1, "allocate(bytes) -> uint8 [bytes], zeroed, 64-byte aligned, on huge pages."),
        INFERPLANE_METHOD(packed_bytes, 3, "packed_bytes(outputs, inputs, dtype) -> bytes of the packed weight."),
        INFERPLANE_METHOD(pack_part, 4, "pack_part(packed, outputs, first, weight [rows, inputs]): rows first .. of the packed weight."),
        INFERPLANE_METHOD(pack_linear, 1, "pack_linear(parts of [rows, inputs]) -> packed uint8; parts follow each other as outputs."),
        INFERPLANE_METHOD(linear, 4, "linear(x [tokens, inputs], packed, outs, biases): outs[i] [tokens, width] = columns of x W^T + bias."),
        INFERPLANE_METHOD(gated_linear, 5, "gated_linear(x, packed, out [tokens, width], biases, kind): out = activation(gate) * up. 64 rows "
                          "of the gate's weight and 64 of the up's take turns in `packed`."),
        {nullptr, nullptr, 0, nullptr}};
    return methods;
}

}  // namespace inferplane
