"""Prefix keys on a platform: a collision hands nothing over, salts share nothing, and exported blocks are proved before they are used."""
from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from ...core.kv.exchange import pack, unpack
from ...core.kv.prefix import PrefixIndex
from ...core.kv.salt import Salt
from ...core.loader import Loaded
from ...core.transfer import export_prefix, import_prefix
from ...errors import ExchangeError
from ..address import Address
from ..case import Failed, Family, Params
from ..models import MODELS
from ..rig import Rig
from ..served import Alone, Setting, everything, serve
from .engine import GREEDY, POISON

SALTS = {
    "adapter_or_tenant": (Salt(adapter="a"), Salt(tenant="a")), "adapter_or_media": (Salt(adapter="a"), Salt(media="a")),
    "two_adapters": (Salt(adapter="a"), Salt(adapter="b")), "one_or_none": (Salt(tenant="a"), Salt()),
    "shifted": (Salt(adapter="a", tenant="bc"), Salt(adapter="ab", tenant="c")),
}
MODEL = tuple(MODELS)


def prompt_of(address: Address, length: int) -> list[int]:
    return address.random().integers(4, POISON, length).tolist()


def _salts(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """The same prompt under two salts is computed twice; under either of them again it is known."""
    setting, prompt, (first, second) = Setting(params["model"], caching=True), prompt_of(address, 50), SALTS[params["salts"]]
    alone = Alone(rig, setting, address.seed)
    with serve(rig, setting, address.seed) as served:
        for salt, known in ((first, False), (second, False), (first, True), (second, True)):
            answer = served.ask(prompt, GREEDY, salt=salt).end()
            alone.expect(f"under {salt}", answer, GREEDY)
            hits = answer.metrics.kv.hit_tokens if answer.metrics.kv else 0
            if bool(hits) != known:
                raise Failed(f"{hits} tokens were known under {salt}, {'and must be' if known else 'but only'} under {first}")
    return alone.kernels


def _collisions(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """With keys of a few bits most prompts collide: each answer is still its own."""
    setting = Setting(params["model"], caching=True, key_bits=params.int("bits"))
    alone, random = Alone(rig, setting, address.seed), address.random()
    prompts = [random.integers(4, POISON, length).tolist() for length in (50, 50, 33, 66, 50, 34)]
    with serve(rig, setting, address.seed) as served:
        for prompt in (*prompts, prompts[0]):
            alone.expect("with colliding prefix keys", served.ask(prompt, GREEDY).end(), GREEDY)
    return alone.kernels


def _keys(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """The chain as it is written down: the same in every process, on every machine."""
    size, salt = params.int("block"), Salt(adapter="a", media="m", tenant="t")
    tokens = np.asarray(prompt_of(address, 4 * size), "<i4")
    index, keys = PrefixIndex(size, 1, 8), list[bytes]()
    index.extend(keys, index.origin(salt), tokens.data.cast("B"))
    parts = b"".join(tag + len(text).to_bytes(8, "little") + text for tag, text in ((b"A", b"a"), (b"M", b"m"), (b"T", b"t")))
    link = hashlib.sha256(b"inferplane.prefix.1" + size.to_bytes(8, "little") + parts).digest()
    for place in range(4):
        link = hashlib.sha256(link + tokens[place * size : (place + 1) * size].tobytes()).digest()
        if len(keys) != 4 or keys[place] != link:
            raise Failed(f"the keys of four blocks are {[key.hex()[:8] for key in keys]}; number {place} must be {link.hex()[:8]}")
    return ()


def _exchanged(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """A prefix that another engine computed gives the answer that computing it gives."""
    setting, prompt = Setting(params["model"], caching=True), prompt_of(address, 50)
    alone, way = Alone(rig, setting, address.seed), everything(GREEDY)
    with serve(rig, setting, address.seed) as served:
        alone.expect("before an export", served.ask(prompt, way).end(), way)
        parts = export_prefix(served.engine, prompt)
    with serve(rig, setting, address.seed) as other:
        length = import_prefix(other.engine, prompt, parts)
        answer = other.ask(prompt, way).end()
        alone.expect("on imported blocks", answer, way)
        hits = answer.metrics.kv.hit_tokens if answer.metrics.kv else 0
        if not hits or hits > length:
            raise Failed(f"{length} tokens were imported, and {hits} of them found")
    return alone.kernels


DAMAGES = ("byte", "cut", "dtype", "model", "salt", "tokens")


def damaged(what: str, parts: list[bytes], loaded: Loaded, address: Address) -> tuple[list[bytes], Salt]:
    """Parts of a model's only group with one thing wrong, and the salt to import them under."""
    [group] = loaded.model.states
    manifest, arrays = unpack(parts[0], model=loaded.fingerprint, group=group, salt=Salt().digest())
    changed = bytearray(parts[0])
    changed[address.seed % len(changed)] ^= 1
    other = tuple(place + 1 for place in manifest.tokens)
    made = {
        "byte": bytes(changed),
        "cut": parts[0][:-1],
        "dtype": pack(manifest, {name: array.astype(np.float16) for name, array in arrays.items()}),
        "model": pack(replace(manifest, model="another"), arrays),
        "tokens": pack(replace(manifest, tokens=other), arrays),
    }
    return [made.get(what, parts[0])], Salt(tenant="t") if what == "salt" else Salt()


def _refused(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """Blocks that are not the importer's own kind, or not as they were sent, are refused, and nothing has changed."""
    setting, prompt, what = Setting(caching=True), prompt_of(address, 50), params["what"]
    alone = Alone(rig, setting, address.seed)
    with serve(rig, setting, address.seed) as served:
        served.ask(prompt, GREEDY).end()
        parts = export_prefix(served.engine, prompt)
    parts, salt = damaged(what, parts, alone.loaded, address)
    with serve(rig, setting, address.seed) as served:
        try:
            import_prefix(served.engine, prompt, parts, salt)
        except ExchangeError:
            alone.expect("after a refused import", served.ask(prompt, GREEDY).end(), GREEDY)
        else:
            raise Failed(f"blocks with another {what} were imported")
    return alone.kernels


FAMILIES = [Family(f"engine.{name}", 4, axes, run) for name, run, axes in (
    ("salts", _salts, {"model": MODEL[::2], "salts": tuple(SALTS)}),
    ("collisions", _collisions, {"model": MODEL, "bits": ("1", "3")}),
    ("keys", _keys, {"block": ("1", "16", "128")}),
    ("exchanged", _exchanged, {"model": MODEL}),
    ("refused", _refused, {"what": DAMAGES}),
)]
