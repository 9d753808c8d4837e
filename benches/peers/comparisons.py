"""What is measured beside what: shapes, programs, and bars."""
import dataclasses

SHAPES = {
    "qwen2.5-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    # Not quite this program's `tiny`, which is a qwen3: fit to try the driver, not to compare.
    "tiny": {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
# What all shapes have in common, under the names of a `config.json`.
QWEN2 = {
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "sliding_window": 32_768,
    "max_window_layers": 21,
}

TRAIN_CASES = {"cpu": ["1x512"], "cuda": ["8x512", "32x512", "8x2048"], "metal": ["1x512", "4x512"]}
TARGETS = ["q_proj", "v_proj"]

# (what, ours, peer) on a device: how many times better ours is to be, at least.
BARS = {
    "cpu": {
        ("decode", "metal-candle bf16", "llama.cpp bf16"): 1.25,
        ("prefill", "metal-candle f32", "PyTorch f32"): 1.1,
        ("prefill", "metal-candle bf16", "metal-candle f32"): 0.95,
        ("train", "metal-candle", "PyTorch + PEFT f32"): 1.5,
        ("memory of training", "metal-candle", "PyTorch + PEFT f32"): 1 / 0.45,
    },
    "cuda": {
        ("train", "metal-candle", "PyTorch + PEFT compiled bf16"): 1.2,
        ("train", "metal-candle", "mlx-lm bf16"): 1.5,
    },
    "metal": {},
}
# Every single op on a CPU takes no longer than PyTorch's.
OP_BAR = ("PyTorch f32", 1.0)


def bar(device, shape, what, ours, peer):
    """What the ratio is held to, or None. Of the tiny shape nothing is asked."""
    if shape == "tiny":
        return None
    if what.split()[0] in OPS and peer == OP_BAR[0]:
        return OP_BAR[1]
    return BARS[device].get((what, ours, peer))


@dataclasses.dataclass(frozen=True)
class Program:
    """Something to start. Without a peer it is this program."""

    name: str
    peer: str | None = None
    worker: str = ""
    job: dict = dataclasses.field(default_factory=dict)
    # Free memory in GB without which it is not started on a CPU.
    needs_gb: float = 0.0
    # The program of ours that it stands beside.
    beside: str = ""


def inference_programs(device, slow):
    """Ours first, and on a CPU both of ours side by side: they are compared with each other, too. What compiles comes last, so that
    the others are measured when time is short."""
    programs = []
    for dtype in ["bf16", "f32"] if device == "cpu" else ["bf16"]:
        ours = Program(f"metal-candle {dtype}", job={"dtype": dtype})
        peers = []

        def add(name, peer, worker, mode="eager"):
            peers.append(Program(f"{name} {dtype}", peer, worker, {"dtype": dtype, "mode": mode}, beside=ours.name))

        add("llama.cpp", "llama.cpp", "llama.py")
        add("PyTorch", "PyTorch", "torch_models.py")
        # On a CPU both have no product of bf16 matrices to speak of.
        if device != "cpu" or dtype == "f32" or slow:
            add("MLX", "MLX", "mlx_models.py")
            add("candle", "candle", "plain-candle")
        if device == "cuda" or slow:
            add("PyTorch compiled", "PyTorch", "torch_models.py", "compiled")
        programs += [*peers, ours] if device == "cpu" and dtype == "bf16" else [ours, *peers]
    return programs


def training_programs(device, case, slow):
    dtype = "f32" if device == "cpu" else "bf16"
    programs = [Program("metal-candle")]

    def add(name, peer, worker, mode="eager", needs_gb=0.0, **job):
        job = {"dtype": dtype, "mode": mode, **job}
        programs.append(Program(f"{name} {dtype}", peer, worker, job, needs_gb, beside="metal-candle"))

    add("PyTorch + PEFT", "PyTorch", "torch_models.py", needs_gb=6)
    if device == "cuda" or slow:
        # It compiles twice.
        add("PyTorch + PEFT compiled", "PyTorch", "torch_models.py", "compiled", needs_gb=6, **{"warm_up": 2} if device == "cpu" else {})
    if device == "cuda":
        add("PyTorch compiled, without libraries", "PyTorch", "torch_plain.py", "compiled")
    # Without checkpoints its larger cases do not fit a GPU.
    add("mlx-lm", "MLX", "mlx_models.py", needs_gb=5, checkpoint=case in ("32x512", "8x2048"))
    if case in ("1x512", "4x512", "8x512"):
        add("candle", "candle", "plain-candle", needs_gb=15)
    return programs


def names(device, cases):
    """Of all programs that are measured on a device."""
    programs = inference_programs(device, slow=True) + (OP_PROGRAMS if device == "cpu" else [])
    for case in cases:
        programs += training_programs(device, case, slow=True)
    return list(dict.fromkeys(program.name for program in programs))


OP_PROGRAMS = [
    Program("metal-candle"),
    Program("PyTorch f32", "PyTorch", "torch_ops.py", beside="metal-candle"),
    Program("MLX f32", "MLX", "mlx_ops.py", beside="metal-candle"),
]
OPS = [
    "linear",
    "attention",
    "softmax",
    "layer_norm",
    "rms_norm",
    "gated",
    "rope",
    "embedding",
    "cast",
    "lora",
    "lm_head_loss",
    "adamw",
    "top_k",
]
