// Norms, rotary embedding, activations and element arithmetic: float32 inside, one rounding at the end.
#pragma once

#include "dtype.h"

namespace inferplane {

enum class Activation { silu, gelu, gelu_tanh, relu, tanh };
enum class Arithmetic { add, multiply };

// out = x / sqrt(mean(x^2) + epsilon) * (weight + offset), over each of `rows` rows of `size`. With a
// residual, x is replaced by x + residual, rounded to `dtype` and written to `sum` first.
// layer_norm: (x - mean) / sqrt(variance + epsilon) * weight + bias.
struct NormJob {
    const void *x, *residual, *weight, *bias;
    void *sum, *out;
    int64_t rows, size;
    float epsilon, offset;
    DType dtype, weight_dtype;
};

// Pair j of the first 2 * half dims turns by table[position] = [cos 0 .. half - 1 | sin 0 .. half - 1].
struct RopeJob {
    const void* x;
    void* out;
    const int32_t* positions;
    const float* table;
    int64_t tokens, heads, head_dim, half;
    bool interleaved;
    DType dtype;
};

// out[i] = activation(gate[i]) * up[i]; `up` may be null.
struct ActivationJob {
    const void *gate, *up;
    void* out;
    int64_t count;
    Activation kind;
    DType dtype;
    bool rough = false;  // results of float32 will be rounded to 16 bits
};

struct ArithmeticJob {
    const void *a, *b;
    void* out;
    int64_t count;
    float factor;
    Arithmetic kind;
    DType dtype;
};

struct GatherJob {
    const void* from;
    void* out;
    const int32_t* rows;
    int64_t count, row_bytes;
};

void rms_norm(const NormJob& job);
void layer_norm(const NormJob& job);
void rope(const RopeJob& job);
void activation(const ActivationJob& job);
void arithmetic(const ArithmeticJob& job);
void scale(const ArithmeticJob& job);
void gather_rows(const GatherJob& job);

}  // namespace inferplane
