// The quantized linear over rows of int8 codes on the tiles of Intel AMX, for more rows than a tile of vectors has.
//
//   for a panel of 64 outputs              sums [slab, 64] float32 in L2
//     for a block of k                     codes in L1, or, of few rows, in L2; those of int4 as bytes
//       for 32 rows by 32 outputs          or 16 rows by 64: the last ones, or few
//         for each piece of k              int32 products, to L1; then those of the piece before are scaled
//
// Sums of integers are exact, and are scaled operation by operation as codes_tile does it: a row has the same bits on either,
// where no sixteenth of a scale is subnormal.
#pragma once

#include "amx_tiles.h"
#include "quantized_kernel.h"

namespace inferplane {

// A piece of a panel: its codes [steps][64][4], a byte each, and its group's scales and zero points.
struct PieceOfPanel {
    const char *codes, *header;
    int64_t steps;
};

struct CodesMemory {
    alignas(64) int32_t products[2][2 * tile_height * 2 * lanes];
    alignas(64) char bytes[block_of_few_rows * panel_columns];
    PieceOfPanel pieces[block_of_few_rows / (half_tile_words * k_per_word)];
};

// What was staged of a slab's rows for a block of k.
struct BlockOfRows {
    const int8_t* codes;
    const PieceOfRow* pieces;
    bool resume;  // add to the sums of the blocks before
};

// Products of a piece that wait for their scales: [rows, 16 * vectors], of a tile of rows and of the one below, or of none.
struct Waiting {
    const int32_t* values;
    float* sums;  // [rows, 64], from their column on
    const PieceOfRow* pieces[2];
    int64_t rows[2];
    const char* header;
    int column;
    bool resume;
};

template <class D> class CodesOnTiles {
  public:
    CodesOnTiles(const QuantizedJob& job, CodesMemory& memory)
        : job_(job), memory_(memory), bytes_(job.layout), rows_(job.tiles()), few_(job.slab <= few_rows_of_tiles),
          tile_steps_(job.tile_words()) {
        bytes_.bits = 8;
    }

    // As codes_panel.
    template <class T> void multiply_panel(int64_t panel, bool last_panel, float* sums, float* gates) {
        const QuantizedLayout& layout = job_.layout;
        const char* const stream = static_cast<const char*>(job_.packed) + panel * layout.panel_bytes();
        BlockOfRows block{static_cast<const int8_t*>(job_.left), job_.pieces, false};
        for (int64_t step = 0; step < layout.steps(); step += job_.block_steps) {
            const bool last_block = step + job_.block_steps >= layout.steps();
            take_block(stream, step, last_panel && last_block);
            for (int64_t t = 0; t < rows_.count; t += few_ ? 1 : 2) {
                const RowsOfTile upper = rows_.at(t);
                const RowsOfTile lower = !few_ && t + 1 < rows_.count ? rows_.at(t + 1) : RowsOfTile{upper.first + upper.rows, 0};
                streams_ = few_ && t == 0 && layout.bits == 8;
                if (last_block) expect_results<Isa>(job_, panel, upper.first, upper.rows + lower.rows);
                multiply_rows(block, upper, lower, sums + upper.first * panel_columns);
                if (last_block) finish_rows<T>(panel, stream, upper.first, upper.rows + lower.rows, sums, gates);
            }
            block = {block.codes + job_.slab * job_.block_bytes(), block.pieces + job_.slab * job_.block_pieces(), true};
        }
    }

  private:
    using Isa = typename D::Isa;

    void take_block(const char* stream, int64_t start, bool last);
    void multiply_rows(const BlockOfRows& block, RowsOfTile upper, RowsOfTile lower, float* sums);
    template <int vectors, bool zeros> void multiply_columns(const BlockOfRows& block, RowsOfTile upper, RowsOfTile lower, float* sums);
    template <int vectors, bool zeros> void scale_waiting();
    template <int vectors, bool zeros> void scale(const Waiting& of, int tile, const int32_t* values, float* sums) const;
    void fetch(const char* right, int quarter);

    template <class T>
    INFERPLANE_INLINE void finish_rows(int64_t panel, const char* stream, int64_t first, int64_t rows, float* sums, float* gates) {
        float* const own = sums + first * panel_columns;
        if (job_.layout.groups() == 1) scale_sums<Isa>(job_.layout, stream, rows, own);
        if (gates) store_sums<D, T>(job_, panel, job_.first_row + first, rows, gates + first * panel_columns, own);
    }

    const QuantizedJob& job_;
    CodesMemory& memory_;
    QuantizedLayout bytes_;  // of codes as bytes
    const RowTiles rows_;
    const bool few_;
    const int64_t tile_steps_;
    Tiles tiles_;
    Waiting waiting_{};
    int turn_ = 0, pieces_ = 0;
    bool streams_ = false;                          // codes come from memory while these rows meet them: each tile a little ahead
    const char *next_ = nullptr, *stop_ = nullptr;  // or the block that comes next in memory is fetched, a few lines at a time
    int lines_ = 0;
};

// Codes of four bits as bytes; they come from memory a little ahead.
template <class Isa> INFERPLANE_INLINE void widen_nibbles(const char* codes, int64_t steps, char* to) {
    const Words<Isa> nibbles = fill_words<Isa>(0x0f0f0f0f);
    for (int64_t pair = 0; pair < 2 * steps; ++pair, codes += 64, to += 128) {
        Isa::prefetch(codes + stream_ahead<Fetch::own_near>);
        const Words<Isa> both = load_words<Isa>(codes);
        store_words(to, both & nibbles);
        store_words(to + 64, shift_right(both, 4) & nibbles);
    }
}

// Takes the codes of the block at step `start`.
template <class D> void CodesOnTiles<D>::take_block(const char* stream, int64_t start, bool last) {
    const QuantizedLayout& layout = job_.layout;
    const int64_t group_steps = layout.group_steps(), left = layout.steps() - start;
    const int64_t stop = start + (left < job_.block_steps ? left : job_.block_steps);
    const char *first = nullptr, *end = nullptr;
    char* to = memory_.bytes;
    pieces_ = 0;
    for (int64_t step = start; step < stop; ++pieces_) {
        const int64_t steps = stop - step < job_.piece_steps ? stop - step : job_.piece_steps;
        const char* const header = stream + step / group_steps * layout.group_bytes();
        const char* const codes = header + layout.header_bytes() + step % group_steps * layout.step_bytes();
        memory_.pieces[pieces_] = {layout.bits == 8 ? codes : to, header, steps};
        if (layout.bits == 4) widen_nibbles<Isa>(codes, steps, to);
        if (!first) first = codes;
        end = codes + steps * layout.step_bytes();
        to += steps * panel_row_bytes;
        step += steps;
    }
    // gcc does not know that tiles are loaded from memory.
    asm volatile("" ::: "memory");
    const int64_t loads = (rows_.count + 1) / 2 * 4 * ((stop - start) / tile_steps_), lines = (end - first) / cache_line_bytes;
    next_ = end;
    stop_ = last || few_ || layout.bits == 4 ? end : end + (end - first);
    lines_ = int((lines + loads - 1) / loads);
}

// Before a tile of a step's codes is loaded, the first or another one of four.
template <class D> INFERPLANE_INLINE void CodesOnTiles<D>::fetch(const char* right, int quarter) {
    if (streams_) {
        const char* const own = right + stream_ahead<Fetch::own_near> + quarter * tile_steps_ * cache_line_bytes;
        for (int64_t line = 0; line < tile_steps_; ++line) Isa::prefetch(own + line * cache_line_bytes);
    } else {
        for (int line = 0; line < lines_ && next_ < stop_; ++line, next_ += cache_line_bytes) Isa::prefetch(next_);
    }
}

// A block by one or two tiles of rows.
template <class D> void CodesOnTiles<D>::multiply_rows(const BlockOfRows& block, RowsOfTile upper, RowsOfTile lower, float* sums) {
    tiles_.shape(upper.rows, lower.rows, tile_steps_);
    const bool zeros = job_.layout.zeros;
    if (lower.rows) {
        if (zeros) multiply_columns<2, true>(block, upper, lower, sums);
        else multiply_columns<2, false>(block, upper, lower, sums);
    } else {
        if (zeros) multiply_columns<4, true>(block, upper, lower, sums);
        else multiply_columns<4, false>(block, upper, lower, sums);
    }
}

// `vectors` columns at a time: sums 0 1 of the upper and 2 3 of the lower rows, or 0 1 2 3 of the upper ones.
template <class D>
template <int vectors, bool zeros>
void CodesOnTiles<D>::multiply_columns(const BlockOfRows& block, RowsOfTile upper, RowsOfTile lower, float* sums) {
    const int8_t* const above = block.codes + upper.first * job_.block_bytes();
    const int8_t* const below = block.codes + lower.first * job_.block_bytes();
    const PieceOfRow* const pieces[2] = {block.pieces + upper.first * job_.block_pieces(), block.pieces + lower.first * job_.block_pieces()};
    for (int column = 0; column < panel_columns / lanes; column += vectors) {
        uint64_t k = 0;
        for (int p = 0; p < pieces_; ++p) {
            const PieceOfPanel& piece = memory_.pieces[p];
            const char* right = piece.codes + column * cache_line_bytes;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t i = 0; i < piece.steps; i += tile_steps_, k += tile_steps_ * k_per_word, right += tile_steps_ * panel_row_bytes) {
                const uint64_t line = k / cache_line_bytes * cache_line_bytes, in_line = k % cache_line_bytes;
                _tile_loadd(4, above + line * upper.rows + in_line, cache_line_bytes);
                if constexpr (vectors == 2) {
                    fetch(right, 0);
                    _tile_loadd(6, right, panel_row_bytes);
                    fetch(right, 1);
                    _tile_loadd(7, right + 64, panel_row_bytes);
                    _tile_dpbsud(0, 4, 6);
                    _tile_dpbsud(1, 4, 7);
                    _tile_loadd(5, below + line * lower.rows + in_line, cache_line_bytes);
                    _tile_dpbsud(2, 5, 6);
                    _tile_dpbsud(3, 5, 7);
                } else {
                    fetch(right, 0);
                    _tile_loadd(5, right, panel_row_bytes);
                    fetch(right, 1);
                    _tile_loadd(6, right + 64, panel_row_bytes);
                    fetch(right, 2);
                    _tile_loadd(7, right + 128, panel_row_bytes);
                    _tile_dpbsud(0, 4, 5);
                    fetch(right, 3);
                    _tile_loadd(5, right + 192, panel_row_bytes);
                    _tile_dpbsud(1, 4, 6);
                    _tile_dpbsud(2, 4, 7);
                    _tile_dpbsud(3, 4, 5);
                }
            }
            scale_waiting<vectors, zeros>();
            int32_t* const values = memory_.products[turn_];
            int32_t* const third = vectors == 4 ? values + 2 * lanes : values + upper.rows * vectors * lanes;
            turn_ = 1 - turn_;
            _tile_stored(0, values, vectors * cache_line_bytes);
            _tile_stored(1, values + lanes, vectors * cache_line_bytes);
            _tile_stored(2, third, vectors * cache_line_bytes);
            _tile_stored(3, third + lanes, vectors * cache_line_bytes);
            waiting_ = {values, sums + column * lanes, {pieces[0] + p * upper.rows, pieces[1] + p * lower.rows}, {upper.rows, lower.rows},
                        piece.header, column, block.resume || p > 0};
        }
    }
    scale_waiting<vectors, zeros>();
}

