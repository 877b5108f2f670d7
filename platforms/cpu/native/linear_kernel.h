// The two phases of linear for one instruction set: stage rows of x, then multiply panels.
//
//   for a panel of 64 outputs            stays in L2 while all rows pass
//     for a slice of 258 rows            sums [258, 64] in L2
//       for a block of 128 steps         32 KiB in L1; meanwhile the next block is prefetched into L2, or its own stream
//         for a tile of up to 6 rows     registers
#pragma once

#include "linear.h"
#include "tile.h"

namespace inferplane {

template <class P, class T> INFERPLANE_INLINE void stage_row(const T* x, int64_t count, typename P::Left* left) {
    using Isa = typename P::Isa;
    if constexpr (sizeof(typename P::Left) == sizeof(T)) {
        __builtin_memcpy(left, x, count * sizeof(T));
    } else {
        for (int64_t k = 0; k < count; k += lanes) store_upto<Isa>(left + k, load_upto<Isa>(x + k, count - k), count - k);
    }
    // An odd K leaves half a pair: a zero that meets the zero in the packed weights.
    if (count % P::k_per_step) left[count] = typename P::Left{};
}

template <class P, class T> void stage_rows(const LinearJob& job, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
        stage_row<P, T>(static_cast<const T*>(job.x) + (job.first_row + row) * job.inputs, job.inputs,
                        static_cast<typename P::Left*>(job.left) + row * job.left_stride);
    }
}

// Whether P makes thirty-two bfloat16 of two vectors at once.
template <class P, class = void> constexpr bool narrows_pairs = false;
template <class P> constexpr bool narrows_pairs<P, decltype(void(&P::narrow))> = true;

// Inlined, as is the next: paths that share an Isa must not share a function compiled for the better of them.
template <class P, class Out> INFERPLANE_INLINE void store_panel_row(const float* sums, Out* out) {
    using Isa = typename P::Isa;
    if constexpr (narrows_pairs<P> && std::is_same<Out, bf16>::value) {
#pragma GCC unroll 8
        for (int j = 0; j < panel_columns; j += 2 * lanes) store_words(out + j, P::narrow(load<Isa>(sums + j), load<Isa>(sums + j + lanes)));
    } else {
#pragma GCC unroll 8
        for (int j = 0; j < panel_columns; j += lanes) store<Isa>(out + j, load<Isa>(sums + j));
    }
}

template <class P, class T, class Out>
INFERPLANE_INLINE void store_segment(const float* sums, int64_t rows, const T* bias, Out* out, int64_t out_stride, int64_t width) {
    using Isa = typename P::Isa;
    if (width == panel_columns && !bias) {
        for (int64_t row = 0; row < rows; ++row) store_panel_row<P>(sums + row * panel_columns, out + row * out_stride);
        return;
    }
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t j = 0; j < width; j += lanes) {
            Floats<Isa> v = load_upto<Isa>(sums + row * panel_columns + j, width - j);
            if (bias) v = v + load_upto<Isa>(bias + j, width - j);
            store_upto<Isa>(out + row * out_stride + j, v, width - j);
        }
    }
}

// The panel's columns may belong to several outputs, and the last panel's padding to none.
template <class P, class T, class Out>
INFERPLANE_INLINE void store_slice(const LinearJob& job, int64_t panel, int64_t first_row, int64_t rows, const float* sums) {
    const int64_t from = panel * panel_columns, to = from + panel_columns;
    int64_t start = 0;
    for (const LinearOut& out : job.outs) {
        const int64_t stop = start + out.width;
        const int64_t low = from > start ? from : start, high = to < stop ? to : stop;
        if (low < high) {
            store_segment<P, T, Out>(sums + (low - from), rows, out.bias ? static_cast<const T*>(out.bias) + (low - start) : nullptr,
                                     static_cast<Out*>(out.data) + first_row * out.width + (low - start), out.width, high - low);
        }
        start = stop;
    }
}

// sums and ups [rows, 64] of a gate and of the up behind it: both change on the way.
template <class P, class T>
INFERPLANE_INLINE void store_gated(const LinearJob& job, int64_t panel, int64_t first_row, int64_t rows, float* gates, float* ups) {
    const LinearOut &gate = job.outs[0], &up = job.outs[1];
    const int64_t from = panel / 2 * panel_columns, width = gate.width - from < panel_columns ? gate.width - from : panel_columns;
    const T *gate_bias = static_cast<const T*>(gate.bias), *up_bias = static_cast<const T*>(up.bias);
    if (gate_bias) store_segment<P>(gates, rows, gate_bias + from, gates, panel_columns, width);
    if (up_bias) store_segment<P>(ups, rows, up_bias + from, ups, panel_columns, width);
    job.activate({gates, ups, gates, rows * panel_columns, job.activation, DType::float32}, 0, rows * panel_columns);
    // By plain rounding: the tail of an activation is subnormal, which P may read as zero.
    T* const out = static_cast<T*>(gate.data) + first_row * gate.width + from;
    store_segment<Single<typename P::Isa, float>, T>(gates, rows, nullptr, out, gate.width, width);
}

