// Packs weights into panels, and drives linear: a slab of rows is staged, then panels are shared out.
#include "linear.h"

#include <algorithm>

#include "path.h"
#include "pool.h"

namespace inferplane {
namespace {

constexpr int64_t small_stage = 1 << 16;  // elements that one thread stages sooner than two would

// Outputs `first` .. of one panel, from `rows` <= 64 rows of the weight: [rows][inputs] -> [steps][64][k per step].
template <class T> void pack_panel(T* panel, int64_t first, const T* weight, int64_t rows, int64_t inputs) {
    constexpr int64_t per_step = k_per_step(dtype_of<T>());
    constexpr int64_t run = 64;  // k at a time, so that the rows' lines stay in the L1 cache
    const int64_t padded = round_up(inputs, per_step);
    for (int64_t start = 0; start < padded; start += run) {
        const int64_t stop = std::min(start + run, padded);
        for (int64_t row = 0; row < rows; ++row) {
            const T* from = weight + row * inputs;
            for (int64_t k = start; k < stop; ++k) {
                const int64_t at = (k / per_step * 64 + first + row) * per_step + k % per_step;
                panel[at] = k < inputs ? from[k] : T{};
            }
        }
    }
}

template <class T> void pack(void* packed, int64_t first_row, const T* weight, int64_t rows, int64_t inputs) {
    T* const to = static_cast<T*>(packed);
    const int64_t panel_items = linear_steps(inputs, dtype_of<T>()) * 64 * k_per_step(dtype_of<T>());
    const int64_t first_panel = first_row / 64, last_panel = (first_row + rows - 1) / 64;
    parallel(last_panel - first_panel + 1, [&](int64_t i) {
        const int64_t start = (first_panel + i) * 64;
        const int64_t low = std::max(start, first_row), high = std::min(start + 64, first_row + rows);
        pack_panel(to + (first_panel + i) * panel_items, low - start, weight + (low - first_row) * inputs, high - low, inputs);
    });
}

int64_t left_stride(const LinearJob& job) {
    // Off the powers of two, so that the rows of a tile do not fall on the same lines of the cache.
    return round_up(job.inputs, 64) + 64;
}

}  // namespace

int64_t packed_bytes(int64_t outputs, int64_t inputs, DType type) {
    return linear_panels(outputs) * linear_steps(inputs, type) * step_bytes(type);
}

void pack_linear(void* packed, int64_t first_row, const void* weight, int64_t rows, int64_t inputs, DType type) {
    if (rows == 0) return;
    switch (type) {
        case DType::float32: return pack(packed, first_row, static_cast<const float*>(weight), rows, inputs);
        case DType::bfloat16: return pack(packed, first_row, static_cast<const bf16*>(weight), rows, inputs);
        case DType::float16: return pack(packed, first_row, static_cast<const f16*>(weight), rows, inputs);
    }
}

void linear(LinearJob& job) {
    static thread_local Scratch scratch;
    const LinearKernels& kernels = active_path().linear[int(job.dtype)];
    job.activate = active_path().activation[int(DType::float32)];
    job.left_stride = left_stride(job);
    job.left = scratch.get<char>(std::min(job.rows, slab_rows) * job.left_stride * kernels.left_bytes);
    const int64_t together = job.panels_together(), panels = linear_panels(job.outputs) / together;
    for (job.first_row = 0; job.first_row < job.rows; job.first_row += slab_rows) {
        job.slab = std::min(job.rows - job.first_row, slab_rows);
        parallel_ranges(job.slab, std::max<int64_t>(1, small_stage / std::max<int64_t>(1, job.inputs)),
                        [&](int64_t first, int64_t last) { kernels.stage(job, first, last); });
        parallel_ranges(panels, 1, [&](int64_t first, int64_t last) { kernels.multiply(job, first * together, last * together); });
    }
}

}  // namespace inferplane
