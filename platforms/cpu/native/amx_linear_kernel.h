// bfloat16 linear on the tiles of Intel AMX, for every number of rows.
//
//   up to 112 rows: for a panel of 64 outputs   one stream from memory
//       for a block of 1,024 k                 128 KiB of weights in L2
//         for 16 rows by 64 outputs            the first rows meet weights as they come
//
//   more rows: for a slice of up to 544 rows
//     for a group of panels                    sums [panels, 544, 64] in L2
//       for a block of 256 k                   x of the slice in L2
//         for a panel of the group             32 KiB of weights in L1, the next being fetched
//           for 32 rows by 32 outputs          sums in tiles
//
// A tile product sums its 16 pairs, even and odd k apart, and then adds both to the accumulator; subnormals are zero.
// The tiles of k are the same whatever the rows, so a row has the same bits alone and in any batch.
#pragma once

#include "amx_tiles.h"
#include "linear_kernel.h"

namespace inferplane {

constexpr int64_t few_tile_rows = 112, few_rows_steps = 512;
constexpr int64_t tile_ahead = 1536;  // bytes
constexpr int64_t tile_slice_rows = 544, slice_steps = 128;  // rows at most: slices are as even as tiles of 32 rows let them be
constexpr int64_t group_sums_bytes = 1 << 19;

// What a product reads and adds to: `count` tiles of k, from the same k of x and of the panel.
struct TileSpan {
    const bf16* left;
    int64_t left_stride;  // elements
    const uint32_t* right;
    int64_t count;
    float* sums;  // [rows, 64]
    bool resume;  // add to the sums
};

// Weights that come from memory: each tile of them a little ahead of its use. Evenly, as a burst costs a fifth of the bandwidth,
// and so near, as Intel's own prefetching joins in: half a page ahead costs 3 %.
struct OwnLinesAhead {
    const char* next;

    explicit OwnLinesAhead(const void* right) : next(static_cast<const char*>(right) + tile_ahead) {}
    INFERPLANE_INLINE void fetch() {
#pragma GCC unroll 16
        for (int64_t line = 0; line < tile_words; ++line) _mm_prefetch(next + line * cache_line_bytes, _MM_HINT_T1);
        next += tile_words * cache_line_bytes;
    }
};

// The block that comes next: so many lines before each tile of weights is loaded.
struct NextLinesAhead {
    const char* next;
    int64_t count;

