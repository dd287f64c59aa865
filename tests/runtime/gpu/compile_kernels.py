"""Compile the kernels for GPUs that need not be there; run by test_compile.py in a process where Triton does not interpret."""

import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from s2q.runtime.gpu import product, tokens

FLOATS = {"SMALLEST": -32.0, "LARGEST": 31.0}
X, POINTERS = "*bf16", {
    "words": "*u8", "packed_zero": "*i32", "x_sums": "*i32", "weight_sums": "*i32", "codes": "*i8", "up": "*bf16",
    "bias": "*bf16", **{name: "*fp32" for name in (
        "scale", "zero", "weight_scale", "middle", "channel", "right", "left", "clip", "limits", "values")},
}  # fmt: skip
PRODUCT = {
    "GROUPS": 1, "SIZE": 1920, "X_GROUPS": 1, "WEIGHT_GROUPS": 1, "BITS": 4, "PAIRS": True, "INTEGER": True, "X_ZERO": False,
    "WEIGHT_ZERO": False, "RANK": 0, "BIAS": True, "GELU": False, "BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128,
    "PERSISTENT": False,
}  # fmt: skip
GROUPS = {
    "GROUPS": 30, "SIZE": 64, "X_GROUPS": 30, "WEIGHT_GROUPS": 30, "X_ZERO": True, "WEIGHT_ZERO": True, "RANK": 32,
    "BLOCK_K": 64,
}  # fmt: skip
ROWS = {"COLUMNS": 1920, "CHANNEL": True, "CLIP": True, "STAGES": 0, "FACTOR": 1.0, **FLOATS}
BLOCKS = {"STAGES": 7, "FACTOR": 128**-0.5}
CASES = {
    "W4": (product._multiply_kernel, "*i8", PRODUCT),
    "W4, one after the other": (product._multiply_kernel, "*i8", PRODUCT | {"PERSISTENT": True, "GELU": True}),
    "W4 and GELU": (product._multiply_kernel, "*i8", PRODUCT | {"GELU": True}),
    "W4 in groups": (product._multiply_kernel, "*i8", PRODUCT | GROUPS),
    "W3": (product._multiply_kernel, "*i8", PRODUCT | {"BITS": 3, "PAIRS": False, "WEIGHT_ZERO": True}),
    "W8": (product._multiply_kernel, "*i8", PRODUCT | {"BITS": 8, "PAIRS": False, "WEIGHT_ZERO": True}),
    "W4A16": (product._multiply_kernel, "*fp32", PRODUCT | {"INTEGER": False, "BLOCK_M": 16, "BLOCK_K": 32}),
    "sums": (product._sum_kernel, "*i8", {
        "GROUPS": 30, "SIZE": 64, "WEIGHT_GROUPS": 1, "BITS": 4, "PAIRS": True, "ZERO": True, "BLOCK": 32, "STEP": 64}),
    "right": (tokens._right_kernel, X, {
        "N1": 40, "N2": 48, "CHANNEL": True, "BLOCK_ROWS": 64, "BLOCK": 16, "STEP": 16}),
    "left": (tokens._left_kernel, "*fp32", FLOATS | {
        "N1": 80, "N2": 96, "PADDED_1": 128, "PADDED_2": 128, "STEP": 16, "KEEP": True, "ROUND": True, "CLIP": True,
        "SYMMETRIC": False}),
    "rows": (tokens._rows_kernel, X, ROWS | {
        "GROUPS": 1, "SIZE": 1920, "BLOCK_GROUPS": 1, "PADDED": 2048, "KEEP": False, "LIMITS": False,
        "SYMMETRIC": True}),
    "rows in groups": (tokens._rows_kernel, X, ROWS | {
        "GROUPS": 30, "SIZE": 64, "BLOCK_GROUPS": 32, "PADDED": 64, "KEEP": True, "LIMITS": True, "SYMMETRIC": False}),
    "blocks": (tokens._rows_kernel, X, ROWS | BLOCKS | {
        "COLUMNS": 7680, "GROUPS": 1, "SIZE": 7680, "BLOCK_GROUPS": 1, "PADDED": 8192, "KEEP": False, "LIMITS": False,
        "SYMMETRIC": True}),
    "blocks of groups": (tokens._rows_kernel, X, ROWS | BLOCKS | {
        "COLUMNS": 7680, "GROUPS": 120, "SIZE": 64, "BLOCK_GROUPS": 32, "PADDED": 64, "KEEP": True, "LIMITS": False,
        "SYMMETRIC": False}),
}  # fmt: skip


UNITS = {"tcgen05.mma": "tcgen05", "wgmma.mma_async": "wgmma", "mma.sync": "mma"}


def compiled(case: str, capability: int) -> tuple[str, int]:
    """PTX of a kernel and the bytes of shared memory it takes; raises what the compiler or the assembler raises."""
    kernel, x, constants = CASES[case]
    kernel = getattr(kernel, "fn", kernel) if hasattr(kernel, "configs") else kernel
    kinds = POINTERS | {"x": x, "out": {"right": "*fp32", "sums": "*i32"}.get(case, "*bf16")}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    # As a launch finds them: torch's tensors and the released widths are multiples of 16.
    aligned = [name for name, kind in signature.items() if kind[0] == "*" or name in ("outputs", "row_bytes")]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, values, attributes)
    options = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert made.asm["cubin"]
    return made.asm["ptx"], made.metadata.shared


if __name__ == "__main__":
    for name in sys.argv[2:] or CASES:
        text, shared = compiled(name, int(sys.argv[1]))
        unit = next((unit for instruction, unit in UNITS.items() if instruction in text), "-")
        by_bytes = " by bytes" * bool(re.search(r"ld[.]global[.:a-z0-9_]*[.][bu]8 ", text))
        print(f"{name}: {unit}{by_bytes}: {shared}")
