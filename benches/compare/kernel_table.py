"""Adds up the kernels in a log of cubecl's profiler: `python kernel_table.py LOG [ROWS]`, as a Markdown table.

The log is what CUBECL_DEBUG_OPTION=profile CUBECL_DEBUG_LOG=LOG leaves of `full_size`'s step or train, which run twice.
The second half of all launches is counted: the second pass, and a little of the first, which also tried kernels. Kernels
are told by their kind, whatever their tiles and fusions; `SourceKernel` are those of shaders/ops.
"""

import re
import sys
from collections import defaultdict

UNITS = {"ns": 1e-6, "µs": 1e-3, "ms": 1.0, "s": 1e3}
LINE = re.compile(r"^\|\s+([0-9.]+)(ns|µs|ms|s)\s+\|\s+(.+?)\s*$")
# What measures the device and what autotuning tries is no part of the work.
IGNORED = ("Throughput", "PrimeBuffer")


def kernels(path):
    for line in open(path, encoding="utf-8"):
        if found := LINE.match(line):
            value, unit, name = found.groups()
            if not any(word in name for word in IGNORED):
                kind, *rest = re.sub(r"_[0-9a-f]{8}$", "", name).split(" | ")
                yield " ".join([kind, *rest[:1]]), float(value) * UNITS[unit]


def main():
    path, rows = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 15
    every = list(kernels(path))
    if not every:
        sys.exit(f"{path} tells of no kernel's time: set CUBECL_DEBUG_OPTION=profile")
    last = every[len(every) // 2 :]
    sums = defaultdict(lambda: [0.0, 0])
    for name, ms in last:
        sums[name][0] += ms
        sums[name][1] += 1
    total = sum(ms for ms, _ in sums.values())
    print("| kernel | ms | launches | share |\n|---|---|---|---|")
    ordered = sorted(sums.items(), key=lambda row: -row[1][0])
    for name, (ms, count) in ordered[:rows]:
        print(f"| {name} | {ms:.0f} | {count} | {ms / total:.1%} |")
    rest = [row for _, row in ordered[rows:]]
    print(f"| the rest | {sum(ms for ms, _ in rest):.0f} | {sum(n for _, n in rest)} | {sum(ms for ms, _ in rest) / total:.1%} |")
    print(f"| in all | {total:.0f} | {len(last)} | |")


main()
