// A path is one instruction set's table of kernels; one path is active at a time.
#pragma once

#include <string>

#include "attention.h"
#include "linear.h"
#include "quantized.h"
#include "rows.h"
#include "sample.h"

// Tiles need a permission that Linux gives, and a compiler that knows them: gcc 11.
#if defined(__x86_64__) && defined(__linux__) && __GNUC__ >= 11
#define INFERPLANE_AMX 1
#else
#define INFERPLANE_AMX 0
#endif

namespace inferplane {

template <class Job> using RangeKernel = void (*)(const Job& job, int64_t first, int64_t last);

struct LinearKernels {
    RangeKernel<LinearJob> stage, multiply;
    int64_t left_bytes;   // of one staged element of x
    const char* product;  // what multiplies, in words for a person
};

struct QuantizedKernels {
    RangeKernel<QuantizedJob> stage, multiply;
    int64_t left_bytes;
    int64_t tile_rows;  // of codes; rows of floats are not staged tile by tile
    const char* product;
};

// Arrays are indexed by DType; norms by DType and then by whether the weight is float32.
struct Path {
    const char* name;
    LinearKernels linear[3];
    QuantizedKernels codes[3], floats[3];  // x quantized to int8, or as it is
    QuantizedKernels many_codes[3];        // x quantized to int8, of more rows than a tile of `codes` has; no kernel: `codes` serve
    void (*attend[3][2])(const AttentionJob&, const AttentionTask&);  // [][1]: over int8 codes
    RangeKernel<NormJob> rms_norm[3][2], layer_norm[3][2];
    RangeKernel<RopeJob> rope[3];
    RangeKernel<ActivationJob> activation[3];
    RangeKernel<ArithmeticJob> arithmetic[3], scale[3];
    float (*largest)(const float* logits, int64_t count);
    double (*exponentials)(const float* logits, int64_t count, float peak, float inverse, float* out);  // the sum
    void (*gumbel_scores)(const float* logits, int64_t first, int64_t count, float inverse, uint32_t key_low, uint32_t key_high, float* scores);
    float (*read)(const float* from, int64_t count);
    double (*peak_f32)(int64_t rounds, float* sink);   // floating-point operations done
    double (*peak_bf16)(int64_t rounds, float* sink);
    double (*peak_int8)(int64_t rounds, float* sink);  // integer operations done
};

// The tables, compiled everywhere for which the compiler has the instructions.
const Path& portable_path();
#if defined(__x86_64__)
const Path& avx2_path();
const Path& avx512_path();
const Path& avx512_vnni_path();
const Path& avx512_bf16_path();
#endif
#if INFERPLANE_AMX
const Path& amx_path();
bool amx_usable();  // the processor has the tiles, and the kernel lets this process use them
#endif
#if defined(__aarch64__)
const Path& neon_path();
const Path& neon_bf16_path();
#endif

struct PathEntry {
    const Path& (*table)();
    bool (*supported)();
};

constexpr int path_count =
#if INFERPLANE_AMX
    6;
#elif defined(__x86_64__)
    5;
#elif defined(__aarch64__)
    3;
#else
    1;
#endif

// From the plainest to the best.
extern const PathEntry paths[path_count];

// The best supported path that agrees with the portable one, unless one was selected.
const Path& active_path();
void select_path(const std::string& name);  // "auto" or a name; throws Invalid

// Small random problems against the portable path; an empty string, or what differs.
std::string self_check(const Path& path);

// Runs what follows in this thread on `path`, as the self-check does.
class UsePath {
  public:
    explicit UsePath(const Path& path);
    ~UsePath();

  private:
    const Path* before_;
};

}  // namespace inferplane
