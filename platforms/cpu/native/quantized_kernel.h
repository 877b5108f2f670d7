// The quantized linear over rows of int8 codes, for one instruction set: panels meet the rows that were staged.
//
//   for a panel of 64 outputs            sums [slab, 64] float32 in L2
//     for a block of about 512 k         in L1; meanwhile the next block is prefetched into L2
//       for a tile of up to 6 rows       sums in registers, piece by piece
//
// Pieces start at the same k for every row, tile and thread: equal bits for any batch.
#pragma once

#include "quantized_tile.h"

namespace inferplane {

template <class Isa> INFERPLANE_INLINE Words<Isa> load_bytes(const uint8_t* from) {
    typedef uint8_t bytes __attribute__((vector_size(sizeof(typename Isa::u32) / 4)));
    Words<Isa> v;
    for (int i = 0; i < Isa::parts; ++i) {
        bytes narrow;
        __builtin_memcpy(&narrow, from + sizeof narrow * i, sizeof narrow);
        v.part[i] = __builtin_convertvector(narrow, typename Isa::u32);
    }
    return v;
}

template <class Isa> INFERPLANE_INLINE Floats<Isa> load_scales(const char* header, DType type, int column) {
    switch (type) {
        case DType::float32: return load<Isa>(reinterpret_cast<const float*>(header) + lanes * column);
        case DType::bfloat16: return load<Isa>(reinterpret_cast<const bf16*>(header) + lanes * column);
        default: return load<Isa>(reinterpret_cast<const f16*>(header) + lanes * column);
    }
}

// Scales and zero points of a block's pieces, widened once for all rows.
struct BlockScales {
    float scales[piece_of_codes / k_per_word][panel_columns];
    uint32_t zeros[piece_of_codes / k_per_word][panel_columns];
};

// What a column's sum of products is multiplied by: sums of high nibbles are 16 times as large.
template <class Isa> INFERPLANE_INLINE Floats<Isa> scales_of_sums(const QuantizedLayout& layout, const char* header, int column) {
    const Floats<Isa> scales = load_scales<Isa>(header, layout.scales, column);
    return layout.bits == 4 && column % 2 ? scales * fill<Isa>(1.0f / 16) : scales;
}

// Zero points as they enter a column's sum: those of the high nibbles do so 16-fold, and in the low column's sum, too.
template <class Isa> INFERPLANE_INLINE Words<Isa> zeros_of_sums(const QuantizedLayout& layout, const uint8_t* zeros, int column) {
    const Words<Isa> own = load_bytes<Isa>(zeros + lanes * column);
    if (layout.bits == 8) return own;
    const Words<Isa> high = shift_left(load_bytes<Isa>(zeros + lanes * (column | 1)), 4);
    return column % 2 ? high : own + high;
}

template <class Isa> void widen_scales(const QuantizedJob& job, const char* panel, int64_t step, int64_t steps, BlockScales& to) {
    const QuantizedLayout& layout = job.layout;
    for (int64_t piece = 0; piece * job.piece_steps < steps; ++piece) {
        const char* header = panel + (step + piece * job.piece_steps) / layout.group_steps() * layout.group_bytes();
        const uint8_t* zeros = reinterpret_cast<const uint8_t*>(header) + 64 * item_bytes(layout.scales);
        for (int j = 0; j < panel_columns / lanes; ++j) {
            store<Isa>(to.scales[piece] + lanes * j, scales_of_sums<Isa>(layout, header, j));
            if (layout.zeros) store_words(to.zeros[piece] + lanes * j, zeros_of_sums<Isa>(layout, zeros, j));
        }
    }
}

// The only group's weight scales, once per output.
template <class Isa> void scale_sums(const QuantizedLayout& layout, const char* panel, int64_t rows, float* sums) {
    for (int j = 0; j < panel_columns / lanes; ++j) {
        const Floats<Isa> scale = scales_of_sums<Isa>(layout, panel, j);
        for (int64_t row = 0; row < rows; ++row) {
            float* const at = sums + row * panel_columns + lanes * j;
            store<Isa>(at, load<Isa>(at) * scale);
        }
    }
}

template <class Isa, class T>
INFERPLANE_INLINE void store_quantized(const QuantizedJob& job, int64_t panel, int64_t first_row, int64_t rows, const float* sums) {
    if (job.out_dtype == DType::float32) store_slice<Isa, T, float>(job, panel, first_row, rows, sums);
    else store_slice<Isa, T, T>(job, panel, first_row, rows, sums);
}

// A tile's results leave as soon as they are there: the stores of many rows at once would wait for each other.
template <class D, class T> void codes_panel(const QuantizedJob& job, int64_t panel, bool last_panel, float* sums) {
    using Isa = typename D::Isa;
    constexpr int most = D::tile_rows;
    const QuantizedLayout& layout = job.layout;
    const int64_t steps = layout.steps(), group_steps = layout.group_steps(), rows = job.slab, tiles = (rows + most - 1) / most;
    const int64_t least = rows / tiles, larger = rows % tiles;
    const int64_t passes = (tiles - larger) * passes_of<D>(int(least)) + larger * passes_of<D>(int(least + 1));
    const bool scaled = layout.groups() > 1;
    const char* const stream = static_cast<const char*>(job.packed) + panel * layout.panel_bytes();
    const auto codes_at = [&](int64_t step) {
        return stream + step / group_steps * layout.group_bytes() + layout.header_bytes() + step % group_steps * layout.step_bytes();
    };
    BlockScales of_block;
    for (int64_t step = 0; step < steps; step += job.block_steps) {
        const int64_t block = steps - step < job.block_steps ? steps - step : job.block_steps;
        if (scaled || layout.zeros) widen_scales<Isa>(job, stream, step, block, of_block);
        const char* const codes = codes_at(step);
        // The block after this one follows in memory, be it of this panel or of the next.
        const char* const next = step + block < steps ? codes_at(step + block) : stream + layout.panel_bytes();
        const int64_t lines = (next - codes + 63) / 64, fetches = block / prefetch_steps * passes;
        FetchAhead ahead{next, last_panel && step + block == steps ? next : next + lines * 64, int((lines + fetches) / (fetches + 1))};
        for (int64_t t = 0; t < tiles; ++t) {
            const RowsOfTile tile{rows * t / tiles, rows * (t + 1) / tiles - rows * t / tiles};
            const QuantizedTile work{codes, step % group_steps, group_steps, layout.header_bytes(), block, job.piece_steps,
                                     job.codes_at(tile, step), &job.pieces[job.piece_at(tile, step / job.piece_steps)],
                                     scaled ? of_block.scales[0] : nullptr, layout.zeros ? of_block.zeros[0] : nullptr,
                                     sums + tile.first * panel_columns, step > 0};
            if (layout.bits == 8) codes_rows<D, 8>(int(tile.rows), work, ahead);
            else codes_rows<D, 4>(int(tile.rows), work, ahead);
            if (step + block < steps) continue;
            if (!scaled) scale_sums<Isa>(layout, stream, tile.rows, work.sums);
            store_quantized<Isa, T>(job, panel, job.first_row + tile.first, tile.rows, work.sums);
        }
    }
}

template <class D, class T> void multiply_codes(const QuantizedJob& job, int64_t first, int64_t last) {
    static thread_local Scratch scratch;
    float* sums = scratch.get<float>(job.slab * panel_columns);
    for (int64_t panel = first; panel < last; ++panel) codes_panel<D, T>(job, panel, panel + 1 == last, sums);
}

// Twelve independent chains of byte products: more than latency times issue rate.
template <class D> double peak_of_codes(int64_t rounds, float* sink) {
    using Isa = typename D::Isa;
    constexpr int chains = 12 / Isa::parts;
    alignas(64) uint32_t words[lanes] = {};
    const Words<Isa> a = load_words<Isa>(words), b = load_words<Isa>(words);
    Words<Isa> sums[chains];
    for (int i = 0; i < chains; ++i) sums[i] = fill_words<Isa>(i);
    for (int64_t round = 0; round < rounds; ++round) {
        for (int i = 0; i < chains; ++i) sums[i] = D::dot(a, b, sums[i]);
    }
    for (int i = 1; i < chains; ++i) sums[0] = sums[0] + sums[i];
    *sink = float(sum(sums[0]));
    return 2.0 * k_per_word * lanes * chains * double(rounds);
}

}  // namespace inferplane