// sums [rows, 64] of a panel; `ups` of the one behind it, where `sums` is a gate's.
template <class P, class T>
INFERPLANE_INLINE void store_sums(const LinearJob& job, int64_t panel, int64_t first_row, int64_t rows, float* sums, float* ups) {
    if (job.gated) return store_gated<P, T>(job, panel, first_row, rows, sums, ups);
    if (job.out_dtype == DType::float32) return store_slice<P, T, float>(job, panel, first_row, rows, sums);
    store_slice<P, T, T>(job, panel, first_row, rows, sums);
}

// Asks for the lines that a panel's results will fill, while the last products are summed.
template <class Isa> INFERPLANE_INLINE void expect_results(const LinearJob& job, int64_t panel, int64_t first_row, int64_t rows) {
    if (job.gated && panel % 2 == 0) return;
    int64_t column = (job.gated ? panel / 2 : panel) * panel_columns;
    const LinearOut* out = job.outs.data();
    for (; column >= out->width; ++out) column -= out->width;
    const int64_t each = item_bytes(job.out_dtype), width = out->width - column < panel_columns ? out->width - column : panel_columns;
    const char* line = static_cast<const char*>(out->data) + ((job.first_row + first_row) * out->width + column) * each;
    for (int64_t row = 0; row < rows; ++row, line += out->width * each) {
        for (int64_t byte = 0; byte < width * each; byte += cache_line_bytes) Isa::prefetch_to_write(line + byte);
    }
}

template <class P>
void multiply_slice(const LinearJob& job, int64_t at, int64_t first, int64_t rows, bool last_panel, float* sums) {
    constexpr int most = P::Isa::tile_rows;
    const int64_t steps = linear_steps(job.inputs, job.dtype), tiles = (rows + most - 1) / most;
    const auto* panel = static_cast<const typename P::Right*>(job.packed) + at * steps * P::right_per_step;
    const auto* left = static_cast<const typename P::Left*>(job.left) + first * job.left_stride;
    const bool once = tiles == 1 && P::Isa::tile_columns(int(rows)) == panel_columns / lanes;  // each weight is read a single time
    for (int64_t step = 0; step < steps; step += block_steps) {
        const int64_t block = steps - step < block_steps ? steps - step : block_steps;
        const auto* right = panel + step * P::right_per_step;
        const int64_t block_lines = block * P::right_per_step * int64_t(sizeof(typename P::Right)) / 64;
        // The block after this one follows in memory, be it of this panel or of the next.
        const bool more = !once && (!last_panel || step + block < steps);
        const char* next = reinterpret_cast<const char*>(right) + block_lines * 64;
        const int64_t lines = (block_lines * prefetch_steps + block * tiles - 1) / (block * tiles);
        const int64_t lines_per_tile = block / prefetch_steps * lines;
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t low = rows * t / tiles, high = rows * (t + 1) / tiles;
            const bool fetch = more && t * lines_per_tile < block_lines;
            if (step + block == steps) expect_results<typename P::Isa>(job, at, first + low, high - low);
            const Prefetch prefetch{next + t * lines_per_tile * 64, fetch ? int(lines) : 0, fetch_of_block(once)};
            multiply_tile<P>(int(high - low), left + low * job.left_stride + step * P::left_per_step, job.left_stride, right,
                             block, sums + low * panel_columns, panel_columns / lanes, step > 0, prefetch);
        }
    }
}

// Slices of `most` rows against panels first .. last - 1: multiply(panel, first row, rows, whether the panel is the last, sums).
template <class P, class T, class Multiply>
INFERPLANE_INLINE void each_slice(const LinearJob& job, int64_t first, int64_t last, int64_t most, const Multiply& multiply) {
    static thread_local Scratch scratch;
    const int64_t together = job.panels_together(), each = most * panel_columns;
    float* sums = scratch.get<float>(together * each);
    for (int64_t panel = first; panel < last; panel += together) {
        for (int64_t row = 0; row < job.slab; row += most) {
            const int64_t rows = job.slab - row < most ? job.slab - row : most;
            for (int64_t i = 0; i < together; ++i) multiply(panel + i, row, rows, panel + i + 1 == last, sums + i * each);
            store_sums<P, T>(job, panel, job.first_row + row, rows, sums, sums + each);
        }
    }
}

// Not a lambda: gcc 12 does not compile those for the instruction set around them.
template <class P> struct PlainSlice {
    const LinearJob& job;

    INFERPLANE_INLINE void operator()(int64_t panel, int64_t row, int64_t rows, bool last, float* sums) const {
        multiply_slice<P>(job, panel, row, rows, last, sums);
    }
};

template <class P, class T> void multiply_panels(const LinearJob& job, int64_t first, int64_t last) {
    each_slice<P, T>(job, first, last, slice_rows, PlainSlice<P>{job});
}

}  // namespace inferplane
