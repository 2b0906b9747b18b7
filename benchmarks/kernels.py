"""What the kernels in `fastpath` reach, on each level of instructions that this processor has.

    python benchmarks/kernels.py                       one core
    OMP_NUM_THREADS=2 python benchmarks/kernels.py     two
    python benchmarks/kernels.py avx2                  one level

A figure is the best of the runs of 0.4 s: millions of numbers a second for chunks of so many numbers, from the first
that has so many digits; and millions of pixels a second for 1536 x 1024 of them, -2..1 x -1..1, at most 20 and 1,000
iterations.
"""

import sys
import time

from concurrent_swarm import fastpath

CHUNKS = [(7, 15_625), (7, 900_000), (8, 1_000_000), (8, 9_000_000), (9, 1_000_000), (9, 90_000_000), (12, 1_000_000),
          (16, 1_000_000), (19, 1_000_000)]  # fmt: skip
NO_NUMBER = bytes(16)


def rate(count, call):
    """Millions a second of what the call does `count` times."""
    best, end = float("inf"), time.perf_counter() + 0.4
    while (start := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - start)
    return count / best / 1e6


def search(digits, count):
    start = 10 ** (digits - 1)
    return rate(count, lambda: fastpath.md5_search(NO_NUMBER, start, start + count))


def draw(limit):
    return rate(1536 * 1024, lambda: fastpath.mandelbrot(-2, 1, -1, 1, 1536, 1024, 0, 1536, limit))


if __name__ == "__main__":
    for level in sys.argv[1:] or fastpath.levels():
        fastpath._use(level)
        print(f"\n{level}")
        for digits, count in CHUNKS:
            print(f"  md5, {digits:2} digits, chunks of {count:10,}  {search(digits, count):8.1f} MH/s")
        for limit in (20, 1000):
            print(f"  mandelbrot, {limit:4} iterations         {draw(limit):8.1f} Mpx/s")
