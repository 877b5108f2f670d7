"""Canonical blocks arrive as they left, or not at all."""
from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from inferplane.core.kv.exchange import DIGEST_BYTES, PREFIX, ArrayForm, Manifest, pack, unpack
from inferplane.core.kv.salt import Salt
from inferplane.errors import ExchangeError
from inferplane.ops.state import StateArray, StateGroup

SALT = Salt(adapter="sql-v2", tenant="secret of one tenant")
MODEL = "sha256:0123"


def group(dtype: str = "bfloat16", heads: int = 2, name: str = "full", **arrays: StateArray) -> StateGroup:
    return StateGroup(name, (0, 1, 2), arrays or {"k": StateArray(heads, 8, dtype), "v": StateArray(heads, 8, dtype)})


def manifest(tokens: int = 5) -> Manifest:
    return Manifest(MODEL, "full", 16, tuple(range(10, 10 + tokens)), tuple(range(tokens)), True, SALT.digest(), SALT.adapter)


def arrays(dtype: object = ml_dtypes.bfloat16, heads: int = 2, tokens: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((3, heads, tokens, 8)).astype(dtype) for name in ("k", "v")}


def received(data: bytes, **wanted):
    return unpack(data, **{"model": MODEL, "group": group(), "salt": SALT.digest(), **wanted})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2fnuz"])
def test_blocks_arrive_bit_by_bit(dtype: str) -> None:
    numpy_dtype = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
    sent = arrays(numpy_dtype)
    said, got = received(pack(manifest(), sent), group=group(dtype))
    assert replace(said, arrays=()) == manifest()
    assert said.arrays == (ArrayForm("k", dtype, (3, 2, 5, 8)), ArrayForm("v", dtype, (3, 2, 5, 8)))
    for name in sent:
        assert got[name].dtype == sent[name].dtype
        assert got[name].tobytes() == sent[name].tobytes()


def test_a_transposed_array_arrives_in_its_order_of_meaning() -> None:
    sent = {name: np.asfortranarray(array) for name, array in arrays().items()}
    _, got = received(pack(manifest(), sent))
    assert all(np.array_equal(got[name].view(np.uint16), arrays()[name].view(np.uint16)) for name in got)


def test_scales_travel_with_what_they_scale() -> None:
    sent = {"k": arrays(ml_dtypes.float8_e4m3fn)["k"], "k_scale": np.arange(30, dtype=np.float32).reshape(3, 2, 5, 1)}
    scaled = replace(manifest(), scales={"k": "k_scale"})
    coded = group(k=StateArray(2, 8, "float8_e4m3fn"), k_scale=StateArray(2, 1, "float32"))
    said, got = received(pack(scaled, sent), group=coded)
    assert said.scales == {"k": "k_scale"}
    assert np.array_equal(got["k_scale"], sent["k_scale"])


def test_codes_without_their_scales_are_refused() -> None:
    coded = group(k=StateArray(2, 8, "float8_e4m3fn"), k_scale=StateArray(2, 1, "float32"))
    with pytest.raises(ExchangeError, match=r"has arrays \['k', 'k_scale'\]; found \['k'\]"):
        received(pack(manifest(), {"k": arrays(ml_dtypes.float8_e4m3fn)["k"]}), group=coded)


def test_no_tokens_are_a_valid_export() -> None:
    _, got = received(pack(manifest(0), arrays(tokens=0)))
    assert got["k"].shape == (3, 2, 0, 8)


def test_the_same_blocks_are_the_same_bytes() -> None:
    assert pack(manifest(), arrays()) == pack(manifest(), arrays())


def test_the_tenants_secret_does_not_travel() -> None:
    assert b"secret" not in pack(manifest(), arrays())


def test_a_flipped_bit_in_any_byte_is_refused() -> None:
    data = bytearray(pack(manifest(), arrays()))
    for place in range(len(data)):
        data[place] ^= 1 << place % 8
        with pytest.raises(ExchangeError):
            received(bytes(data))
        data[place] ^= 1 << place % 8
    received(bytes(data))


def test_anything_shorter_or_longer_is_refused() -> None:
    data = pack(manifest(), arrays())
    for end in range(len(data)):
        with pytest.raises(ExchangeError):
            received(data[:end])
    with pytest.raises(ExchangeError, match="checksum"):
        received(data + b"\0")


@pytest.mark.parametrize(("wanted", "words"), [
    pytest.param({"model": "sha256:9999"}, "of model 'sha256:0123'", id="another model"),
    pytest.param({"group": group(name="window")}, "of state group 'full'", id="another group"),
    pytest.param({"salt": Salt().digest()}, "of salt", id="another salt"),
    pytest.param({"salt": Salt(tenant="sql-v2", adapter="secret of one tenant").digest()}, "of salt", id="adapter for tenant"),
    pytest.param({"group": group("float16")}, r"\[3, 2, 5, 8\] float16 here; found .* bfloat16", id="another dtype"),
    pytest.param({"group": group(heads=4)}, r"\[3, 4, 5, 8\] .* found \[3, 2, 5, 8\]", id="another shape"),
    pytest.param({"group": group(latent=StateArray(1, 8, "bfloat16"))}, r"has arrays \['latent'\]; found", id="other arrays"),
])
def test_blocks_of_something_else_are_refused(wanted: dict[str, object], words: str) -> None:
    with pytest.raises(ExchangeError, match=words):
        received(pack(manifest(), arrays()), **wanted)


def rewritten(change) -> bytes:
    """Packed blocks with another header and a checksum that holds."""
    data = pack(manifest(), arrays())
    magic, version, length = PREFIX.unpack_from(data)
    header = json.loads(data[PREFIX.size:PREFIX.size + length])
    version = change(header) or version
    text = json.dumps(header).encode()
    body = PREFIX.pack(magic, version, len(text)) + text + data[PREFIX.size + length:-DIGEST_BYTES]
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize(("change", "words"), [
    pytest.param(lambda header: 2, "version 2 are unknown", id="a later version"),
    pytest.param(lambda header: header.update(surprise=1), "surprise", id="an unknown field"),
    pytest.param(lambda header: header.pop("rope") and None, "rope", id="a missing field"),
    pytest.param(lambda header: header["arrays"][0].update(shape=[3, 2, 5, 4]), "found \\[3, 2, 5, 4\\]", id="a smaller shape"),
    pytest.param(lambda header: header["arrays"][0].update(dtype="object"), "does not travel", id="an object dtype"),
    pytest.param(lambda header: header.update(tokens=[1]), "1 tokens need as many positions; found 5", id="fewer tokens"),
    pytest.param(lambda header: header.update(tokens=7), "cannot be read", id="tokens that are no list"),
    pytest.param(lambda header: header["arrays"].pop() and None, "found \\['k'\\]", id="an array kept back"),
    pytest.param(lambda header: header.update(scales={"k": "gone"}), "gone", id="scales kept back"),
])
def test_a_manifest_that_does_not_fit_is_refused_though_its_checksum_holds(change, words: str) -> None:
    with pytest.raises(ExchangeError, match=words):
        received(rewritten(change))


def test_an_array_with_other_tokens_than_the_manifest_is_not_packed() -> None:
    with pytest.raises(ExchangeError, match="holds 5 tokens; the manifest lists 4"):
        pack(manifest(4), arrays())
