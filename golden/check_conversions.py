"""Sends every adapter of golden/training through this program, and loads what it writes in PEFT, transformers and mlx-lm.

    python golden/check_conversions.py target/release/metal-candle

Each adapter is written in both formats, and merged into its model. What comes out has to give the logits that PEFT or mlx-lm
gave for the adapter before. PEFT's form and the merged models are checked where PEFT is installed, mlx-lm's form where mlx-lm
is; run it with either Python to see both. The exit status is 1 if something differs.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from check_adapters import compare, merged, mlx, peft, read_prompts

GOLDEN = Path(__file__).resolve().parent
TOLERANCE = 1e-5
# mlx-lm gives gemma2 no sliding window: only positions that see all before them are the same.
GEMMA2_WINDOW = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="the binary of metal-candle")
    program = parser.parse_args().program.resolve()
    kinds = {"peft": ("peft", peft), "merged": ("peft", merged), "mlx": ("mlx_lm", mlx)}
    kinds = {kind: load for kind, (package, load) in kinds.items() if importlib.util.find_spec(package)}
    if not kinds:
        sys.exit("neither PEFT nor mlx-lm is installed here")
    passed = True
    for folder in sorted((GOLDEN / "training").iterdir()):
        if (folder / "adapter_config.json").exists():
            for kind, load in kinds.items():
                passed &= check(program, folder, kind, load)
    sys.exit(0 if passed else 1)


def check(program, folder, kind, load):
    config = json.loads((folder / "adapter_config.json").read_text())
    base = GOLDEN / (config.get("base_model_name_or_path") or config["model"])
    with tempfile.TemporaryDirectory() as place:
        written = Path(place) / "written"
        if kind == "merged":
            command = ["merge", "--model", base, "--adapter", folder, "--output", written]
        else:
            command = ["convert", folder, written, "--format", kind, "--model", base]
        run = subprocess.run([program, "adapter", *command], capture_output=True, text=True)
        if run.returncode != 0:
            print(f"{folder.name} as {kind}: {run.stderr.strip()}")
            return False
        forward = load(base, written)
        prompts = read_prompts(folder / "expected.safetensors")
        if kind == "mlx" and base.name == "gemma2":
            prompts = [(ids[:GEMMA2_WINDOW], logits[:GEMMA2_WINDOW]) for ids, logits in prompts]
        name = f"{folder.name} as {kind}"
        results = [compare(name, forward, index, *prompt, TOLERANCE) for index, prompt in enumerate(prompts)]
        return all(results)


if __name__ == "__main__":
    main()
