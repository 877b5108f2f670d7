"""Planted bugs in the sources of Triton's norms, activations, rope, cells, codes, sampling, random bits and blocks."""
from __future__ import annotations

from .source import SourceBug

FOLDER = "platforms/families/triton"
OURS = "our own"
ONE_VALUE_NEAR_0 = "tl.where(size < 0.25, size + size * square * near, (1.0 - fade) / (1.0 + fade))"


def _rows(name: str, old: str, new: str, source: str = OURS) -> SourceBug:
    op, _, mistake = name.partition(".")
    return SourceBug(f"{op}.triton_{mistake}", source, f"{FOLDER}/rows_kernel.py", old, new)


def _cells(name: str, old: str, new: str, source: str = OURS, families: tuple[str, ...] = ()) -> SourceBug:
    op, _, mistake = name.partition(".")
    return SourceBug(f"{op}.triton_{mistake}", source, f"{FOLDER}/cells_kernel.py", old, new, families)


def _codes(name: str, old: str, new: str) -> SourceBug:
    return SourceBug(f"write_kv.triton_{name}", OURS, f"{FOLDER}/codes_kernel.py", old, new, ("kv.write.codes",))


def _sample(name: str, old: str, new: str, source: str = OURS, file: str = "sample_kernel") -> SourceBug:
    return SourceBug(f"sample.triton_{name}", source, f"{FOLDER}/{file}.py", old, new)


def _blocks(name: str, old: str, new: str) -> SourceBug:
    return SourceBug(f"blocks.triton_{name}", OURS, f"{FOLDER}/blocks_kernel.py", old, new, ("kv.blocks",))