    INFERPLANE_INLINE void fetch() {
        for (int64_t line = 0; line < count; ++line, next += cache_line_bytes) _mm_prefetch(next, _MM_HINT_T1);
    }
};

struct NothingAhead {
    INFERPLANE_INLINE void fetch() {}
};

// At most 16 rows by 64 outputs.
template <class Lines> INFERPLANE_INLINE void multiply_wide(const TileSpan& span, Lines&& ahead) {
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
        _tile_loadd(4, span.left + i * 2 * tile_words, span.left_stride * 2);
        ahead.fetch();
        _tile_loadd(5, right, panel_row_bytes);
        ahead.fetch();
        _tile_loadd(6, right + 16, panel_row_bytes);
        ahead.fetch();
        _tile_loadd(7, right + 32, panel_row_bytes);
        _tile_dpbf16ps(0, 4, 5);
        ahead.fetch();
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
INFERPLANE_INLINE void multiply_square(const TileSpan& span, NextLinesAhead& ahead) {
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
        _tile_loadd(4, span.left + i * 2 * tile_words, span.left_stride * 2);
        ahead.fetch();
        _tile_loadd(6, right, panel_row_bytes);
        ahead.fetch();
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

// Some rows of a slab against tiles of k: `words` of k each, from `step` on.
struct TileRows {
    int64_t first, rows, step, count, words;

    TileSpan span(const LinearJob& job, const uint32_t* panel, int64_t row, float* sums) const {
        const bf16* const left = static_cast<const bf16*>(job.left) + (first + row) * job.left_stride + step * 2;
        return {left, job.left_stride, panel + step * panel_columns, count, sums + row * panel_columns, step > 0};
    }
};

INFERPLANE_INLINE void multiply_few(const LinearJob& job, Tiles& tiles, const uint32_t* panel, const TileRows& of, float* sums) {
    for (int64_t row = 0; row < of.rows; row += tile_height) {
        const TileSpan span = of.span(job, panel, row, sums);
        tiles.shape(of.rows - row < tile_height ? of.rows - row : tile_height, 0, of.words);
        if (row == 0) multiply_wide(span, OwnLinesAhead(span.right));
        else multiply_wide(span, NothingAhead{});
    }
}

INFERPLANE_INLINE void multiply_many(const LinearJob& job, Tiles& tiles, const uint32_t* panel, const TileRows& of, float* sums,
                                     const uint32_t* next_block) {
    const int64_t loads = (of.rows + tile_height - 1) / tile_height * 2 * of.count, lines = of.count * of.words * panel_row_bytes / cache_line_bytes;
    NextLinesAhead ahead{reinterpret_cast<const char*>(next_block), (lines + loads - 1) / loads};
    for (int64_t row = 0; row < of.rows; row += 2 * tile_height) {
        const int64_t most = of.rows - row, upper = most < tile_height ? most : tile_height;
        const int64_t lower = most < 2 * tile_height ? most - upper : tile_height;
        TileSpan span = of.span(job, panel, row, sums);
        tiles.shape(upper, lower, of.words);
        if (lower == 0) {
            multiply_wide(span, ahead);
        } else {
            multiply_square(span, ahead);
            span.right += panel_columns / 2;
            span.sums += panel_columns / 2;
            multiply_square(span, ahead);
        }
    }
}

// Panels first .. first + panels against rows row .. row + rows of the slab: sums [panels][each].
INFERPLANE_INLINE void multiply_group(const LinearJob& job, Tiles& tiles, int64_t first, int64_t panels, int64_t row, int64_t rows,
                                      float* sums, int64_t each) {
    const int64_t steps = linear_steps(job.inputs, job.dtype), whole = steps / tile_words * tile_words;
    const bool few = job.slab <= few_tile_rows;
    const int64_t most = few ? few_rows_steps : slice_steps;
    const auto panel = [&](int64_t i) { return static_cast<const uint32_t*>(job.packed) + (first + i) * steps * panel_columns; };
    for (int64_t step = 0; step < steps;) {
        // Whole tiles of k; at the end the pairs that fill no tile.
        const int64_t block = step == whole ? steps - whole : whole - step < most ? whole - step : most;
        const int64_t words = step == whole ? block : tile_words;
        const TileRows of{row, rows, step, block / words, words};
        for (int64_t i = 0; i < panels; ++i) {
            const uint32_t* const next = i + 1 < panels ? panel(i + 1) + step * panel_columns : panel(0) + (step + block) * panel_columns;
            if (few) multiply_few(job, tiles, panel(i), of, sums + i * each);
            else multiply_many(job, tiles, panel(i), of, sums + i * each, next);
        }
        step += block;
    }
}

template <class Isa> void multiply_amx_panels(const LinearJob& job, int64_t first, int64_t last) {
    static thread_local Scratch scratch;
    const int64_t slices = (job.slab + tile_slice_rows - 1) / tile_slice_rows, together = job.panels_together();
    const int64_t most = round_up((job.slab + slices - 1) / slices, 2 * tile_height), each = most * panel_columns;
    const int64_t fitting = group_sums_bytes / (each * int64_t(sizeof(float))) / together * together;
    const int64_t group = job.slab <= few_tile_rows || fitting < together ? together : fitting;
    float* const sums = scratch.get<float>(group * each);
    Tiles tiles;
    for (int64_t panel = first; panel < last; panel += group) {
        const int64_t panels = last - panel < group ? last - panel : group;
        for (int64_t row = 0; row < job.slab; row += most) {
            const int64_t rows = job.slab - row < most ? job.slab - row : most;
            multiply_group(job, tiles, panel, panels, row, rows, sums, each);
            for (int64_t i = 0; i < panels; i += together) {
                store_sums<Single<Isa, float>, bf16>(job, panel + i, job.first_row + row, rows, sums + i * each, sums + (i + 1) * each);
            }
        }
    }
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
