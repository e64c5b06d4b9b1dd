"""Philox4x32-10 on a GPU: numbers of all rows in one kernel, where operations of torch would be a hundred and more."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS = 256  # of four numbers, for each program


@triton.jit
def philox_kernel(  # type: ignore[no-untyped-def]
    out, rows, positions, one_position, key, total, blocks, GAUSSIAN: tl.constexpr, SIZE: tl.constexpr
):
    """Four numbers for each place in `out`, of which there are `total`, `blocks` of them for each of `rows`."""
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < total
    row_number = place // blocks
    row = tl.load(rows + row_number, mask=inside, other=0)
    position = tl.load(positions + row_number * (1 - one_position), mask=inside, other=0)
    first, second, third, fourth = tl.philox(
        key,
        (place % blocks).to(tl.uint32),
        row.to(tl.uint32),
        (position & 0xFFFFFFFF).to(tl.uint32),
        (position >> 32).to(tl.uint32),
    )
    if GAUSSIAN:
        radius = tl.sqrt(-2.0 * tl.log(first.to(tl.float32) * 2.0**-32 + 2.0**-33))
        angle = second.to(tl.float32) * (6.283185307179586 * 2.0**-32)
        one, two = radius * tl.cos(angle), radius * tl.sin(angle)
        radius = tl.sqrt(-2.0 * tl.log(third.to(tl.float32) * 2.0**-32 + 2.0**-33))
        angle = fourth.to(tl.float32) * (6.283185307179586 * 2.0**-32)
        three, four = radius * tl.cos(angle), radius * tl.sin(angle)
    else:
        one, two = (first >> 8).to(tl.float32) * 2.0**-24, (second >> 8).to(tl.float32) * 2.0**-24
        three, four = (third >> 8).to(tl.float32) * 2.0**-24, (fourth >> 8).to(tl.float32) * 2.0**-24
    tl.store(out + 4 * place, one, mask=inside)
    tl.store(out + 4 * place + 1, two, mask=inside)
    tl.store(out + 4 * place + 2, three, mask=inside)
    tl.store(out + 4 * place + 3, four, mask=inside)


def numbers_in_triton(kind: str, key: tuple[int, int], rows: Tensor, position: Tensor | int, count: int) -> Tensor:
    """`uniform` or `normal` numbers as `ldm.philox.counter_based` makes them: rows x `count`, or a few more, float32.

    Uniform ones are the same bit for bit, Gaussian ones to rounding. It can be recorded in a CUDA graph, with rows and
    a `position` that change between replays.
    """
    blocks = -(-count // 4)
    total = len(rows) * blocks
    positions = rows.new_full((1,), position) if isinstance(position, int) else position.reshape(-1)
    out = torch.empty(len(rows), 4 * blocks, dtype=torch.float32, device=rows.device)
    if total:
        secret = key[0] | key[1] << 32
        one_position = int(len(positions) == 1)
        philox_kernel[(triton.cdiv(total, BLOCKS),)](
            out,
            rows.contiguous(),
            positions,
            one_position,
            secret,
            total,
            blocks,
            GAUSSIAN=kind == "normal",
            SIZE=BLOCKS,
        )
    return out
