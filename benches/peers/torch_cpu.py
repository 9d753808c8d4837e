"""Prefill and decode of a model folder in PyTorch + transformers, as one JSON line. Used by cpu.py."""
import argparse
import json
import statistics
import time

import torch
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--dtype", choices=["f32", "bf16"], required=True)
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--tokens", type=int, default=48)
parser.add_argument("--repetitions", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()

torch.set_num_threads(options.threads)
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, attn_implementation="sdpa").eval()
torch.manual_seed(1)
prompt = torch.randint(0, model.config.vocab_size, (1, options.prompt))


def prefill():
    model(prompt, logits_to_keep=1, use_cache=True)


def decode():
    output = model(prompt[:, :1], use_cache=True, logits_to_keep=1)
    start = time.perf_counter()
    for _ in range(options.tokens):
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        output = model(token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - start


def timed(work):
    start = time.perf_counter()
    inner = work()
    return inner or time.perf_counter() - start


def rate(count, work):
    work()
    rates = [count / timed(work) for _ in range(options.repetitions)]
    return {"tok_s": statistics.median(rates), "min": min(rates), "max": max(rates)}


with torch.inference_mode():
    result = {"prefill": rate(options.prompt, prefill)}
    if options.tokens:
        result["decode"] = rate(options.tokens, decode)
print(json.dumps(result))
