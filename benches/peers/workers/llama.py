"""Prefill and decode in llama.cpp, through the C interface that llama-cpp-python carries."""
import json
import os
import pathlib
import subprocess
import sys
import time

import gguf
import llama_cpp
import numpy
import protocol

# Names in GGUF of what a block holds.
BLOCK = {
    "attn_norm": "norm",
    "attn_q": "q",
    "attn_k": "kv",
    "attn_v": "kv",
    "attn_output": "o",
    "ffn_norm": "norm",
    "ffn_gate": "up",
    "ffn_up": "up",
    "ffn_down": "down",
}
BIASED = ("attn_q", "attn_k", "attn_v")


def main():
    job = protocol.read_job()
    if job["work"] == "write":
        write_model(pathlib.Path(job["file"]), job["config"], job["dtype"])
        return
    llama_cpp.llama_log_set(SILENT, None)
    llama_cpp.llama_backend_init()
    runner = Runner(job, model_file(job))
    runner.prefill()
    protocol.serve(runner.measure, version=f"llama-cpp-python {llama_cpp.__version__}")


@llama_cpp.llama_log_callback
def SILENT(_level, _text, _data):
    pass


class Runner:
    def __init__(self, job, file):
        self.job, config = job, job["config"]
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0 if job["device"] == "cpu" else 999
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max(job["prompt"], job["tokens"]) + 32
        params.n_batch = params.n_ubatch = max(job["prompt"], 1)
        params.n_threads = params.n_threads_batch = job["threads"]
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp does not load {file}")
        ids = protocol.token_ids(job["prompt"] or 1, config["vocab_size"])
        self.prompt = (llama_cpp.llama_token * len(ids))(*ids)
        self.vocabulary = config["vocab_size"]

    def measure(self, _):
        if self.job["tokens"]:
            self.decode()
        return protocol.speeds(self.job, self.prefill, self.decode)

    def prefill(self):
        self.forget()
        self.run(self.prompt, len(self.prompt))

    def decode(self):
        self.forget()
        token, start = self.prompt[0], time.perf_counter()
        for _ in range(self.job["tokens"]):
            token = self.run((llama_cpp.llama_token * 1)(token), 1)
        return time.perf_counter() - start

    def forget(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def run(self, tokens, count):
        """The likeliest token after these, of which only the last one's logits are computed."""
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, count)) != 0:
            raise SystemExit("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(numpy.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())


def model_file(job):
    """A GGUF file of the shape with random weights; written once."""
    file = pathlib.Path(job["folder"]) / f"{job['shape']}-{job['dtype']}.gguf"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{file.name}.{os.getpid()}")
        # In a process of its own, whose memory is not this one's.
        write = json.dumps(job | {"work": "write", "file": str(beside)})
        subprocess.run([sys.executable, __file__, write], check=True)
        beside.rename(file)
    return file


def write_model(file, config, dtype):
    width, heads, groups = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    inner, narrow = config["intermediate_size"], width // heads * groups
    shapes = {"norm": (width,), "q": (width, width), "kv": (narrow, width), "o": (width, width)}
    shapes |= {"up": (inner, width), "down": (width, inner)}
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    file_types = {"f32": gguf.LlamaFileType.ALL_F32, "bf16": gguf.LlamaFileType.MOSTLY_BF16}
    writer.add_file_type(file_types[dtype])
    numbers = numpy.random.default_rng(1)

    def add(name, shape):
        if len(shape) == 1:
            writer.add_tensor(name, numpy.ones(shape, numpy.float32))
            return
        values = numbers.standard_normal(shape, numpy.float32) * numpy.float32(0.02)
        if dtype == "f32":
            writer.add_tensor(name, values)
        else:
            halves = (values.view(numpy.uint32) >> 16).astype(numpy.uint16)
            writer.add_tensor(name, halves.view(numpy.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    add("token_embd.weight", (config["vocab_size"], width))
    add("output_norm.weight", (width,))
    for block in range(config["num_hidden_layers"]):
        for name, kind in BLOCK.items():
            add(f"blk.{block}.{name}.weight", shapes[kind])
            if name in BIASED:
                add(f"blk.{block}.{name}.bias", shapes[kind][:1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
