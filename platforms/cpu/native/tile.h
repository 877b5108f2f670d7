// The inner product of every matrix kernel here, linear and attention alike.
//
//   sums[r][j] += sum over k of left[r][k] * right[k][j]          j in a panel of 64 columns
//
//              right: one step is 64 columns (of one k, or of a pair of k)
//              +----+----+----+----+
//              |    |    |    |    |   columns vectors of 16
//   left r 0   [acc][acc][acc][acc]
//   broadcast  ...
//        r 5   [acc][acc][acc][acc]    rows x columns accumulators stay in registers
//
// Each output has one accumulator and takes k in order, whatever the tile: equal bits for any batch.
#pragma once

#include "memory.h"
#include "simd.h"

namespace inferplane {

constexpr int panel_columns = 64;
constexpr int prefetch_steps = 4;  // the loop's unrolling, and how often it prefetches

// What is fetched while a block is computed: lines of the block that comes next, a few at a time; or, where nothing reads the
// block a second time, each step of its own so far ahead, near the core or past the caches that others need. At the speed of
// memory that must be even: a burst of lines costs 2 % of the bandwidth.
enum class Fetch { next_block, own_near, own_past };

template <Fetch fetch> constexpr int64_t stream_ahead = fetch == Fetch::own_past ? 6144 : 2048;  // bytes

INFERPLANE_INLINE Fetch fetch_of_block(bool read_once) {
    if (!read_once) return Fetch::next_block;
    return fetches_past_caches ? Fetch::own_past : Fetch::own_near;
}

struct Prefetch {
    const char* next = nullptr;
    int lines = 0;  // per prefetch_steps
    Fetch fetch = Fetch::next_block;
};

template <class Isa, Fetch fetch, int64_t bytes> INFERPLANE_INLINE void fetch_stream(const void* step) {
    const char* const line = static_cast<const char*>(step) + stream_ahead<fetch>;
#pragma GCC unroll 8
    for (int64_t at = 0; at < bytes; at += cache_line_bytes) {
        if constexpr (fetch == Fetch::own_past) Isa::prefetch_once(line + at);
        if constexpr (fetch == Fetch::own_near) Isa::prefetch(line + at);
    }
}

// One k per step; weights W are widened to float32 as they are loaded.
template <class Isa_, class W> struct Single {
    using Isa = Isa_;
    using Left = float;
    using Right = W;
    using Vector = Floats<Isa>;
    static constexpr int k_per_step = 1, passes = 1;
    static constexpr int left_per_step = 1, right_per_step = panel_columns;

    static INFERPLANE_INLINE Vector zero() { return fill<Isa>(0.0f); }
    static INFERPLANE_INLINE Vector as_vector(Words<Isa> words) { return as_floats(words); }
    static INFERPLANE_INLINE Vector broadcast(const Left* left, int) { return fill<Isa>(*left); }
    static INFERPLANE_INLINE Vector load_right(const Right* right, int) { return load<Isa>(right); }
    static INFERPLANE_INLINE Floats<Isa> multiply(Vector left, Vector right, Floats<Isa> sum) {
        return multiply_add(left, right, sum);
    }
    static INFERPLANE_INLINE void store_left(Left* to, Floats<Isa> v) { store<Isa>(to, v); }
};

// A pair of bfloat16 k per step and column, without a bfloat16 instruction: first the even k, then the odd.
template <class Isa_> struct PairWide {
    using Isa = Isa_;
    using Left = float;
    using Right = uint32_t;
    using Vector = Floats<Isa>;
    static constexpr int k_per_step = 2, passes = 2;
    static constexpr int left_per_step = 2, right_per_step = panel_columns;

    static INFERPLANE_INLINE Vector broadcast(const Left* left, int pass) { return fill<Isa>(left[pass]); }
    static INFERPLANE_INLINE Vector load_right(const Right* right, int pass) {
        const Words<Isa> pair = load_words<Isa>(right);
        return as_floats(pass == 0 ? shift_left(pair, 16) : pair & fill_words<Isa>(0xffff0000));
    }
    static INFERPLANE_INLINE Floats<Isa> multiply(Vector left, Vector right, Floats<Isa> sum) {
        return multiply_add(left, right, sum);
    }
};

template <class P, int rows, int columns>
INFERPLANE_INLINE void tile_step(const typename P::Left* left, int64_t left_stride, const typename P::Right* right,
                                 Floats<typename P::Isa> (&sums)[rows][columns]) {
#pragma GCC unroll 8
    for (int pass = 0; pass < P::passes; ++pass) {
        typename P::Vector b[columns];
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) b[j] = P::load_right(right + lanes * j, pass);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            const typename P::Vector a = P::broadcast(left + r * left_stride, pass);
#pragma GCC unroll 8
            for (int j = 0; j < columns; ++j) sums[r][j] = P::multiply(a, b[j], sums[r][j]);
        }
    }
}

