"""Makes golden/training/curve: the loss of 200 steps of LoRA by PyTorch and PEFT, on conversations.

    python golden/make_curve.py                                  # golden/training/curve, in f64
    python golden/make_curve.py --model FOLDER --data FILE.jsonl --adapter FOLDER --out FILE.json --dtype f32

Batches are lines of the file in their order, from the first one again after the last. The loss is on every assistant turn,
without padding; the result holds the tokens and targets too. An adapter folder that is not there yet is made, with PEFT's
initialisation (B is zero). README.md explains the result.
"""

import argparse
import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from make_training import GOLDEN, IGNORED, InDoublePrecision, batch_loss, load_base, load_trained, tidy_config
from tiny_chat import chat_ids

FOLDER = Path("training/curve")
SEED = 4
# Above this, rounding decides the curve and it is no reference. Tests compare to 1e-2.
MOST_NOISE = 1e-3


def main():
    options = parse_options()
    disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    if not options.adapter.exists():
        write_adapter(options)
    lines = read_lines(options)
    batches = [
        [(step * options.batch_size + row) % len(lines) for row in range(options.batch_size)] for step in range(options.steps)
    ]
    started = time.perf_counter()
    losses = train(options, options.dtype, lines, batches)
    print(f"loss {losses[0]:.4f} … {losses[-1]:.4f}, {time.perf_counter() - started:.0f} s", flush=True)
    result = dict(
        model=str(options.model),
        data=str(options.data),
        adapter=str(options.adapter),
        dtype=options.dtype,
        optimizer=optimizer_settings(options),
        lines=[{"ids": ids.tolist(), "targets": targets.tolist()} for ids, targets in lines],
        batches=batches,
        losses=losses,
    )
    if options.dtype == "f64":
        rough = train(options, "f32", lines, batches)
        noise = max(abs(left - right) / left for left, right in zip(losses, rough))
        print(f"f32 differs by {noise:.1e}")
        if noise > MOST_NOISE:
            sys.exit("rounding decides this curve: lower the learning rate")
        result["f32_differs_by"] = noise
    options.out.write_text(compact(result))


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder with a tokenizer and a chat template")
    parser.add_argument("--data", type=Path, help='JSONL, {"messages": [..]} on each line')
    parser.add_argument("--adapter", type=Path, help="PEFT folder to start from")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--rank", type=int, default=8, help="of an adapter that is made; its alpha is twice that")
    parser.add_argument("--dtype", choices=["f64", "f32"], default="f64")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    given = [options.model, options.data, options.adapter, options.out]
    if not any(given):
        os.chdir(GOLDEN)  # so that what is written holds no path of this machine
        options.model, options.data = Path("models/tiny-chat"), FOLDER / "train.jsonl"
        options.adapter, options.out = FOLDER / "adapter", FOLDER / "curve.json"
    elif not all(given):
        parser.error("give all of --model, --data, --adapter and --out, or none")
    return options


def write_adapter(options):
    torch.manual_seed(SEED)
    config = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(load_base(options.model, torch.float32), config).save_pretrained(options.adapter)
    (options.adapter / "README.md").unlink(missing_ok=True)
    tidy_config(options.adapter / "adapter_config.json")


def read_lines(options):
    """Ids and shifted targets of each conversation: what the template writes for the assistant after its header."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    lines = []
    for line in options.data.read_text().splitlines():
        chat = [(message["role"], message["content"]) for message in json.loads(line)["messages"]]
        ids = chat_ids(tokenizer, chat, False)
        targets = torch.full_like(ids, IGNORED)
        for index, (role, _) in enumerate(chat):
            if role == "assistant":
                start = len(chat_ids(tokenizer, chat[:index], True))
                end = len(chat_ids(tokenizer, chat[: index + 1], False))
                targets[start - 1 : end - 1] = ids[start:end]
        lines.append((ids, targets))
    return lines


def optimizer_settings(options):
    return dict(learning_rate=options.learning_rate, betas=[0.9, 0.999], eps=1e-8, weight_decay=options.weight_decay)


def train(options, dtype, lines, batches):
    """The loss of each step, before it is made."""
    kind = {"f64": torch.float64, "f32": torch.float32}[dtype]
    with InDoublePrecision() if dtype == "f64" else nullcontext():
        model, parameters = load_trained(options.model, options.adapter, kind)
        settings = optimizer_settings(options)
        optimizer = torch.optim.AdamW(parameters.values(), lr=settings.pop("learning_rate"), **settings)
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            loss = batch_loss(model, [lines[index] for index in batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def compact(result):
    """JSON with one line for each key, and for each conversation."""
    rows = []
    for key, value in result.items():
        if key == "lines":
            text = "[\n" + ",\n".join(f"  {json.dumps(line)}" for line in value) + "\n ]"
        else:
            text = json.dumps(value)
        rows.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(rows) + "\n}\n"


if __name__ == "__main__":
    main()
