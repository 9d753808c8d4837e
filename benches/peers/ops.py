"""Our ops beside PyTorch's, one by one, interleaved; prints ratios.

    python benches/peers/ops.py --program target/release/examples/op_speed lm_head_loss top_k

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
    """The median time of a call, as op_speed takes it."""
    call()
    times, begin = [], time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - begin < 0.3 and len(times) < 1000):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def lm_head_loss(case, single):
    """Logits and the sum of losses; backward: with the gradient of the hidden states, the head frozen."""
    sizes, _ = case.split()
    tokens, width, vocabulary = map(int, sizes.split("x"))
    weight, hidden = torch.randn(vocabulary, width), torch.randn(tokens, width)
    targets = torch.randint(0, vocabulary, (tokens,))

    def loss():
        return torch.nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum")

    def gradient():
        with torch.enable_grad():
            hidden.requires_grad_().grad = None
            loss().backward()

    return loss if single == "forward" else gradient


def top_k(case, single):
    rows, vocabulary, k = map(int, case.split("x"))
    logits = torch.randn(rows, vocabulary)
    return (lambda: logits.argmax(-1)) if k == 1 else (lambda: logits.topk(k))


OPS = {"lm_head_loss": lm_head_loss, "top_k": top_k}

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
