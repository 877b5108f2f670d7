// What the machine can do at most, with the pool's threads: the yardstick of every benchmark here.
#pragma once

namespace inferplane {

struct Limits {
    double read_bytes_per_second, f32_flops, bf16_flops, int8_ops;
};

Limits measure_limits();

}  // namespace inferplane
