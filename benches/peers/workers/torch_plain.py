"""LoRA training steps of Qwen2 in PyTorch alone, compiled. Needs nothing but torch: the model is written out here, without what
transformers and PEFT add for other models. Weights are random.

B: sequences, S: tokens of each, H: heads, K: key/value heads, D: width of a head.
"""
import protocol
import torch
from torch import nn
from torch.nn import functional as F

JOB = protocol.read_job()
CONFIG = JOB["config"]
VOCABULARY, WIDTH, INNER = CONFIG["vocab_size"], CONFIG["hidden_size"], CONFIG["intermediate_size"]
LAYERS, H, K = CONFIG["num_hidden_layers"], CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
D = WIDTH // H
THETA, EPSILON = CONFIG["rope_theta"], CONFIG["rms_norm_eps"]
DEVICE = {"metal": "mps"}.get(JOB["device"], JOB["device"])
DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16}[JOB["dtype"]]


def main():
    torch.set_num_threads(JOB["threads"])
    training = Training()
    for _ in range(JOB["warm_up"]):
        training.step()
    protocol.serve(training.measure, version=torch.__version__)


class Training:
    def __init__(self):
        model = build()
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=DEVICE == "cuda")
        self.loss_of = torch.compile(model, dynamic=False, fullgraph=True) if JOB["mode"] == "compiled" else model
        ids = protocol.token_ids(JOB["batch"] * (JOB["seq"] + 1), VOCABULARY)
        tokens = torch.tensor(ids, device=DEVICE).reshape(JOB["batch"], -1)
        self.ids, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def measure(self, _):
        # Between measurements the memory is given back, for what others measure on the same device.
        if DEVICE == "cuda":
            protocol.settle(JOB, self.step)
            torch.cuda.reset_peak_memory_stats()
        seconds = protocol.repeated(JOB, self.step)
        result = {"train": JOB["batch"] * JOB["seq"] / seconds, "ms": 1e3 * seconds}
        if DEVICE == "cuda":
            result["allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.empty_cache()
        return result | {"trainable": sum(parameter.numel() for parameter in self.trained)}

    def step(self):
        loss = self.loss_of(self.ids, self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()
        if DEVICE == "cuda":
            torch.cuda.synchronize()


class Lora(nn.Module):
    """A frozen linear layer with a trained A and B beside it."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.a = nn.Linear(inputs, JOB["rank"], bias=False)
        self.b = nn.Linear(JOB["rank"], outputs, bias=False)

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
        angles = torch.arange(JOB["seq"])[:, None] * THETA ** (-torch.arange(0, D, 2) / D)
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


main()
