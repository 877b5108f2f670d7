// What the Python entries of linear and of the quantized linear share: x, and the outputs with their biases, checked.
#pragma once

#include "arguments.h"
#include "linear.h"

namespace inferplane {

inline void take_input(LinearJob& job, const Array& x, const Array& packed, const Array& out) {
    job.x = x.expect({-1, -1}).data;
    job.packed = packed.data;
    job.rows = x.shape[0];
    job.inputs = x.shape[1];
    job.dtype = x.dtype();
    job.out_dtype = out.dtype();
    INFERPLANE_REQUIRE(job.out_dtype == job.dtype || job.out_dtype == DType::float32, out.name() + " is " + out.describe() + "; expected " +
            name_of(x.element) + " or float32");
}

inline void add_out(LinearJob& job, const Array& x, const Array& out, const std::optional<Array>& bias) {
    out.expect({job.rows, -1});
    if (bias) bias->expect(x.element).expect({out.last()});
    job.outs.push_back({out.data, out.last(), bias ? bias->data : nullptr});
    job.outputs += out.last();
}

// Arguments 0 .. 3: x, packed, outs, biases.
inline Array take_linear(LinearJob& job, const Arguments& a) {
    const Array x = a.array(0, "x"), packed = a.array(1, "packed");
    const std::vector<Array> outs = a.outputs(2, "outs");
    const std::vector<std::optional<Array>> biases = a.optional_arrays(3, "biases", outs.size());
    INFERPLANE_REQUIRE(!outs.empty(), "linear: no outputs");
    take_input(job, x, packed, outs[0]);
    for (size_t i = 0; i < outs.size(); ++i) add_out(job, x, outs[i].expect(outs[0].element), biases[i]);
    INFERPLANE_REQUIRE(job.inputs > 0 && job.outputs > 0, "linear: inputs and outputs must be at least 1");
    return packed;
}

// Arguments 0 .. 4: x, packed, out, biases of gate and up, kind.
inline Array take_gated(LinearJob& job, const Arguments& a) {
    const Array x = a.array(0, "x"), packed = a.array(1, "packed"), out = a.output(2, "out");
    take_input(job, x, packed, out.expect(x.element));
    for (const std::optional<Array>& bias : a.optional_arrays(3, "biases", 2)) add_out(job, x, out, bias);
    job.gated = true;
    job.activation = named_activation(a.text(4, "kind"));
    job.outputs = 2 * round_up(out.last(), 64);
    INFERPLANE_REQUIRE(job.inputs > 0 && job.outputs > 0, "gated linear: inputs and outputs must be at least 1");
    return packed;
}

}  // namespace inferplane
