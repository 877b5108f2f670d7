"""Planted bugs in the sources of Triton's products: tails, splits and biases, codes, scales and zero points, experts."""
from __future__ import annotations

from .source import SourceBug

FOLDER = "platforms/families/triton"
OURS = "our own"


def _linear(name: str, old: str, new: str) -> SourceBug:
    return SourceBug(f"linear.triton_{name}", OURS, f"{FOLDER}/linear_kernel.py", old, new)


def _quantized(name: str, old: str, new: str, file: str = "quantized_kernel") -> SourceBug:
    return SourceBug(f"quantized.triton_{name}", OURS, f"{FOLDER}/{file}.py", old, new)


def _fnuz(name: str, file: str, old: str, new: str) -> SourceBug:
    """Of AMD's own float8."""
    return SourceBug(f"quantized.triton_{name}", OURS, f"{FOLDER}/{file}.py", old, new, ("linear.fp8",), "rocm:interpreted")


def _experts(name: str, old: str, new: str) -> SourceBug:
    return SourceBug(f"moe.triton_{name}", OURS, f"{FOLDER}/experts_kernel.py", old, new)


SOURCE_BUGS: tuple[SourceBug, ...] = (
    # Floats: tails, splits, tiles.
    _linear("takes_an_input_too_many", """            inside = lane < inputs - start
            weights = tl.load(weight_at + start, mask=inside[None, :], other=0.0)
            values = tl.load(x_at""", """            inside = lane <= inputs - start
            weights = tl.load(weight_at + start, mask=inside[None, :], other=0.0)
            values = tl.load(x_at"""),
    _linear("a_split_ends_too_late", "begin + steps * BLOCK_INPUTS, inputs)", "begin + (steps + 1) * BLOCK_INPUTS, inputs)"),
    _linear("last_split_left_out", "for split in range(1, SPLITS):", "for split in range(1, SPLITS - 1):"),
    _linear("first_split_counts_twice", "for split in range(1, SPLITS):", "for split in range(SPLITS):"),
    _linear("bias_of_the_first_output", "sums += tl.load(bias + output, mask=output < outputs, other=0.0)",
            "sums += tl.load(bias + 0 * output, mask=output < outputs, other=0.0)"),
    _linear("first_output_tile_of_a_band_only", "first + (program % width) % size", "first"),
    _linear("rows_taken_for_packed", "[None, :] * x_stride + lane[:, None]", "[None, :] * inputs + lane[:, None]"),
    _linear("sums_rounded_at_each_step", "sums = tl.dot(weights, values, sums, input_precision=\"ieee\")\n    store_tile",
            "sums = tl.dot(weights, values, sums, input_precision=\"ieee\").to(out.dtype.element_ty).to(tl.float32)\n    store_tile"),
    _linear("one_row_drops_its_last_inputs", "sums += weights * tl.load", "sums = weights * tl.load"),
    SourceBug("gated_linear.triton_up_opens_the_gate", OURS, f"{FOLDER}/linear_kernel.py", "(formula(gate, KIND) * up)",
              "(formula(up, KIND) * gate)"),
    # Codes, zero points, halves of bytes.
    _quantized("zero_point_left_out_of_floats", "(widened(codes, wide) - widened(tl.load(zeros), wide)[:, None]).to(dtype)",
               "widened(codes, wide).to(dtype)"),
    _quantized("zero_point_left_out_of_sums", "made = tl.dot(codes, values, sums, out_dtype=tl.int32) - shift",
               "made = tl.dot(codes, values, sums, out_dtype=tl.int32)"),
    _quantized("zero_point_of_int4_added", "codes - tl.load(zeros)[:, None]", "codes + tl.load(zeros)[:, None]"),
    _quantized("high_codes_without_a_sign", "return packed >> 4 if HIGH", "return packed >> 4 & 0xF if HIGH"),
    _quantized("halves_of_a_byte_swapped", "codes = halves(packed, part)", "codes = halves(packed, 1 - part)"),
    _quantized("integers_too_large", "- 8388736.0", "- 8388608.0", file="widen_kernel"),
    _quantized("halves_of_integers_too_large", "- 1152.0", "- 1024.0", file="widen_kernel"),
    _quantized("e4m3_half_as_large", "bitcast=True) * 256.0", "bitcast=True) * 128.0", file="widen_kernel"),
    _quantized("sign_of_e4m3_lost", "((wide & 0x80) << 8) | ", "", file="widen_kernel"),
    _fnuz("minus_zero_stays_in_fnuz", "fp8", "bits.masked_fill(bits == 0x80, 0)", "bits.clone()"),
    # Scales, groups, segments.
    _quantized("zero_point_of_the_first_group", "zeros + group * scale_rows + scale_at", "zeros + scale_at"),
    _quantized("scale_of_the_first_group", "scaled(part_sums, scales + group * scale_rows + scale_at, own)",
               "scaled(part_sums, scales + scale_at, own)"),
    _quantized("scale_of_the_first_outputs", "line // SCALE_OUTPUTS if SCALE_OUTPUTS", "0 * line if SCALE_OUTPUTS"),
    _quantized("activation_takes_the_weights_group", "group_of(segment, X_SEGMENTS)", "group_of(segment, SCALE_SEGMENTS)"),
    _quantized("activation_scale_of_the_first_row", "x_scales + x_row.to(tl.int64) * x_groups", "x_scales + 0 * x_row"),
    _quantized("a_segment_runs_into_the_next",
               "inside = (lane < SEGMENT - place) & (lane < inputs - start)", "inside = lane < inputs - start"),
    _quantized("a_line_runs_into_the_next", "(lane < SEGMENT - place) & (lane < inputs - start)", "(lane < SEGMENT - place)"),
    _fnuz("fnuz_means_as_much", "quantized_kernel", "total * FACTOR", "total"),
    # Activations on the fly.
    _quantized("largest_of_the_last_part_only", "largest = tl.maximum(largest, tl.max(magnitude_bits(values), axis=1))",
               "largest = tl.max(magnitude_bits(values), axis=1)"),
    _fnuz("activation_keeps_minus_zero", "quantized_kernel", "made = tl.where(made == 0x80, 0, made).to(tl.uint8)",
          "made = made.to(tl.uint8)"),
    # Experts.
    SourceBug("router.triton_ties_to_the_highest", OURS, f"{FOLDER}/experts_kernel.py",
              "tl.min(tl.where(left & (scores >= best[:, None]), lane, LANES), axis=1)",
              "tl.max(tl.where(left & (scores >= best[:, None]), lane, -1), axis=1)"),
    SourceBug("router.triton_takes_the_best_twice", OURS, f"{FOLDER}/experts_kernel.py", "left = left & (lane != expert)", "pass"),
    SourceBug("router.triton_overflows", OURS, f"{FOLDER}/experts_kernel.py", "tl.exp(scores - tl.max(scores, axis=1)[:, None])",
              "tl.exp(scores)"),
    _experts("a_tile_asks_the_expert_before", "tl.sum((ends <= tile).to(tl.int32), axis=0)", "tl.sum((ends < tile).to(tl.int32), axis=0)"),
    _experts("token_of_the_rank", "(tl.maximum(pairs, 0) // TOP_K)", "(tl.maximum(pairs, 0) % TOP_K)"),
    _experts("up_is_the_gate", "(line + mlp)[:, None] * embed", "line[:, None] * embed"),
    _experts("down_of_the_first_expert", "tl.load(expert + tile).to(tl.int64) * embed +", "tl.load(expert).to(tl.int64) * embed +"),
    _experts("takes_an_input_too_many", "inside = lane < size - start", "inside = lane <= size - start"),
    _experts("weight_of_the_first_rank", "tl.load(weights + token * TOP_K + rank)", "tl.load(weights + token * TOP_K)"),
)