template <class D> template <int vectors, bool zeros> INFERPLANE_INLINE void CodesOnTiles<D>::scale_waiting() {
    const Waiting of = waiting_;
    scale<vectors, zeros>(of, 0, of.values, of.sums);
    if (vectors == 2) scale<vectors, zeros>(of, 1, of.values + of.rows[0] * vectors * lanes, of.sums + of.rows[0] * panel_columns);
    waiting_.rows[0] = waiting_.rows[1] = 0;
}

template <class D>
template <int vectors, bool zeros>
INFERPLANE_INLINE void CodesOnTiles<D>::scale(const Waiting& of, int tile, const int32_t* values, float* sums) const {
    if (of.rows[tile] == 0) return;
    // Without groups, scales come at the end: those of high nibbles are sixteenths, as codes_tile's sums are 16 times as large.
    const bool scaled = job_.layout.groups() > 1, sixteenths = job_.layout.bits == 4;
    Floats<Isa> scales[vectors];
    Words<Isa> zero[vectors];
    for (int j = 0; j < vectors; ++j) {
        scales[j] = scaled ? scales_of_sums<Isa>(bytes_, of.header, of.column + j) : fill<Isa>(sixteenths && j % 2 ? 16.0f : 1.0f);
        if (zeros) zero[j] = zeros_of_sums<Isa>(bytes_, of.header, of.column + j);
    }
    const PieceOfRow* piece = of.pieces[tile];
    for (int64_t row = 0; row < of.rows[tile]; ++row, ++piece, values += vectors * lanes, sums += panel_columns) {
        const Words<Isa> correction = fill_words<Isa>(uint32_t(piece->correction[0]));
        const Floats<Isa> of_row = fill<Isa>(piece->scale);
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) {
            const Words<Isa> exact = load_words<Isa>(values + j * lanes) + (zeros ? correction * zero[j] : correction);
            const Floats<Isa> before = of.resume ? load<Isa>(sums + j * lanes) : fill<Isa>(0.0f);
            store<Isa>(sums + j * lanes, multiply_add(from_integers(exact) * scales[j], of_row, before));
        }
    }
}

template <class D, class T> void multiply_codes_on_tiles(const QuantizedJob& job, int64_t first, int64_t last) {
    static thread_local Scratch scratch, memory;
    const int64_t together = job.panels_together(), each = job.slab * panel_columns;
    float* sums = scratch.get<float>(together * each);
    CodesOnTiles<D> tiles(job, *memory.get<CodesMemory>(1));
    for (int64_t panel = first; panel < last; ++panel) {
        const int64_t place = panel % together;
        tiles.template multiply_panel<T>(panel, panel + 1 == last, sums + place * each, place + 1 == together ? sums : nullptr);
    }
}

// Four independent sums: as many as the latency of a product needs.
inline double codes_tiles_peak_rate(int64_t rounds, float* sink) {
    Tiles tiles;
    tiles.shape(tile_height, tile_height, tile_words);
    for (int64_t round = 0; round < rounds; ++round) {
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
    *sink = 0;
    return 4 * 2.0 * 16 * 16 * 64 * double(rounds);
}

}  // namespace inferplane
