"""A LoRA training step of this program beside PyTorch + PEFT on a CPU, interleaved in one run.

    pip install torch transformers peft
    python benches/peers/train.py --program target/release/metal-candle --json train.json

Both train rank 8 on q_proj and v_proj of the same shape with random weights and random tokens, all of them targets, with
AdamW: this program as it does by default (bf16 weights, f32 arithmetic), PyTorch in f32, eagerly, its fastest on such a
machine. Every round starts each program once. Speed is what each program measures of its own steps; peak memory is what the
system counted for the process, of either in the same way. Ratios are taken round by round.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--program", help="this program's binary; without it only PyTorch is measured")
parser.add_argument("--without-torch", action="store_true", help="measure this program only")
parser.add_argument("--shape", default="qwen2.5-0.5b", choices=["qwen2.5-0.5b", "tiny"])
parser.add_argument("--seq", type=int, default=512)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--targets", default="q_proj,v_proj")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--steps", type=int, default=4, help="steps that PyTorch is timed for, after a first one")
parser.add_argument("--json", type=pathlib.Path, help="also write everything measured to this file")
parser.add_argument("extra", nargs="*", help="after --: further arguments for this program, such as --dtype f32")
options = parser.parse_args()

OURS, TORCH = "metal-candle", "PyTorch + PEFT f32"
SIZES = ["--seq", str(options.seq), "--batch", str(options.batch), "--rank", str(options.rank), "--targets", options.targets]
SIZES += ["--shape", options.shape, "--threads", str(options.threads)]


def measured(command):
    """The last line that a program prints, as JSON, and the peak of its resident memory as the system counts it."""
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True)
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            complaints.seek(0)
            sys.exit(f"{' '.join(map(str, command))}\n{complaints.read()[-2000:]}")
    result = json.loads(printed[printed.index("{") :])
    return {
        "tok_s": result["train"]["tok_s"],
        "ms": result["train"]["ms"],
        "peak_rss_mb": usage.ru_maxrss / 1024,
        "reported_peak_rss_mb": result.get("peak_rss_mb"),
    }


def ours():
    return measured([options.program, "bench", "--train", *SIZES, "--json", *options.extra])


def torch():
    script = pathlib.Path(__file__).with_name("torch_train_cpu.py")
    return measured([sys.executable, script, *SIZES, "--steps", str(options.steps)])


programs = ({OURS: ours} if options.program else {}) | ({} if options.without_torch else {TORCH: torch})
if not programs:
    parser.error("nothing to measure: give --program, or leave out --without-torch")
rounds = []
for number in range(options.rounds):
    rounds.append({name: measure() for name, measure in programs.items()})
    print(f"round {number + 1}: {json.dumps(rounds[-1])}", flush=True)

medians = {
    name: {kind: statistics.median(row[name][kind] for row in rounds) for kind in ("tok_s", "ms", "peak_rss_mb")}
    for name in programs
}
print("\n| program | tok/s | ms per step | peak RSS, MB |\n|---|---|---|---|")
for name, median in medians.items():
    print(f"| {name} | {median['tok_s']:.1f} | {median['ms']:.0f} | {median['peak_rss_mb']:.0f} |")
ratios = {}
if len(programs) == 2:
    print("\n| metal-candle / PyTorch, median of rounds (min – max) | |\n|---|---|")
    for kind in ("tok_s", "peak_rss_mb"):
        values = [row[OURS][kind] / row[TORCH][kind] for row in rounds]
        ratios[kind] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        print(f"| {kind} | {ratios[kind]['median']:.2f} ({min(values):.2f} – {max(values):.2f}) |")
if options.json:
    settings = {key: value for key, value in vars(options).items() if key not in ("json", "program")}
    result = {"settings": settings, "rounds": rounds, "medians": medians, "ratios": ratios}
    options.json.write_text(json.dumps(result, indent=1) + "\n")