template <class P, int rows, int columns>
__attribute__((noinline)) void tile(const typename P::Left* left, int64_t left_stride, const typename P::Right* right,
                                    int64_t steps, float* out, bool resume, Prefetch prefetch) {
    using Isa = typename P::Isa;
    Floats<Isa> sums[rows][columns];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) {
            sums[r][j] = resume ? load<Isa>(out + r * panel_columns + lanes * j) : fill<Isa>(0.0f);
        }
    }
    int64_t step = 0;
    for (; step + prefetch_steps <= steps; step += prefetch_steps) {
        for (int line = 0; line < prefetch.lines; ++line, prefetch.next += 64) Isa::prefetch(prefetch.next);
#pragma GCC unroll 8
        for (int i = 0; i < prefetch_steps; ++i) {
            constexpr int64_t step_bytes = P::right_per_step * sizeof(typename P::Right);
            if (prefetch.fetch == Fetch::own_past) fetch_stream<Isa, Fetch::own_past, step_bytes>(right);
            if (prefetch.fetch == Fetch::own_near) fetch_stream<Isa, Fetch::own_near, step_bytes>(right);
            tile_step<P, rows, columns>(left, left_stride, right, sums);
            left += P::left_per_step;
            right += P::right_per_step;
        }
    }
    for (; step < steps; ++step) {
        tile_step<P, rows, columns>(left, left_stride, right, sums);
        left += P::left_per_step;
        right += P::right_per_step;
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) store<Isa>(out + r * panel_columns + lanes * j, sums[r][j]);
    }
}

// `vectors` of 16 columns: whole tiles, then single vectors at the panel's right edge.
template <class P, int rows>
INFERPLANE_INLINE void tile_columns(const typename P::Left* left, int64_t left_stride, const typename P::Right* right,
                                    int64_t steps, float* out, int vectors, bool resume, Prefetch prefetch) {
    constexpr int columns = P::Isa::tile_columns(rows);
    int j = 0;
    for (; j + columns <= vectors; j += columns) {
        tile<P, rows, columns>(left, left_stride, right + lanes * j, steps, out + lanes * j, resume, prefetch);
        prefetch = {};
    }
    for (; j < vectors; ++j) {
        tile<P, rows, 1>(left, left_stride, right + lanes * j, steps, out + lanes * j, resume, prefetch);
        prefetch = {};
    }
}

// out [rows, 64] (+)= left [rows, steps] right [steps, 64], for rows <= Isa::tile_rows.
template <class P, int rows = P::Isa::tile_rows>
void multiply_tile(int actual_rows, const typename P::Left* left, int64_t left_stride, const typename P::Right* right,
                   int64_t steps, float* out, int vectors, bool resume, Prefetch prefetch = {}) {
    if constexpr (rows > 0) {
        if (actual_rows == rows) {
            tile_columns<P, rows>(left, left_stride, right, steps, out, vectors, resume, prefetch);
        } else {
            multiply_tile<P, rows - 1>(actual_rows, left, left_stride, right, steps, out, vectors, resume, prefetch);
        }
    }
}

}  // namespace inferplane
