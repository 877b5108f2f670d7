// Python entries of the quantized linear: shapes and types are checked here, and never again.
#include "bind_linear.h"
#include "quantized.h"
#include "tape.h"

namespace inferplane {
namespace {

DType scale_type(const std::string& name) {
    for (const DType type : {DType::float32, DType::bfloat16, DType::float16}) {
        if (name == name_of(element_of(type))) return type;
    }
    throw Invalid("scales of '" + name + "'; known: float32, bfloat16, float16");
}

// The five arguments from `at`: inputs, bits, group (0: all inputs), dtype of the scales, whether there are zero points.
QuantizedLayout layout_at(const Arguments& a, int at) {
    const QuantizedLayout layout{a.integer(at, "inputs"), a.integer(at + 2, "group"), int(a.integer(at + 1, "bits")), scale_type(a.text(at + 3, "scales")),
                                 a.flag(at + 4)};
    INFERPLANE_REQUIRE(layout.inputs > 0, "quantized linear: inputs must be at least 1");
    INFERPLANE_REQUIRE(layout.bits == 8 || layout.bits == 4, "quantized linear: codes of " + std::to_string(layout.bits) + " bits; expected 8 or 4");
    INFERPLANE_REQUIRE(layout.group >= 0 && layout.group % k_per_word == 0, "quantized linear: groups of " + std::to_string(layout.group) +
            " inputs; expected a multiple of 4, or 0 for all");
    return layout;
}

int64_t bytes_of(const QuantizedLayout& layout, int64_t outputs) { return linear_panels(outputs) * layout.panel_bytes(); }

void expect_panels(const Array& packed, const QuantizedLayout& layout, int64_t outputs) {
    packed.expect(Element::uint8).expect({bytes_of(layout, outputs)});
    INFERPLANE_REQUIRE(reinterpret_cast<uintptr_t>(packed.data) % cache_line_bytes == 0, packed.name() + " is not aligned to 64 bytes; use allocate()");
}

PyObject* py_quantized_bytes(const Arguments& a) {
    const int64_t outputs = a.integer(0, "outputs");
    INFERPLANE_REQUIRE(outputs > 0, "quantized_bytes: outputs must be at least 1");
    return PyLong_FromLongLong(bytes_of(layout_at(a, 1), outputs));
}

PyObject* py_pack_quantized(const Arguments& a) {
    const Array packed = a.output(0, "packed"), codes = a.array(3, "codes"), scales = a.array(4, "scales");
    const int64_t outputs = a.integer(1, "outputs"), first = a.integer(2, "first");
    const std::optional<Array> zeros = a.optional_array(5, "zeros");
    const QuantizedLayout layout = layout_at(a, 6);
    codes.expect(Element::uint8).expect({-1, layout.inputs});
    const int64_t rows = codes.shape[0];
    INFERPLANE_REQUIRE(outputs > 0 && first >= 0 && rows <= outputs - first, "pack_quantized: rows " + std::to_string(first) + " .. " +
            std::to_string(first + rows) + " do not fit into " + std::to_string(outputs) + " outputs");
    INFERPLANE_REQUIRE(bool(zeros) == layout.zeros, "pack_quantized: zero points must be given where the layout has them, and nowhere else");
    scales.expect(element_of(layout.scales)).expect({rows, layout.groups()});
    if (zeros) zeros->expect(Element::uint8).expect({rows, layout.groups()});
    expect_panels(packed, layout, outputs);
    {
        WithoutGil free;
        pack_quantized(layout, packed.data, first, static_cast<const int8_t*>(codes.data), scales.data,
                       zeros ? static_cast<const int8_t*>(zeros->data) : nullptr, rows);
    }
    Py_RETURN_NONE;
}

// LAYOUT, quantizes and activation_group from argument `at` on.
PyObject* run(QuantizedJob& job, const Array& packed, const Arguments& a, int at) {
    job.layout = layout_at(a, at);
    job.quantizes = a.flag(at + 5);
    job.activation_group = a.integer(at + 6, "activation_group");
    INFERPLANE_REQUIRE(job.inputs == job.layout.inputs, "quantized_linear: x has " + std::to_string(job.inputs) + " inputs; expected " +
            std::to_string(job.layout.inputs));
    INFERPLANE_REQUIRE(job.activation_group >= 0 && job.activation_group % k_per_word == 0, "quantized_linear: activation groups of " +
            std::to_string(job.activation_group) + " inputs; expected a multiple of 4, or 0 for all");
    expect_panels(packed, job.layout, job.outputs);
    return launch([job]() mutable { quantized_linear(job); });
}

PyObject* py_quantized_linear(const Arguments& a) {
    QuantizedJob job{};
    const Array packed = take_linear(job, a);
    return run(job, packed, a, 4);
}

PyObject* py_gated_quantized_linear(const Arguments& a) {
    QuantizedJob job{};
    const Array packed = take_gated(job, a);
    return run(job, packed, a, 5);
}

}  // namespace

PyMethodDef* quantized_methods() {
    static PyMethodDef methods[] = {
        INFERPLANE_METHOD(quantized_bytes, 6, "quantized_bytes(outputs, LAYOUT) -> bytes of the packed weight; LAYOUT: inputs, bits, group, scales, zeros."),
        INFERPLANE_METHOD(pack_quantized, 11, "pack_quantized(packed, outputs, first, codes uint8 [rows, inputs], scales, zeros or None, LAYOUT)."),
        INFERPLANE_METHOD(quantized_linear, 11, "quantized_linear(x, packed, outs, biases, LAYOUT, quantizes, activation_group)."),
        INFERPLANE_METHOD(gated_quantized_linear, 12, "gated_quantized_linear(x, packed, out, biases, kind, LAYOUT, quantizes, activation_group): "
                          "as gated_linear."),
        {nullptr, nullptr, 0, nullptr}};
    return methods;
}

}  // namespace inferplane
