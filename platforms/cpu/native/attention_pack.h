// Keys and values as the tile kernel wants them.
//
//   pack_keys     K tile -> [key_dim steps][64 keys]          sixteen keys by sixteen steps are transposed at a time
//   pack_values   V tile -> [panels of 64 dims][key steps][64]
//
// Few rows take them straight from the cache instead, with the same sums in the same order:
//
//   score_keys    scores [rows, 64 keys] = q K         sixteen keys by sixteen steps are transposed in registers
//   mix_values    out [rows, 64 dims] += weights V
#pragma once

#include "attention_keys.h"
#include "tile.h"

namespace inferplane {

// Sixteen steps of one key: pairs of dims of 32 bits, or floats; the fewer that its last dims fill, then zeros.
template <class P, class S> INFERPLANE_INLINE Words<typename P::Isa> load_steps(const S* from, int64_t dims) {
    using Isa = typename P::Isa;
    if constexpr (P::k_per_step == 1) {
        return as_words(load_upto<Isa>(from, dims));
    } else {
        alignas(64) S edge[2 * lanes] = {};
        if (dims < 2 * lanes) {
            __builtin_memcpy(edge, from, dims * sizeof(S));
            from = edge;
        }
        if constexpr (sizeof(S) == 1) return P::narrow(load<Isa>(from), load<Isa>(from + lanes));
        else return load_words<Isa>(from);
    }
}

// Sixteen keys by sixteen steps as sixteen steps by sixteen keys.
template <class P, class S>
INFERPLANE_INLINE void turn_keys(const S* const* keys, int64_t d, int64_t left, Words<typename P::Isa> (&steps)[lanes]) {
    constexpr int64_t dims = lanes * P::k_per_step;
    if (left >= dims) {
        for (int i = 0; i < lanes; ++i) steps[i] = load_steps<P>(keys[i] + d, dims);
    } else {
        for (int i = 0; i < lanes; ++i) steps[i] = load_steps<P>(keys[i] + d, left);
    }
    P::Isa::transpose(steps);
}

template <class P, class S>
void pack_keys(const KeyTile<S>& keys, int64_t key_dim, int64_t steps, typename P::Right* packed, Ahead<P>& ahead) {
    using Isa = typename P::Isa;
    for (int64_t key = 0; key < key_tile; key += lanes) {
        for (int64_t step = 0; step < steps; step += lanes) {
            Words<Isa> turned[lanes];
            turn_keys<P>(keys.key + key, step * P::k_per_step, key_dim - step * P::k_per_step, turned);
            for (int i = 0; i < lanes; ++i) store_words(packed + (step + i) * key_tile + key, turned[i]);
            ahead.template fetch<lanes>();
        }
    }
}

// scores [rows, 64] = left right over the first `vectors` of four; part of a panel is one tile, not a tile per vector.
template <class P, int rows = P::Isa::tile_rows>
void multiply_some(int actual_rows, const typename P::Left* left, int64_t left_stride, const typename P::Right* right, int64_t steps,
                   float* scores, int vectors) {
    if constexpr (rows > 0) {
        if (actual_rows != rows) return multiply_some<P, rows - 1>(actual_rows, left, left_stride, right, steps, scores, vectors);
        if constexpr (P::Isa::tile_columns(rows) == 4) {
            if (vectors == 3) return tile<P, rows, 3>(left, left_stride, right, steps, scores, false, {});
            if (vectors == 2) return tile<P, rows, 2>(left, left_stride, right, steps, scores, false, {});
        }
        tile_columns<P, rows>(left, left_stride, right, steps, scores, vectors, false, {});
    }
}

// Steps of a score that are summed up apart: one long chain of float32 sums would lose more than a naive evaluation may.
template <class P> constexpr int64_t score_steps = P::k_per_step == 1 ? 128 : int64_t(1) << 40;

// scores [rows, 64] of the seen keys, rows being at least as many as wanted.
template <class P, int rows, class S>
void score_keys(const typename P::Left* queries, int64_t stride, const KeyTile<S>& keys, int64_t key_dim, int64_t steps, float* scores,
                Ahead<P>& ahead) {
    using Isa = typename P::Isa;
    for (int64_t key = keys.seen.low / lanes * lanes; key < keys.seen.high; key += lanes) {
        Floats<Isa> sums[rows], before[rows];
        for (int r = 0; r < rows; ++r) sums[r] = before[r] = fill<Isa>(0.0f);
        for (int64_t step = 0; step < steps; step += lanes) {
            for (int r = 0; r < rows && step && step % score_steps<P> == 0; ++r) {
                before[r] = before[r] + sums[r];
                sums[r] = fill<Isa>(0.0f);
            }
            Words<Isa> turned[lanes];
            turn_keys<P>(keys.key + key, step * P::k_per_step, key_dim - step * P::k_per_step, turned);
            const typename P::Left* left = queries + step * P::left_per_step;
            const auto take = [&](int i) {
                for (int r = 0; r < rows; ++r) {
                    sums[r] = P::multiply(P::broadcast(left + r * stride + i * P::left_per_step, 0), P::as_vector(turned[i]), sums[r]);
                }
            };
            if (steps - step >= lanes) {
                for (int i = 0; i < lanes; ++i) {
                    take(i);
                    if (i % 4 == 3) ahead.template fetch<4>();
                }
            } else {
                for (int i = 0; i < steps - step; ++i) take(i);
            }
        }
        for (int r = 0; r < rows; ++r) store<Isa>(scores + r * key_tile + key, steps > score_steps<P> ? before[r] + sums[r] : sums[r]);
    }
}

// One step's sixteen dims: values of a key, or those of a pair of keys side by side in 32 bits.
template <class P, class S> INFERPLANE_INLINE Words<typename P::Isa> value_step(const S* even, const S* odd, int64_t dims) {
    using Isa = typename P::Isa;
    const Words<Isa> first = as_words(load_upto<Isa>(even, dims));
    if constexpr (P::k_per_step == 1) return first;
    return shift_right(first, 16) | as_words(load_upto<Isa>(odd, dims));
}

// Values of the keys in `range`, zeros for others up to its end, or to the end of the tile; says whether all are finite.
template <class P, bool whole, class S>
bool pack_values(const KeyTile<S>& keys, KeyRange range, int64_t value_dim, const S* zeros, typename P::Right* packed,
                 Ahead<P>& ahead) {
    using Isa = typename P::Isa;
    constexpr int64_t steps = key_tile / P::k_per_step;
    const int64_t panels = (value_dim + panel_columns - 1) / panel_columns;
    const auto value = [&](int64_t key) { return key >= range.low && key < range.high ? keys.value[key] : zeros; };
    const typename P::Vector nothing = P::zero();
    Floats<Isa> probe[panel_columns / lanes];  // 0 * infinity = NaN
    for (Floats<Isa>& p : probe) p = fill<Isa>(0.0f);
    for (int64_t step = 0; step * P::k_per_step < (whole ? key_tile : range.high); ++step) {
        const S *even = value(step * P::k_per_step), *odd = value(step * P::k_per_step + P::k_per_step - 1);
        for (int64_t panel = 0; panel < panels; ++panel, even += panel_columns, odd += panel_columns) {
            typename P::Right* to = packed + (panel * steps + step) * panel_columns;
            const int64_t dims = value_dim - panel * panel_columns;
            for (int j = 0; j < panel_columns / lanes; ++j) {
                const int64_t left = dims - j * lanes;
                if (left <= 0) break;
                const Words<Isa> made = value_step<P>(even + j * lanes, odd + j * lanes, left);
                store_words(to + j * lanes, made);
                probe[j] = P::multiply(nothing, P::as_vector(made), probe[j]);
            }
        }
        ahead.template fetch<4>();
    }
    return sum(probe[0] + probe[1] + (probe[2] + probe[3])) == 0.0f;
}

// Sixteen dims in each of `columns` vectors, of a key or a pair; pairs of thirty-two dims come interleaved.
template <class P, int columns, class S>
INFERPLANE_INLINE void load_values(const S* even, const S* odd, typename P::Vector (&values)[columns]) {
    using Isa = typename P::Isa;
    if constexpr (P::k_per_step == 1) {
        for (int j = 0; j < columns; ++j) values[j] = load<Isa>(even + j * lanes);
    } else {
        for (int j = 0; j < columns; j += 2) {
            P::interleave(load_steps<P>(even + j * lanes, 2 * lanes), load_steps<P>(odd + j * lanes, 2 * lanes), values[j], values[j + 1]);
        }
    }
}

// Adds to each sum what the tile kernel would over packed values, in the same order of keys.
template <class P, int rows, class S>
void mix_values(const typename P::Left* weights, const KeyTile<S>& keys, int64_t dim, float* out, Ahead<P>& ahead) {
    using Isa = typename P::Isa;
    // Interleaved pairs come two vectors at a time.
    constexpr int k = P::k_per_step, columns = Isa::tile_columns(rows) > k ? Isa::tile_columns(rows) : k;
    for (int first = 0; first < panel_columns; first += columns * lanes, dim += columns * lanes, out += columns * lanes) {
        Floats<Isa> sums[rows][columns];
        for (int r = 0; r < rows; ++r) {
            for (int j = 0; j < columns; ++j) sums[r][j] = load<Isa>(out + r * panel_columns + j * lanes);
        }
        for (int64_t key = 0; key < keys.seen.high; key += k) {
            typename P::Vector values[columns];
            load_values<P>(keys.value[key] + dim, keys.value[key + k - 1] + dim, values);
            for (int r = 0; r < rows; ++r) {
                const typename P::Vector weight = P::broadcast(weights + r * key_tile + key, 0);
                for (int j = 0; j < columns; ++j) sums[r][j] = P::multiply(weight, values[j], sums[r][j]);
            }
            ahead.template fetch<2 * k>();
        }
        for (int r = 0; r < rows; ++r) {
            for (int j = 0; j < columns; ++j) store<Isa>(out + r * panel_columns + j * lanes, sums[r][j]);
        }
    }
}

template <class P, int rows = P::Isa::tile_rows, class S>
INFERPLANE_INLINE void mix_values(int actual_rows, const typename P::Left* weights, const KeyTile<S>& keys, int64_t dim, float* out,
                                  Ahead<P>& ahead) {
    if constexpr (rows > 0) {
        if (actual_rows == rows) mix_values<P, rows>(weights, keys, dim, out, ahead);
        else mix_values<P, rows - 1>(actual_rows, weights, keys, dim, out, ahead);
    }
}

}  // namespace inferplane
