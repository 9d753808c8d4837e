"""Prefill and decode of this program beside llama.cpp and PyTorch, interleaved in one run.

    pip install torch transformers                     # for PyTorch
    python benches/peers/cpu.py --program target/release/metal-candle --model FOLDER \
        --llama-bench llama.cpp/build/bin/llama-bench --gguf-bf16 model-bf16.gguf

FOLDER is a qwen2.5-0.5b shaped model (any weights); this program measures the same shape with random weights. A peer
that is not given is left out and said so. Every round measures each program once; ratios are taken round by round.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--program", required=True)
parser.add_argument("--model", help="Hugging Face folder for PyTorch")
parser.add_argument("--llama-bench")
parser.add_argument("--gguf-bf16")
parser.add_argument("--shape", default="qwen2.5-0.5b")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--tokens", type=int, default=48)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()


def output(command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def ours(dtype):
    sizes = ["--prompt", str(options.prompt), "--tokens", str(options.tokens), "--threads", str(options.threads)]
    command = [options.program, "bench", "--shape", options.shape, "--dtype", dtype, *sizes]
    result = json.loads(output([*command, "--repetitions", "3", "--bandwidth", "--json"]))
    rates = {kind: result[kind]["tok_s"] for kind in ("prefill", "decode")}
    return rates | {"share of bandwidth": result["decode"]["read_gb_s"] / result["memory_read_gb_s"]}


def llama():
    command = [options.llama_bench, "-m", options.gguf_bf16, "-t", str(options.threads), "-r", "3", "-o", "json"]
    rows = json.loads(output([*command, "-p", str(options.prompt), "-n", str(options.tokens)]))
    return {"prefill" if row["n_prompt"] else "decode": row["avg_ts"] for row in rows}


def torch(dtype):
    script = str(pathlib.Path(__file__).with_name("torch_cpu.py"))
    sizes = ["--prompt", str(options.prompt), "--tokens", str(options.tokens), "--threads", str(options.threads)]
    return json.loads(output([sys.executable, script, "--model", options.model, "--dtype", dtype, *sizes]).splitlines()[-1])


def flat(rates):
    return {kind: rate["tok_s"] if isinstance(rate, dict) else rate for kind, rate in rates.items()}


programs = {"metal-candle bf16": lambda: ours("bf16"), "metal-candle f32": lambda: ours("f32")}
if options.llama_bench and options.gguf_bf16:
    programs["llama.cpp bf16"] = llama
else:
    print("llama.cpp left out: --llama-bench and --gguf-bf16 not given")
if options.model:
    programs |= {"PyTorch f32": lambda: torch("f32"), "PyTorch bf16": lambda: torch("bf16")}
else:
    print("PyTorch left out: --model not given")

rounds = []
for number in range(options.rounds):
    rounds.append({name: flat(measure()) for name, measure in programs.items()})
    print(f"round {number + 1}: {json.dumps(rounds[-1])}", flush=True)

print("\n| program | prefill tok/s | decode tok/s |\n|---|---|---|")
for name in programs:
    middle = {kind: statistics.median(row[name][kind] for row in rounds) for kind in ("prefill", "decode")}
    print(f"| {name} | {middle['prefill']:.0f} | {middle['decode']:.1f} |")

print("\n| ratio, median of rounds (min – max) | |\n|---|---|")
pairs = [
    ("decode", "metal-candle bf16", "llama.cpp bf16"),
    ("prefill", "metal-candle bf16", "llama.cpp bf16"),
    ("prefill", "metal-candle f32", "PyTorch f32"),
    ("decode", "metal-candle f32", "PyTorch f32"),
    ("prefill", "metal-candle bf16", "metal-candle f32"),
    ("decode", "metal-candle bf16", "PyTorch bf16"),
]
for kind, left, right in pairs:
    if left in programs and right in programs:
        ratios = [row[left][kind] / row[right][kind] for row in rounds]
        print(f"| {kind}: {left} / {right} | {statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f}) |")
shares = [row["metal-candle bf16"]["share of bandwidth"] for row in rounds]
print(f"| decode bf16: bytes read / bandwidth measured beside it | {statistics.median(shares):.2f} ({min(shares):.2f} – {max(shares):.2f}) |")
