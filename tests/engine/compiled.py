"""Compile every Triton kernel for real GPUs without one: `python -m tests.engine.compiled 75:fp16 90:bf16`.

Triton's interpreter forgives what its compiler does not.
"""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bot.engine.kernels.triton import epilogue, int4, int8, kernels

POINTERS = {
    "values": "*i8",
    "packed": "*i8",
    "positions": "*i64",
    "slots": "*i64",
    "at": "*i64",
    **dict.fromkeys(("cos", "sin", "residual", "normed", "partial", "parts", "best", "weight", "epsilon"), "*fp32"),
}
FLAGS = {"has_bias": True, "gelu": True, "is_partial": False, "has_zero": True}


def kernel_calls(number: str) -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """Return each kernel with its argument types and constants, for activations of dtype `number`."""
    half = f"*{number}"
    product = {"hidden": half, "bias": half, "out": half}
    int8_weight, int4_weight = {"scale": "*fp32"}, {"scale": "*bf16", "zero": "*bf16"}
    published = {"scale": "*fp16", "zero": "*fp16"}
    groups = {"by_groups": True, "group": 128}
    rows = {"by_groups": False, "group": 128, "has_zero": False}
    parts = {"heads": 32, "head_dim": 128}
    split = {"out": "*fp32", "has_bias": False, "gelu": False, "is_partial": True}
    norm = {"product": half, "bias": "*fp32", "cast": half, "alpha": "fp32", "epsilon": "fp32", "hidden": "i32"}
    attention = {"query": half, "keys": half, "values": half, "mixed": half, "scale": "fp32", **parts, "block": 64}
    every: list[tuple[Any, dict[str, Any]]] = [
        (int8.one_row, product | int8_weight | {"block_rows": 8, "block_columns": 512}),
        (int4.one_row, product | int4_weight | groups | {"block_rows": 8, "block_groups": 8}),
        (int4.one_row, product | published | rows | {"block_rows": 8, "block_groups": 8}),
        (int8.dequantise, int8_weight | {"out": half, "block_columns": 1024}),
        (int4.dequantise, int4_weight | {"out": half, "block_pairs": 512, "group": "i32"}),
        (epilogue.add_splits, {"bias": half, "out": half, "block": 1024}),
        (kernels.add_norm, norm | {"has_residual": True, "block": 4096}),
        (
            kernels.rope_and_append,
            dict.fromkeys(("query_key_value", "query", "keys", "values"), half) | parts | {"channels": 2},
        ),
        (kernels.attend, attention | {"splits": 1}),
        (kernels.attend, attention | {"splits": 16}),
        (kernels.join_splits, {"mixed": half, **parts, "splits": 16}),
    ]
    largest = {"block_rows": 64, "block_tokens": 64}
    every += [
        (int8.many_rows, product | int8_weight | split | largest | {"block_columns": 128}),
        (int4.many_rows, product | int4_weight | groups | largest),
        (int4.many_rows, product | int4_weight | {"by_groups": True, "group": 32} | largest),
        (int4.many_rows, product | published | rows | split | largest),
    ]
    return [(kernel, *_sorted(kernel, given)) for kernel, given in every]


def _sorted(kernel: Any, given: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    for parameter in kernel.params:
        name = parameter.name
        if parameter.is_constexpr:
            signature[name], constants[name] = "constexpr", given.get(name, FLAGS.get(name))
        else:
            signature[name] = given.get(name, POINTERS.get(name, "i32"))
    return signature, constants


def main(targets: list[str]) -> None:
    for target in targets:
        capability, _, number = target.partition(":")
        for kernel, signature, constants in kernel_calls(number):
            source = ASTSource(kernel, signature, constexprs=constants)
            made = triton.compile(source, target=GPUTarget("cuda", int(capability), 32))
            sys.stdout.write(f"sm_{target} {kernel.__module__}.{kernel.__name__}: {len(made.asm['cubin'])} bytes\n")


if __name__ == "__main__":
    main(sys.argv[1:])