SOURCE_BUGS: tuple[SourceBug, ...] = (
    # Norms and activations.
    _rows("rms_norm.mean_over_the_tile", "axis=1, keep_dims=True) / size + epsilon)\n    return",
          "axis=1, keep_dims=True) / values.shape[1] + epsilon)\n    return"),
    _rows("rms_norm.epsilon_behind_the_root", "keep_dims=True) / size + epsilon)\n    return",
          "keep_dims=True) / size) + epsilon\n    return"),
    _rows("layer_norm.variance_of_lanes_past_the_row", "centred = tl.where(lane < size, values - mean, 0.0)", "centred = values - mean"),
    _rows("layer_norm.bias_alone", "made += tl.load(bias + lane", "made = tl.load(bias + lane"),
    _rows("add_rms_norm.total_without_the_residual", "tl.store(total + row * size + lane, values.to(",
          "tl.store(total + row * size + lane, (values - added).to("),
    _rows("add_rms_norm.residual_lies_as_the_input", "_start(row, inner, residual_outer, residual_inner)",
          "_start(row, inner, outer_stride, inner_stride)"),
    _rows("gated_activation.up_is_the_gate", "tl.load(up + _start(row, gate_inner, up_outer_stride, up_inner_stride)",
          "tl.load(gate + _start(row, gate_inner, gate_outer_stride, gate_inner_stride)"),
    _rows("gated_activation.up_lies_as_the_gate", "_start(row, gate_inner, up_outer_stride, up_inner_stride)",
          "_start(row, gate_inner, gate_outer_stride, gate_inner_stride)"),
    _rows("activation.silu_overflows", "made = x / (1.0 + tl.exp(-x))", "made = x * tl.exp(x) / (1.0 + tl.exp(x))"),
    _rows("activation.gelu_of_another_constant", "0.044715", "0.04715"),
    _rows("activation.relu_hides_nan", "tl.where(x < 0, 0.0, x)", "tl.maximum(x, 0.0)"),
    _rows("activation.tanh_loses_digits_near_0", ONE_VALUE_NEAR_0, "(1.0 - fade) / (1.0 + fade)"),
    # Rope and cells.
    _cells("rope.position_in_half", "other=0).to(tl.float32) * tl.load(frequencies",
           "other=0).to(tl.float16).to(tl.float32) * tl.load(frequencies"),
    _cells("rope.turned_back", "second * cos + first * sin", "second * cos - first * sin"),
    _cells("rope.large_angles_in_float32", "x = (wide - quarters * 1.5707963267948966).to(tl.float32)",
           "x = angle - quarters.to(tl.float32) * 1.5707963267948966"),
    _cells("rope.sign_of_a_quarter", "tl.where((quarter & 2) != 0, -turned_sin, turned_sin)",
           "tl.where((quarter & 1) != 0, -turned_sin, turned_sin)"),
    _cells("rope.rest_from_the_second_half", "tl.load(start + 2 * half + lane, mask=kept, other=0.0), mask=kept)",
           "tl.load(start + half + lane, mask=kept, other=0.0), mask=kept)"),
    _cells("rope.scale_of_the_cosine_alone", "cos, sin = cos * scale, sin * scale", "cos = cos * scale"),
    _cells("rope.pairs_half_interleaved", "second = 2 * lane + 1 if INTERLEAVED else half + lane", "second = half + lane"),
    _cells("write_kv.heads_over_each_other", "head * block_tokens + slot % block_tokens",
           "head + slot % block_tokens", families=("kv.write",)),
    _cells("write_kv.blocks_in_16_bits", "return slot // block_tokens, head",
           "return (slot // block_tokens).to(tl.int16).to(tl.int64), head", families=("kv.far:op=write",)),
    # Codes.
    _codes("infinity_is_finite", "finite = largest_bits < INFINITY_BITS", "finite = largest_bits <= INFINITY_BITS"),
    SourceBug("quantized.triton_inverse_of_a_tiny_group_is_infinite", OURS, f"{FOLDER}/codes_kernel.py",
              'inverse = tl.where(inverse < float("inf"), inverse, 0.0)', "inverse = inverse + 0.0", ("linear.int8", "linear.fp8")),
    _codes("codes_cut_off", "return (x + 12582912.0) - 12582912.0", "return x"),
    _codes("ties_away_from_0", "bits + 0x7FFFF + ((bits >> 20) & 1)", "bits + 0x80000"),
    _codes("small_codes_lost", "tl.where(size < 0.015625, small, normal)", "tl.maximum(normal, 0)"),
    _codes("largest_without_negatives", "return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF",
           "return tl.maximum(x.to(tl.int32, bitcast=True), 0)"),
    # Sampling.
    _sample("top_k_keeps_all_ties", "(key > lowest) | ((key == lowest) & (ids <= tl.load(lasts + row)))", "key >= lowest"),
    _sample("ties_one_too_few", "(place <= ties)", "(place < ties)"),
    _sample("repetition_raises_negatives", "tl.where(old > 0, old / factor, old * factor)", "(old / factor)"),
    _sample("presence_counted", "tl.load(presence + row, mask=real, other=0.0), 0.0).to(tl.float64)",
            "tl.load(presence + row, mask=real, other=0.0), 0.0).to(tl.float64) * count.to(tl.float64)"),
    _sample("min_p_is_strict", ">= tl.load(min_p + row)", "> tl.load(min_p + row)"),
    _sample("nucleus_without_its_last_tie", "share = tl.ceil(", "share = tl.floor("),
    _sample("top_p_of_all_but_the_ties", "mass = above + ties.to(tl.float32) * each", "mass = above"),
    _sample("temperature_of_the_draw_left_out", "score = _score(logit, warmth)\n        key", "score = _score(logit, 1.0)\n        key"),
    _sample("two_zeros", "return tl.where(score == 0, 0.0, score)", "return score"),
    _sample("token_in_the_rows_slot", "tl.store(last_token + tl.load(slots + row), token)", "tl.store(last_token + row, token)"),
    _sample("best_ids_skip_ties", "((logit < bound) | ((logit == bound) & (ids > at)))", "(logit < bound)"),
    _sample("logarithm_without_its_peak", 'other=float("-inf")) - peak)\n    tl.store', 'other=float("-inf")))\n    tl.store'),
    _sample("seed_words_swapped", "_word(seed_low), _word(seed_high)", "_word(seed_high), _word(seed_low)", file="threefry_kernel"),
    _sample("position_for_index", "_word(index), _word(position)", "_word(position), _word(position)", file="threefry_kernel"),
    _sample("counters_skip_after_the_first_part", "_word(first // 2 + ", "_word(first + ", file="threefry_kernel"),
    _sample("pair_turned_around", "tl.interleave(low, high)", "tl.interleave(high, low)", file="threefry_kernel"),
    _sample("last_key_is_another", "x1 + key0 + 5", "x1 + key0 + 4", file="threefry_kernel"),
    # Blocks.
    _blocks("first_head_copied_to_all", "values = tl.load(start + (source * heads + head) * words",
            "values = tl.load(start + source * heads * words"),
    _blocks("first_layer_only", "start = state + layer * layer_stride + lane", "start = state + lane"),
    _blocks("blocks_before_heads", "((layer * heads + head) * count + index)", "((layer * count + index) * heads + head)"),
)
