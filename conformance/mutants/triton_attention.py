"""Planted bugs in the source of Triton's attention: its masks, its softmax, its shares of the keys, its cells."""
from __future__ import annotations

from .source import SourceBug

FOLDER = "platforms/families/triton"
OURS = "our own"


def _kernel(name: str, source: str, old: str, new: str) -> SourceBug:
    return SourceBug(f"attention.triton_{name}", source, f"{FOLDER}/attention_kernel.py", old, new)


def _merge(name: str, source: str, old: str, new: str) -> SourceBug:
    return SourceBug(f"attention.triton_{name}", source, f"{FOLDER}/attention_merge_kernel.py", old, new)


def _host(name: str, source: str, old: str, new: str) -> SourceBug:
    return SourceBug(f"attention.triton_{name}", source, f"{FOLDER}/attention.py", old, new)


FIRST_SHARE = """(split == 0, tl.load(sinks + head, mask=held, other=0.0).to(tl.float32) * LOG2E, peak)
        total = tl.where(split == 0, 1.0, total)
"""
SOURCE_BUGS: tuple[SourceBug, ...] = (
    # Masks.
    _kernel("sees_the_next_key", OURS, "behind = position[:, None] - key", "behind = position[:, None] + 1 - key"),
    _kernel("does_not_see_itself", OURS, "behind = position[:, None] - key", "behind = position[:, None] - 1 - key"),
    _kernel("window_one_too_wide", "vLLM #3385", "< window.to(tl.uint32)", "<= window.to(tl.uint32)"),
    _kernel("window_one_too_narrow_where_it_loads", OURS, "first + ahead - window + 1)", "first + ahead - window + 2)"),
    _kernel("a_tile_at_the_edge_taken_for_full", OURS, "tl.minimum((first + ahead + 1) // BLOCK_N * BLOCK_N, end)",
            "tl.minimum(tl.cdiv(first + ahead + 1, BLOCK_N) * BLOCK_N, end)"),
    _kernel("a_tile_at_the_window_taken_for_full", OURS, "tl.cdiv(tl.maximum(0, stop + ahead - window), BLOCK_N) * BLOCK_N",
            "tl.maximum(0, stop + ahead - window) // BLOCK_N * BLOCK_N"),
    _kernel("reads_past_the_row", OURS, "found = _within(key, low, high)", "found = key"),
    _kernel("reads_past_an_odd_dim", OURS, "mask=(dim < DIM)[None, :], other=0)", "mask=(dim <= DIM)[None, :], other=0)"),
    # Softmax.
    _kernel("total_keeps_an_old_peak", OURS, "total = total * fade + tl.sum(weights, 1)", "total = total + tl.sum(weights, 1)"),
    _kernel("mixed_keeps_an_old_peak", OURS, "_mixed(mixed0 * fade[:, None]", "_mixed(mixed0"),
    _kernel("second_part_keeps_an_old_peak", OURS, "_mixed(mixed1 * fade[:, None]", "_mixed(mixed1"),
    _kernel("nothing_seen_is_nan", OURS, 'base = tl.where(higher == float("-inf"), 0.0, higher)', "base = higher"),
    _kernel("second_part_of_the_keys_left_out", OURS,
            "scores = tl.dot(q1, tl.trans(keys1), scores,", "tl.dot(q1, tl.trans(keys1), scores,"),
    _kernel("scale_before_softcap_left_out", OURS, "tl.exp2(scores * scale)", "tl.exp2(scores)"),
    _kernel("scale_before_the_slope_left_out", OURS, "            scores *= scale\n", "            scores *= 1\n"),
    _kernel("sink_to_base_e", OURS, "other=0.0).to(tl.float32) * LOG2E", "other=0.0).to(tl.float32)"),
    _kernel("slope_to_base_e", OURS,
            "tl.load(slopes + head, mask=held, other=0.0) * LOG2E", "tl.load(slopes + head, mask=held, other=0.0)"),
    _host("scores_to_base_e", OURS, "return spec.scale * LOG2E, None", "return spec.scale, None"),
    _host("softcap_of_half_the_score", OURS, "return 2 * spec.scale / spec.softcap", "return spec.scale / spec.softcap"),
    # Rows, heads, pages.
    _kernel("heads_interleaved", OURS, "head = kv_head * GROUP + in_group", "head = kv_head + in_group * kv_heads"),
    _kernel("a_row_takes_its_neighbours_tile", OURS, "if tl.load(starts + middle) // TOKENS + middle <= tile:",
            "if tl.load(starts + middle) // TOKENS + middle < tile:"),
    _kernel("same_block_twice", OURS, "_within(key + BLOCK_N, low, high)",
            "_within(key, low, high)"),
    SourceBug("attention.triton_blocks_in_16_bits", OURS, f"{FOLDER}/attention_kernel.py", "slot = block.to(tl.int64) * block_slots",
              "slot = block.to(tl.int16).to(tl.int64) * block_slots", ("kv.far:op=attention",)),
    _kernel("table_of_the_first_row", OURS, "table += row.to(tl.int64) * table_width", "table += 0 * row.to(tl.int64) * table_width"),
    # Shares of the keys.
    _kernel("a_share_ends_too_soon", OURS, "tl.minimum(low + (split + 1) * keys, high)", "tl.minimum(low + (split + 1) * keys - 1, high)"),
    _kernel("sink_in_every_share", OURS, FIRST_SHARE, FIRST_SHARE.replace("split == 0", "split >= 0")),
    _merge("total_without_its_factor", OURS, "whole = tl.sum(total * factor, 0)", "whole = tl.sum(total, 0)"),
    _merge("parts_without_their_factor", OURS, "mixed = tl.sum(part * factor[:, None], 0)", "mixed = tl.sum(part, 0)"),
    _merge("merged_to_base_e", OURS, "factor = tl.exp2(peak", "factor = tl.exp(peak"),
    # Cells of codes.
    _kernel("codes_half_as_large", OURS, "CODE_SCALE = tl.constexpr(256.0)", "CODE_SCALE = tl.constexpr(128.0)"),
    _kernel("sign_of_codes_lost", OURS, "((bits & 0x80) << 8) | ", ""),
    _kernel("values_with_the_keys_scales", OURS, "_scales(v_scale + slot, v)", "_scales(k_scale + slot, v)"),
    _kernel("scales_of_the_first_head", OURS, "k_scale += kv_head * BLOCK_TOKENS", "k_scale += 0 * kv_head * BLOCK_TOKENS"),
)
