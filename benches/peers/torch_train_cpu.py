"""LoRA training steps in PyTorch + PEFT on a CPU in f32, as one JSON line. Used by train.py."""
import argparse
import json
import os
import resource
import statistics
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

QWEN2 = dict(rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=True)
SHAPES = {
    "qwen2.5-0.5b": dict(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
    ),
    # Not the same as this program's `tiny`: only to try the script.
    "tiny": dict(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    ),
}

parser = argparse.ArgumentParser()
parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
parser.add_argument("--seq", type=int, default=512)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--targets", default="q_proj,v_proj")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--steps", type=int, default=4)
options = parser.parse_args()

torch.set_num_threads(options.threads)
torch.manual_seed(1)
config = Qwen2Config(**QWEN2, **SHAPES[options.shape])
base = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
lora = LoraConfig(
    r=options.rank,
    lora_alpha=2 * options.rank,
    lora_dropout=0.0,
    target_modules=options.targets.split(","),
    task_type="CAUSAL_LM",
)
model = get_peft_model(base, lora).train()
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-4)
ids = torch.randint(0, config.vocab_size, (options.batch, options.seq))


def step():
    start = time.perf_counter()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert torch.isfinite(loss)
    return time.perf_counter() - start


step()
times = [step() for _ in range(options.steps)]
tokens = options.batch * options.seq
result = {
    "train": {
        "tok_s": tokens / statistics.median(times),
        "min": tokens / max(times),
        "max": tokens / min(times),
        "ms": 1e3 * statistics.median(times),
        "trainable": sum(parameter.numel() for parameter in trained),
    },
    "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "torch": torch.__version__,
}
print(json.dumps(result))
