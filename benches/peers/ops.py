"""Our ops beside PyTorch's, one by one, interleaved; prints ratios.

    python benches/peers/ops.py --program target/release/examples/op_speed linear

The program is the example `op_speed` of crates/kernels. A ratio above one means that ours is faster.
"""
import argparse
import json
import statistics
import subprocess
import time

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--program", required=True)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("ops", nargs="+")
options = parser.parse_args()
torch.set_num_threads(options.threads)


def milliseconds(call):
    """The time of a call that nobody disturbs, as op_speed takes it: a tenth of the calls are faster."""
    call()
    times, begin = [], time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - begin < 0.3 and len(times) < 1000):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return sorted(times)[len(times) // 10]


def linear(case, single):
    sizes, _ = case.split()
    rows, inputs, outputs = map(int, sizes.split("x"))
    weight, x, dy = torch.randn(outputs, inputs), torch.randn(rows, inputs), torch.randn(rows, outputs)
    if single == "forward":
        return lambda: torch.nn.functional.linear(x, weight)
    return (lambda: dy @ weight) if single == "backward" else (lambda: dy.t() @ x)


def lora(case, single):
    sizes, rank = case.split(" rank ")
    (rows, inputs, outputs), rank = map(int, sizes.split("x")), int(rank)
    a, b, weight = torch.randn(rank, inputs), torch.randn(outputs, rank), torch.randn(outputs, inputs)
    x, y, dy = torch.randn(rows, inputs), torch.randn(rows, outputs), torch.randn(rows, outputs)
    projected = x @ a.t()
    dx, da, db = torch.zeros_like(x), torch.zeros_like(a), torch.zeros_like(b)

    def forward():
        y.addmm_(x @ a.t(), b.t(), alpha=2.0)

    def backward():
        g = dy @ b * 2.0
        dx.addmm_(g, a)
        da.addmm_(g.t(), x)
        db.addmm_(dy.t(), projected, alpha=2.0)

    return {"forward": forward, "backward": backward, "dora norm": lambda: torch.linalg.norm(weight + 2.0 * (b @ a), dim=1)}[single]


OPS = {"linear": linear, "lora": lora}

ratios, ours, theirs = {}, {}, {}
for number in range(options.rounds):
    for op in options.ops:
        time.sleep(0.5)  # PyTorch's threads watch for work for a while
        command = [options.program, op]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        for line in map(json.loads, lines):
            key = (op, line["case"], line["pass"])
            with torch.no_grad():
                peer = milliseconds(OPS[op](line["case"], line["pass"]))
            ours.setdefault(key, []).append(line["ms"])
            theirs.setdefault(key, []).append(peer)
            ratios.setdefault(key, []).append(peer / line["ms"])

print("| op | case | pass | ms | PyTorch f32, ms | ratio (min – max) |\n|---|---|---|---|---|---|")
for key, values in ratios.items():
    op, case, single = key
    print(
        f"| {op} | {case} | {single} | {statistics.median(ours[key]):.4f} | {statistics.median(theirs[key]):.4f}"
        f" | {statistics.median(values):.2f} ({min(values):.2f} – {max(values):.2f}) |"
    )
