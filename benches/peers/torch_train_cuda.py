"""LoRA training steps of a Qwen2.5-0.5B shape in PyTorch alone, compiled, in bf16. Used by train_cuda.py.

Needs nothing but torch: the model is written out here. Weights are random. One case per process: it compiles, warms up, then
measures once for every line that it reads, and prints one JSON line each time.

B: sequences, S: tokens of each, H: heads, K: key/value heads, D: width of a head.
"""
import argparse
import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--seq", type=int, required=True)
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--warm-up", type=int, default=4)
parser.add_argument("--eager", action="store_true")
parser.add_argument("--tiny", action="store_true", help="a small model on the CPU in f32, to try the script")
options = parser.parse_args()

SHAPE, TINY = (151936, 896, 4864, 24, 14, 2, 64), (1000, 64, 128, 2, 4, 2, 16)
VOCABULARY, WIDTH, INNER, LAYERS, H, K, D = TINY if options.tiny else SHAPE
DEVICE, DTYPE = ("cpu", torch.float32) if options.tiny else ("cuda", torch.bfloat16)
THETA, EPSILON = 1e6, 1e-6


class Lora(nn.Module):
    """A frozen linear layer with a trained A and B beside it."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.a = nn.Linear(inputs, options.rank, bias=False)
        self.b = nn.Linear(options.rank, outputs, bias=False)

    def forward(self, x):
        return self.base(x) + 2.0 * self.b(self.a(x))


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)).to(x.dtype)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before_attention, self.before_mlp = Norm(), Norm()
        self.q, self.k, self.v = Lora(WIDTH, H * D), nn.Linear(WIDTH, K * D), Lora(WIDTH, K * D)
        self.o = nn.Linear(H * D, WIDTH, bias=False)
        self.gate, self.up = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        normed = self.before_attention(x)
        # [B, S, heads × D] -> [B, heads, S, D]
        q, k, v = (part(normed).view(batch, length, -1, D).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, length, H * D))
        normed = self.before_mlp(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


def rotate(x, cos, sin):
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = Norm()
        angles = torch.arange(options.seq)[:, None] * THETA ** (-torch.arange(0, D, 2) / D)
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids, targets):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def build():
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Decoder().to(DTYPE)
    model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
    for lora in (module for module in model.modules() if isinstance(module, Lora)):
        nn.init.zeros_(lora.b.weight.requires_grad_())
        lora.a.weight.requires_grad_()
    return model.train()


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


model = build()
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=DEVICE == "cuda")
loss_of = model if options.eager else torch.compile(model, dynamic=False, fullgraph=True)
tokens = torch.randint(0, VOCABULARY, (options.batch, options.seq + 1), device=DEVICE)
ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def step():
    synchronize()
    start = time.perf_counter()
    loss = loss_of(ids, targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    value = loss.item()
    synchronize()
    return time.perf_counter() - start, value


def print_line(result):
    print(json.dumps(result), flush=True)


first = step()
warm = [step() for _ in range(options.warm_up - 1)]
if DEVICE == "cuda":
    torch.cuda.reset_peak_memory_stats()
trainable = sum(parameter.numel() for parameter in trained)
print_line({"ready_after_first_step_s": first[0], "trainable": trainable, "loss": first[1], "torch": torch.__version__})
for _ in sys.stdin:
    runs = [step() for _ in range(options.steps)]
    seconds = sorted(run[0] for run in runs)[len(runs) // 2]
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None
    count = options.batch * options.seq
    print_line({"tok_s": count / seconds, "ms": 1e3 * seconds, "loss": runs[-1][1], "peak_allocated_gib": peak})
