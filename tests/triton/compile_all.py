"""Compiles the GPU's loops for the GPUs named, which need not be there; prints the sizes as JSON lines."""

from __future__ import annotations

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from workers import triton_kernels as loops

SIZES = {"stride_a": "i32", "stride_b": "i32", "size": "i32", "scale": "fp32", "rest": "fp32"}
NORMALISED = {"tops": "*fp32", "totals": "*fp32", "places": "*i32", "flags": "*i32"}
MEASURED = {"shifts": "*fp32", "values": "*fp32", "best": "*i32", "out": "*fp32"}
DRAWN = {
    "ceilings": "*fp32",
    "temperatures": "*fp64",
    "seeds": "*i64",
    "positions": "*i64",
    "best": "*fp64",
    "second": "*fp64",
    "places": "*i32",
    "stride": "i32",
    "size": "i32",
}


def compiled(kernel: object, types: dict[str, str], constants: dict[str, object], target: GPUTarget) -> int:
    signature = types | dict.fromkeys(constants, "constexpr")
    binary = triton.compile(ASTSource(kernel, signature, constants), target=target)
    return len(binary.asm["cubin" if target.backend == "cuda" else "hsaco"])


def main(targets: list[str]) -> None:
    for name in targets:
        target = GPUTarget("cuda", int(name), 32) if name.isdigit() else GPUTarget("hip", name, 64)
        part = {"entries": loops.PART, "block": loops.BLOCK}
        for a, b in (("*fp32", "*fp32"), ("*bf16", "*bf16"), ("*fp16", "*fp16"), ("*bf16", "*fp32")):
            sizes = [
                compiled(loops.normalisers, {"a": a, "b": b} | NORMALISED | SIZES, part, target),
                *(
                    compiled(loops.distances, {"a": a, "b": b} | MEASURED | SIZES, part | {"hellinger": more}, target)
                    for more in (False, True)
                ),
            ]
            print(json.dumps({"target": name, "a": a, "b": b, "bytes": sizes}))
        for rows in ("*fp32", "*fp64"):
            draws = {"entries": loops.PART, "block": loops.DRAWN, "stream": 0}
            size = compiled(loops.draws, {"rows": rows} | DRAWN | {"ceilings": rows}, draws, target)
            print(json.dumps({"target": name, "rows": rows, "bytes": [size]}))


if __name__ == "__main__":
    main(sys.argv[1:])
