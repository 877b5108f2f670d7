// The products of attention on the tiles of Intel AMX: sixteen queries against 64 keys, and their weights against 64 dims of values.
//
// Tiles of k are whole: dims of queries and keys are padded with zeros, and keys that nobody sees weigh 0. One query takes the
// same way as many, so that its bits are the same in decoding and in a prompt.
#pragma once

#include "amx_linear_kernel.h"
#include "attention_kernel.h"

namespace inferplane {

class TileProducts {
  public:
    static constexpr int rows_together = tile_height;
    static constexpr bool whole_tiles = true;

    void scores(int rows, const bf16* left, int64_t stride, const uint32_t* keys, int64_t key_steps, float* scores, float*, int) {
        multiply(rows, {left, stride, keys, (key_steps + tile_words - 1) / tile_words, scores, false});
    }

    void mix(int rows, const bf16* weights, const uint32_t* values, int64_t, float* out, int) {
        multiply(rows, {weights, key_tile, values, key_tile / (2 * tile_words), out, true});
    }

  private:
    INFERPLANE_INLINE void multiply(int rows, const TileSpan& span) {
        // gcc does not know that tiles are loaded from memory.
        asm volatile("" ::: "memory");
        tiles_.shape(rows, 0, tile_words);
        multiply_wide(span, NothingAhead{});
    }

    Tiles tiles_;
};

}  // namespace inferplane
