// linear over quantized weights: weight = (code - zero) * scale, packed into panels of 64 outputs.
//
//   panel    for each group of k that share scales:
//     scales [64]                float32, or the 16 bits they came in
//     zeros  [64] uint8          zero + offset, where the scheme has zero points
//     codes  [k / 4][64][4]      int8: uint8 code + 128
//            [k / 4][2][16][4]   int4: code + 8 in nibbles, columns 0-15 (32-47) low, 16-31 (48-63) high
//
// A panel is one contiguous stream, with everything that a step needs: a single row reads it at the speed of memory.
#pragma once

#include "linear.h"

namespace inferplane {

constexpr int64_t k_per_word = 4;  // codes of one output in a 32-bit word
constexpr int64_t slab_of_codes = 258;  // rows of codes staged at once: they stay in the L3 cache, and their sums of one panel in L2
constexpr int64_t piece_of_codes = 512, piece_of_floats = 128;  // most k that are summed before they are scaled
constexpr int64_t block_of_codes = 512 * 8;  // bits of one output: those of a panel stay in the L1 cache
constexpr int64_t half_tile_words = 8;  // where a matrix unit multiplies: its tiles have so many words of k, or twice as many
constexpr int64_t block_of_tiles = 256, block_of_few_rows = 1024, few_rows_of_tiles = 64;  // k of its blocks

struct QuantizedLayout {
    int64_t inputs, group;  // group: k that share a scale; 0: all of them
    int bits;               // 8 or 4
    DType scales;
    bool zeros;

    int64_t steps() const { return round_up(inputs, k_per_word) / k_per_word; }
    int64_t group_steps() const { return group && group < inputs ? group / k_per_word : steps(); }
    int64_t groups() const { return (steps() + group_steps() - 1) / group_steps(); }
    int64_t step_bytes() const { return bits * 32; }
    int64_t header_bytes() const { return 64 * item_bytes(scales) + (zeros ? 64 : 0); }
    int64_t group_bytes() const { return header_bytes() + group_steps() * step_bytes(); }
    int64_t panel_bytes() const { return groups() * header_bytes() + steps() * step_bytes(); }
    int offset() const { return bits == 8 ? 128 : 8; }
};

// A piece of k is summed exactly (in int32) or in order (in float32), and then scaled: it lies in one group of either side.
struct PieceOfRow {
    float scale;            // of the row's codes
    // -(sum of the row's codes), times the offset where there are no zero points: for even and odd columns, or, where codes meet
    // it as bytes, the first for all.
    int32_t correction[2];
};

// Rows of a slab that are multiplied together.
struct RowsOfTile {
    int64_t first, rows;
};

// A slab's rows in tiles as even as they can be, the larger ones first.
struct RowTiles {
    int64_t count, least, larger;

    RowTiles(int64_t rows, int64_t most) : count((rows + most - 1) / most), least(rows / count), larger(rows % count) {}
    RowsOfTile at(int64_t tile) const { return {tile * least + (tile < larger ? tile : larger), least + (tile < larger ? 1 : 0)}; }
    RowsOfTile of_row(int64_t row) const {
        const int64_t in_larger = larger * (least + 1);
        return at(row < in_larger ? row / (least + 1) : larger + (row - in_larger) / least);
    }
};

// packed, outs and biases as in linear; x is quantized to int8 while it is staged, or multiplied as it is.
struct QuantizedJob : LinearJob {
    QuantizedLayout layout;
    bool quantizes;            // x, to int8
    int64_t activation_group;  // k of a row that share a scale; 0: all of them
    int64_t tile_rows = 0;     // at most
    bool as_bytes = false;     // codes of the weight are widened to bytes before they are multiplied
    int64_t piece_steps = 0, block_steps = 0;  // a block: whole pieces that stay in the L1 cache
    PieceOfRow* pieces = nullptr;              // [block][tile][piece][row of the tile]

    int64_t blocks() const { return (layout.steps() + block_steps - 1) / block_steps; }
    int64_t block_bytes() const { return round_up(block_steps * k_per_word, cache_line_bytes); }  // of a row's codes
    int64_t block_pieces() const { return block_steps / piece_steps; }

    RowTiles tiles() const { return {slab, tile_rows}; }
    // Words of k in a matrix unit's tile: pieces are made of whole ones, the last one of a row, too.
    int64_t tile_words() const {
        constexpr int64_t whole = 2 * half_tile_words;
        return piece_steps % whole == 0 && layout.inputs % (whole * k_per_word) == 0 ? whole : half_tile_words;
    }
};

// Rows first_row .. of the packed matrix: codes [rows, inputs], scales and zeros [rows, groups]; zeros may be null.
void pack_quantized(const QuantizedLayout& layout, void* packed, int64_t first_row, const int8_t* codes, const void* scales,
                    const int8_t* zeros, int64_t rows);
void quantized_linear(QuantizedJob& job);

}  // namespace inferplane
