// Threefry-2x32-20 (Salmon et al. 2011), on words or on vectors of words.
#pragma once

#include <cstdint>

namespace inferplane {

template <class Word> struct WordPair { Word x, y; };

// `splat` makes a Word of a uint32; both keys and both counters are Words.
template <class Word, class Splat, class Rotate>
inline __attribute__((always_inline)) WordPair<Word> threefry(WordPair<Word> key, WordPair<Word> counter, Splat splat, Rotate rotate) {
    constexpr int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
    const Word keys[3] = {key.x, key.y, key.x ^ key.y ^ splat(0x1bd11bda)};
    Word x = counter.x + keys[0], y = counter.y + keys[1];
    for (int group = 0; group < 5; ++group) {
        for (int i = 0; i < 4; ++i) {
            x = x + y;
            y = rotate(y, rotations[group % 2][i]) ^ x;
        }
        x = x + keys[(group + 1) % 3];
        y = y + keys[(group + 2) % 3] + splat(uint32_t(group + 1));
    }
    return {x, y};
}

inline __attribute__((always_inline)) WordPair<uint32_t> threefry_words(WordPair<uint32_t> key, WordPair<uint32_t> counter) {
    return threefry(key, counter, [](uint32_t word) { return word; },
                    [](uint32_t word, int bits) { return word << bits | word >> (32 - bits); });
}

}  // namespace inferplane
