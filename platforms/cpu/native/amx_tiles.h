// The registers of Intel AMX: eight tiles of up to 16 rows of 64 bytes, and how a thread shapes them.
//
//   up to 32 rows     sums  0 1      x  4 [16 rows][16 words of k]      weights  6 7 [16 words of k][16 outputs]
//                           2 3         5
//   up to 16 rows     sums  0 1 2 3     4                                        5 6 7 5
//
// A word of 32 bits holds a pair of bfloat16 k, or four k of codes. A packed panel [words of k][64 outputs] holds the tiles of
// weights as they must lie: no repacking.
#pragma once

#include "tile.h"

namespace inferplane {

constexpr int64_t tile_words = 16, tile_height = 16;
constexpr int64_t panel_row_bytes = panel_columns * 4;

// The operand of ldtilecfg, palette 1.
struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// The shapes of this thread's tiles; they are given back at the end, so that nobody else pays to save them.
class Tiles {
  public:
    ~Tiles() { _tile_release(); }

    // `upper` rows of x, `lower` more under them or 0, and `words` of k.
    void shape(int64_t upper, int64_t lower, int64_t words) {
        if (upper == upper_ && lower == lower_ && words == words_) return;
        upper_ = upper;
        lower_ = lower;
        words_ = words;
        TileConfig config{};
        config.palette = 1;
        for (int i = 0; i < 8; ++i) {
            const bool sums = i < 4, weights = i > 5 || (i == 5 && lower == 0);
            config.rows[i] = uint8_t(weights ? words : lower > 0 && (i == 2 || i == 3 || i == 5) ? lower : upper);
            config.row_bytes[i] = uint16_t(sums || weights ? 64 : 4 * words);
        }
        // gcc believes that the instruction reads the first eight bytes only.
        asm volatile("" : : "r"(&config) : "memory");
        _tile_loadconfig(&config);
    }

  private:
    int64_t upper_ = 0, lower_ = 0, words_ = 0;
};

}  // namespace inferplane
