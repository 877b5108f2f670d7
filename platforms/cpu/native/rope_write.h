// One pass over the tokens of a step before attention: rotates q and k, and writes k and v into their slots.
#pragma once

#include "attention.h"
#include "rows.h"

namespace inferplane {

// query and key: of the same tokens and positions; key.out is not used. write.k likewise: it is what key turns into.
struct RopeWriteJob {
    RopeJob query, key;
    WriteJob write;
};

void rope_write(const RopeWriteJob& job);

}  // namespace inferplane
