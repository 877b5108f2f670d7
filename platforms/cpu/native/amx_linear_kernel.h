// bfloat16 linear on the tiles of Intel AMX, for every number of rows.
//
// A tile product sums its 16 pairs, even and odd k apart, and then adds both to the accumulator; subnormals are zero.
// The tiles of k are the same whatever the rows, so a row has the same bits alone and in any batch.
#pragma once

#include "amx_tiles.h"
#include "linear_kernel.h"

namespace inferplane {

constexpr int64_t tile_slice_rows = 256;  // a multiple of the tiles' 32 rows

// What a product reads and adds to: `count` tiles of k, from the same k of x and of the panel.
struct TileSpan {
    const bf16* left;
    int64_t left_stride;  // elements
    const uint32_t* right;
    int64_t count;
    float* sums;  // [rows, 64]
    bool resume;  // add to the sums
    bool ahead;   // fetch the block of weights that comes next in memory
};

// After the last block of a panel in memory comes the first of the next.
INFERPLANE_INLINE void fetch_ahead(const uint32_t* right) {
    const char* next = reinterpret_cast<const char*>(right + block_steps * panel_columns);
    for (int64_t line = 0; line < tile_words * panel_row_bytes; line += cache_line_bytes) _mm_prefetch(next + line, _MM_HINT_T1);
}

// At most 16 rows by 64 outputs.
INFERPLANE_INLINE void multiply_wide(const TileSpan& span) {
    if (span.resume) {
        _tile_loadd(0, span.sums, panel_row_bytes);
        _tile_loadd(1, span.sums + 16, panel_row_bytes);
        _tile_loadd(2, span.sums + 32, panel_row_bytes);
        _tile_loadd(3, span.sums + 48, panel_row_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < span.count; ++i) {
        const uint32_t* right = span.right + i * tile_words * panel_columns;
        if (span.ahead) fetch_ahead(right);
        _tile_loadd(4, span.left + i * 2 * tile_words, span.left_stride * 2);
        _tile_loadd(5, right, panel_row_bytes);
        _tile_loadd(6, right + 16, panel_row_bytes);
        _tile_loadd(7, right + 32, panel_row_bytes);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(5, right + 48, panel_row_bytes);
        _tile_dpbf16ps(1, 4, 6);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, span.sums, panel_row_bytes);
    _tile_stored(1, span.sums + 16, panel_row_bytes);
    _tile_stored(2, span.sums + 32, panel_row_bytes);
    _tile_stored(3, span.sums + 48, panel_row_bytes);
}

// 17 to 32 rows by 32 outputs: each loaded tile is used twice.
INFERPLANE_INLINE void multiply_square(const TileSpan& span) {
    const bf16* lower = span.left + tile_height * span.left_stride;
    float* under = span.sums + tile_height * panel_columns;
    if (span.resume) {
        _tile_loadd(0, span.sums, panel_row_bytes);
        _tile_loadd(1, span.sums + 16, panel_row_bytes);
        _tile_loadd(2, under, panel_row_bytes);
        _tile_loadd(3, under + 16, panel_row_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < span.count; ++i) {
        const uint32_t* right = span.right + i * tile_words * panel_columns;
        if (span.ahead) fetch_ahead(right);
        _tile_loadd(4, span.left + i * 2 * tile_words, span.left_stride * 2);
        _tile_loadd(6, right, panel_row_bytes);
        _tile_loadd(7, right + 16, panel_row_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, lower + i * 2 * tile_words, span.left_stride * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, span.sums, panel_row_bytes);
    _tile_stored(1, span.sums + 16, panel_row_bytes);
    _tile_stored(2, under, panel_row_bytes);
    _tile_stored(3, under + 16, panel_row_bytes);
}

// Rows first .. first + rows of the slab against `count` tiles of k of `pairs`, from `step` on.
INFERPLANE_INLINE void multiply_span(const LinearJob& job, Tiles& tiles, const uint32_t* panel, int64_t first, int64_t rows, int64_t step,
                                     int64_t count, int64_t pairs, float* sums) {
    for (int64_t row = 0; row < rows; row += 2 * tile_height) {
        const int64_t most = rows - row, upper = most < tile_height ? most : tile_height;
        const int64_t lower = most < 2 * tile_height ? most - upper : tile_height;
        TileSpan span{static_cast<const bf16*>(job.left) + (first + row) * job.left_stride + step * 2, job.left_stride,
                      panel + step * panel_columns, count, sums + row * panel_columns, step > 0, first + row == 0};
        tiles.shape(upper, lower, pairs);
        if (lower == 0) {
            multiply_wide(span);
        } else {
            multiply_square(span);
            span.right += panel_columns / 2;
            span.sums += panel_columns / 2;
            span.ahead = false;
            multiply_square(span);
        }
    }
}

// Blocks of whole tiles of k that stay in the L1 cache; then the pairs that fill no tile.
INFERPLANE_INLINE void multiply_tiles(const LinearJob& job, Tiles& tiles, const uint32_t* panel, int64_t first, int64_t rows, float* sums) {
    const int64_t steps = linear_steps(job.inputs, job.dtype), whole = steps / tile_words * tile_words;
    for (int64_t step = 0; step < whole; step += block_steps) {
        const int64_t block = whole - step < block_steps ? whole - step : block_steps;
        multiply_span(job, tiles, panel, first, rows, step, block / tile_words, tile_words, sums);
    }
    if (whole < steps) multiply_span(job, tiles, panel, first, rows, whole, 1, steps - whole, sums);
}

struct TileSlice {
    const LinearJob& job;
    Tiles& tiles;

    INFERPLANE_INLINE void operator()(int64_t panel, int64_t row, int64_t rows, bool, float* sums) const {
        const auto* right = static_cast<const uint32_t*>(job.packed) + panel * linear_steps(job.inputs, job.dtype) * panel_columns;
        multiply_tiles(job, tiles, right, row, rows, sums);
    }
};

template <class Isa> void multiply_amx_panels(const LinearJob& job, int64_t first, int64_t last) {
    Tiles tiles;
    each_slice<Single<Isa, float>, bf16>(job, first, last, tile_slice_rows, TileSlice{job, tiles});
}

// Four independent sums: as many as the latency of a product needs.
inline double amx_peak_rate(int64_t rounds, float* sink) {
    Tiles tiles;
    tiles.shape(tile_height, tile_height, tile_words);
    for (int64_t round = 0; round < rounds; ++round) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    *sink = 0;
    return 4 * 2.0 * 16 * 16 * 32 * double(rounds);
}

}  // namespace inferplane
