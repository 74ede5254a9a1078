"""Makes the vectors of tests/dequantise.rs: random blocks of every encoding and what the PyPI package `gguf` makes of them.

    python make.py        with numpy and gguf; writes NAME.bin beside this file

A file is a u32 count of blocks, the blocks, and their elements as f32, all little-endian.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Offsets of f16 fields in a block: those stay finite and normal, everything else is any bits.
HALVES = {
    "F16": [0],
    "BF16": [],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "MXFP4": [],
}

for name, halves in HALVES.items():
    kind = GGMLQuantizationType[name]
    elements, size = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(int.from_bytes(name.encode(), "little"))
    count = {1: 256, 32: 32, 256: 4}[elements]
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    # The last two blocks: all bits set, none set.
    blocks[-2], blocks[-1] = 255, 0
    for at in halves:
        values = random.normal(0, 1, count).astype(np.float16)
        # Negative factors of zeros make negative zeros, but not where a minimum is added.
        values[-1] = -abs(values[-1])
        blocks[:, at : at + 2] = values.view(np.uint8).reshape(count, 2)
    if name == "BF16":
        # No infinities and NaN.
        blocks[:, 1] &= 0xBF
    if name == "MXFP4":
        # Products stay finite; the subnormal factors and the least normal one are there.
        blocks[:, 0] = np.minimum(blocks[:, 0], 250)
        blocks[:3, 0] = [0, 1, 2]
    values = dequantize(blocks.reshape(-1), kind).astype("<f4")
    assert values.size == count * elements and np.isfinite(values).all(), name
    data = np.uint32(count).tobytes() + blocks.tobytes() + values.tobytes()
    (Path(__file__).parent / f"{name}.bin").write_bytes(data)
