// linear: out [M, N] = x [M, K] W^T (+ bias), over weights packed into panels of 64 outputs.
//
//   packed   [ceil(N / 64)][steps][64]    a step is one k, or a pair of bfloat16 k in one 32-bit word
//
// A panel is one contiguous stream: a single row reads it at the speed of memory.
#pragma once

#include <vector>

#include "dtype.h"
#include "memory.h"
#include "rows.h"

namespace inferplane {

constexpr int64_t slab_rows = 1032;   // rows of x staged at once
constexpr int64_t slice_rows = 258;   // rows whose sums of one panel stay in the L2 cache
constexpr int64_t block_steps = 128;  // steps of a panel that stay in the L1 cache: 32 KiB

// Sums of slice_rows x 64 cost 66 KiB a thread; outputs are consecutive ranges of the columns.
struct LinearOut {
    void* data;
    int64_t width;
    const void* bias;  // [width] or null
};

struct LinearJob {
    const void* x;
    const void* packed;
    int64_t rows, inputs, outputs;
    DType dtype, out_dtype;
    std::vector<LinearOut> outs;
    bool gated = false;  // panels of a gate and of an up take turns, outs are these two, and outs[0] gets activation(gate) * up
    Activation activation = Activation::silu;
    void (*activate)(const ActivationJob& job, int64_t first, int64_t last) = nullptr;  // the path's, of float32
    int64_t first_row = 0, slab = 0;  // the slab at hand
    void* left = nullptr;             // [slab, left_stride], in the tile's own type
    int64_t left_stride = 0;          // elements of that type

    int64_t panels_together() const { return gated ? 2 : 1; }
};

constexpr int64_t k_per_step(DType type) { return type == DType::bfloat16 ? 2 : 1; }
constexpr int64_t step_bytes(DType type) { return type == DType::float16 ? 128 : 256; }
constexpr int64_t linear_steps(int64_t inputs, DType type) { return round_up(inputs, k_per_step(type)) / k_per_step(type); }
constexpr int64_t linear_panels(int64_t outputs) { return round_up(outputs, 64) / 64; }
int64_t packed_bytes(int64_t outputs, int64_t inputs, DType type);

// Rows first_row .. first_row + rows of the packed matrix, from weight [rows, inputs].
void pack_linear(void* packed, int64_t first_row, const void* weight, int64_t rows, int64_t inputs, DType type);
void linear(LinearJob& job);

}  // namespace inferplane
