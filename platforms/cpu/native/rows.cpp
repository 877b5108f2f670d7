// Shares rows and elements out over threads, where there are enough of them.
#include "rows.h"

#include <algorithm>
#include <cstring>

#include "path.h"
#include "pool.h"

namespace inferplane {
namespace {

constexpr int64_t grain = 1 << 14;  // elements that one thread does sooner than two would

int64_t rows_per_grain(int64_t row_elements) { return std::max<int64_t>(1, grain / std::max<int64_t>(1, row_elements)); }

template <class Job> void over_rows(RangeKernel<Job> kernel, const Job& job, int64_t rows, int64_t row_elements) {
    parallel_ranges(rows, rows_per_grain(row_elements), [&](int64_t first, int64_t last) { kernel(job, first, last); });
}

// Ranges start at whole vectors, so that an element meets the same instructions however the work is split.
template <class Job> void over_elements(RangeKernel<Job> kernel, const Job& job) {
    constexpr int64_t vector = 16;
    parallel_ranges((job.count + vector - 1) / vector, grain / vector, [&](int64_t first, int64_t last) {
        kernel(job, first * vector, std::min(last * vector, job.count));
    });
}

bool wide_weight(const NormJob& job) { return job.weight_dtype == DType::float32; }

}  // namespace

void rms_norm(const NormJob& job) {
    over_rows(active_path().rms_norm[int(job.dtype)][wide_weight(job)], job, job.rows, job.size);
}

void layer_norm(const NormJob& job) {
    over_rows(active_path().layer_norm[int(job.dtype)][wide_weight(job)], job, job.rows, job.size);
}

void rope(const RopeJob& job) { over_rows(active_path().rope[int(job.dtype)], job, job.tokens, job.heads * job.head_dim); }

void activation(const ActivationJob& job) { over_elements(active_path().activation[int(job.dtype)], job); }

void arithmetic(const ArithmeticJob& job) { over_elements(active_path().arithmetic[int(job.dtype)], job); }

void scale(const ArithmeticJob& job) { over_elements(active_path().scale[int(job.dtype)], job); }

void gather_rows(const GatherJob& job) {
    parallel_ranges(job.count, rows_per_grain(job.row_bytes / 2), [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            std::memcpy(static_cast<char*>(job.out) + i * job.row_bytes,
                        static_cast<const char*>(job.from) + job.rows[i] * job.row_bytes, job.row_bytes);
        }
    });
}

}  // namespace inferplane
