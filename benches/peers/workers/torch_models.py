"""Prefill, decode and LoRA training in PyTorch with transformers and PEFT, eager or compiled. Weights are random."""
import os
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import protocol
import torch
import transformers

JOB = protocol.read_job()
DEVICE = {"metal": "mps"}.get(JOB["device"], JOB["device"])
DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16}[JOB["dtype"]]
COMPILED = JOB["mode"] == "compiled"


def main():
    torch.set_num_threads(JOB["threads"])
    torch.manual_seed(1)
    versions = f"{torch.__version__}, transformers {transformers.__version__}"
    if JOB["work"] == "train":
        import peft

        training, versions = Training(), f"{versions}, peft {peft.__version__}"
        for _ in range(JOB["warm_up"]):
            training.step()
        protocol.serve(training.measure, version=versions)
        return
    # Compiled calls that are replayed as CUDA graphs have been seen to work without gradients, not in inference mode.
    with torch.no_grad() if COMPILED else torch.inference_mode():
        inference = Compiled() if COMPILED else Eager()
        inference.warm_up()
        protocol.serve(inference.measure, version=versions)


def build():
    config = dict(JOB["config"])
    rope = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    config = transformers.Qwen2Config(**config, rope_parameters=rope, bos_token_id=None, eos_token_id=None)
    with torch.device(DEVICE):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=DTYPE, attn_implementation="sdpa")


def ids(batch, count):
    ids = protocol.token_ids(batch * count, JOB["config"]["vocab_size"])
    return torch.tensor(ids, device=DEVICE).reshape(batch, count)


class Eager:
    def __init__(self):
        self.model, self.prompt = build().eval(), ids(1, JOB["prompt"] or 1)

    def warm_up(self):
        if JOB["prompt"]:
            self.prefill()
        if JOB["tokens"]:
            self.decode()

    def measure(self, _):
        return protocol.speeds(JOB, self.prefill, self.decode) | memory()

    def prefill(self):
        self.model(self.prompt, logits_to_keep=1, use_cache=True).logits.argmax().item()

    def decode(self):
        token, cache, start = self.prompt[:, :1], None, time.perf_counter()
        for _ in range(JOB["tokens"]):
            output = self.model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token, cache = output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values
            token.item()
        return time.perf_counter() - start


class Compiled(Eager):
    """With a cache of fixed size, so that nothing is compiled twice."""

    def __init__(self):
        super().__init__()
        mode = {"mode": "reduce-overhead"} if DEVICE == "cuda" else {}
        self.compiled = torch.compile(self.model.forward, dynamic=False, **mode)
        self.caches = {count: self.cache(count) for count in {JOB["prompt"], JOB["tokens"]} if count}

    def warm_up(self):
        # Compiles; a CUDA graph is recorded by the second call and replayed from the third.
        for _ in range(3):
            super().warm_up()

    def cache(self, count):
        """Made before anything is compiled. A cache that a compiled call makes is compiled for once more when it is there, and
        belongs to that call's CUDA graph, whose next replay overwrites it."""
        config = self.model.config
        cache = transformers.StaticCache(config=config, max_cache_len=count)
        width = config.hidden_size // config.num_attention_heads
        cache.early_initialization(1, config.num_key_value_heads, width, DTYPE, torch.device(DEVICE))
        return cache

    def run(self, tokens, positions, cache):
        if DEVICE == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        keep = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1, "position_ids": positions}
        return self.compiled(input_ids=tokens, **keep).logits[:, -1].argmax(-1, keepdim=True)

    def prefill(self):
        cache, positions = self.caches[JOB["prompt"]], torch.arange(JOB["prompt"], device=DEVICE)[None]
        cache.reset()
        self.run(self.prompt, positions, cache).item()

    def decode(self):
        # Not a slice: its strides are others than those of what follows, for which all would be compiled again.
        cache, token = self.caches[JOB["tokens"]], ids(1, 1)
        cache.reset()
        positions, start = torch.zeros((1, 1), dtype=torch.long, device=DEVICE), time.perf_counter()
        for _ in range(JOB["tokens"]):
            token = self.run(token, positions, cache).clone()
            positions = positions + 1
            token.item()
        return time.perf_counter() - start


class Training:
    def __init__(self):
        from peft import LoraConfig, get_peft_model

        base = build()
        base.config.use_cache = False
        rank = JOB["rank"]
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=JOB["targets"], task_type="CAUSAL_LM")
        model = get_peft_model(base, lora, autocast_adapter_dtype=False).train()
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=DEVICE == "cuda")
        self.model = torch.compile(model, dynamic=False) if COMPILED else model
        self.ids = ids(JOB["batch"], JOB["seq"])

    def measure(self, _):
        # Between measurements the memory is given back, for what others measure on the same device.
        if DEVICE == "cuda":
            protocol.settle(JOB, self.step)
            torch.cuda.reset_peak_memory_stats()
        seconds = protocol.repeated(JOB, self.step)
        result = {"train": JOB["batch"] * JOB["seq"] / seconds, "ms": 1e3 * seconds, **memory()}
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        return result | {"trainable": sum(parameter.numel() for parameter in self.trained)}

    def step(self):
        loss = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        if value != value:
            raise SystemExit("the loss is not a number")
        if DEVICE == "cuda":
            torch.cuda.synchronize()


def memory():
    return {"allocated_gib": torch.cuda.max_memory_allocated() / 2**30} if DEVICE == "cuda" else {}


main()
