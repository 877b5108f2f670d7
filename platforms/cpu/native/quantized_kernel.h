// The quantized linear over rows of int8 codes, for one instruction set: panels meet the rows that were staged.
//
//   for a panel of 64 outputs            sums [slab, 64] float32 in L2
//     for a block of about 512 k         in L1; meanwhile the next block is prefetched into L2, or its own stream
//       for a tile of up to 6 rows       sums in registers, piece by piece
//
// Pieces start at the same k for every row, tile and thread: equal bits for any batch.
#pragma once

#include "quantized_tile.h"

namespace inferplane {

// The only group's weight scales, once per output.
template <class Isa> INFERPLANE_INLINE void scale_sums(const QuantizedLayout& layout, const char* panel, int64_t rows, float* sums) {
    for (int j = 0; j < panel_columns / lanes; ++j) {
        const Floats<Isa> scale = scales_of_sums<Isa>(layout, panel, j);
        for (int64_t row = 0; row < rows; ++row) {
            float* const at = sums + row * panel_columns + lanes * j;
            store<Isa>(at, load<Isa>(at) * scale);
        }
    }
}

// A tile's results leave as soon as they are there: the stores of many rows at once would wait for each other. Sums of a gate
// stay, and leave with those of the up behind it, which finds them in `gates`.
template <class D, class T> void codes_panel(const QuantizedJob& job, int64_t panel, bool last_panel, float* sums, float* gates) {
    using Isa = typename D::Isa;
    const QuantizedLayout& layout = job.layout;
    const RowTiles tiles = job.tiles();
    const int64_t steps = layout.steps(), group_steps = layout.group_steps(), header_bytes = layout.header_bytes();
    const int64_t block_bytes = job.block_bytes(), block_pieces = job.block_pieces();
    const int64_t passes = (tiles.count - tiles.larger) * passes_of<D>(int(tiles.least)) + tiles.larger * passes_of<D>(int(tiles.least + 1));
    const bool scaled = layout.groups() > 1;
    const char* const stream = static_cast<const char*>(job.packed) + panel * layout.panel_bytes();
    const auto codes_at = [&](int64_t step) {
        return stream + step / group_steps * layout.group_bytes() + header_bytes + step % group_steps * layout.step_bytes();
    };
    const int8_t* left = static_cast<const int8_t*>(job.left);
    const PieceOfRow* pieces = job.pieces;
    for (int64_t step = 0; step < steps; step += job.block_steps, left += job.slab * block_bytes, pieces += job.slab * block_pieces) {
        const int64_t block = steps - step < job.block_steps ? steps - step : job.block_steps;
        const char* const codes = codes_at(step);
        // The block after this one follows in memory, be it of this panel or of the next.
        const char* const next = step + block < steps ? codes_at(step + block) : stream + layout.panel_bytes();
        const int64_t lines = (next - codes + 63) / 64, fetches = block / prefetch_steps * passes;
        FetchAhead ahead{next, last_panel && step + block == steps ? next : next + lines * 64, int((lines + fetches) / (fetches + 1)), fetch_of_block(passes == 1)};
        const int64_t in_group = step % group_steps;
        for (int64_t t = 0; t < tiles.count; ++t) {
            const RowsOfTile tile = tiles.at(t);
            if (step + block == steps) expect_results<Isa>(job, panel, tile.first, tile.rows);
            const QuantizedTile work{&layout, scaled, codes, in_group, group_steps, header_bytes, block, job.piece_steps, left + tile.first * block_bytes,
                                     pieces + tile.first * block_pieces, sums + tile.first * panel_columns, step > 0};
            if (layout.bits == 8) codes_rows<D, 8>(int(tile.rows), work, ahead);
            else codes_rows<D, 4>(int(tile.rows), work, ahead);
            if (step + block < steps) continue;
            if (!scaled) scale_sums<Isa>(layout, stream, tile.rows, work.sums);
            if (gates) store_sums<D, T>(job, panel, job.first_row + tile.first, tile.rows, gates + tile.first * panel_columns, work.sums);
        }
    }
}

template <class D, class T> void multiply_codes(const QuantizedJob& job, int64_t first, int64_t last) {
    static thread_local Scratch scratch;
    const int64_t together = job.panels_together(), each = job.slab * panel_columns;
    float* sums = scratch.get<float>(together * each);
    for (int64_t panel = first; panel < last; ++panel) {
        const int64_t place = panel % together;
        codes_panel<D, T>(job, panel, panel + 1 == last, sums + place * each, place + 1 == together ? sums : nullptr);
    }
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
