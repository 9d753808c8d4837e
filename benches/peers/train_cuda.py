"""A LoRA training step of this program beside compiled PyTorch on one NVIDIA GPU, interleaved in one call.

    python benches/peers/train_cuda.py --program target/release/metal-candle          # needs torch and nothing else

Both train rank 8 on q_proj and v_proj of a Qwen2.5-0.5B shape in bf16 with random weights and random tokens, with AdamW.
PyTorch compiles each case once and keeps it; then both are measured in turns, `--rounds` times. Prints JSON lines: one for
each measurement, then one for each case with medians and the ratio of the rounds. Nothing starts that would not be over
before `--budget` seconds, as far as can be told: what is left out says so.

Memory is counted alike for either program: what the driver says is in use on the device, above what was in use before it was
started (`device_gib`; the CUDA context is in it). PyTorch's own count of its tensors stands beside it.
"""
import argparse
import contextlib
import ctypes
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

CASES = ["8x512", "32x512", "8x2048"]
# Of this program: blocks that run again so that 8x512 stays within 4 GiB and the others within 10.
SETTINGS = {"8x512": ["--recompute", "none"], "32x512": ["--recompute", "4"], "8x2048": ["--recompute", "4"]}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--program", help="this program's binary; without it only PyTorch is measured")
parser.add_argument("--cases", default=",".join(CASES), help="batch x tokens, in this order (default %(default)s)")
parser.add_argument("--skip", default="", help="cases to leave out, such as 8x2048,32x512")
parser.add_argument("--without-torch", default="", help="cases to measure without PyTorch, or `all`")
parser.add_argument("--rounds", type=int, default=2)
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--budget", type=float, default=140.0, help="seconds for everything")
parser.add_argument("--compile-seconds", type=float, default=45.0, help="a case is not begun with less time left")
parser.add_argument("--eager", action="store_true", help="PyTorch without compiling")
parser.add_argument("--tiny", action="store_true", help="a small model on the CPU, to try the script")
parser.add_argument("extra", nargs="*", help="after --: further arguments for this program")
options = parser.parse_args()

STARTED = time.monotonic()
OURS, TORCH = "metal-candle", "PyTorch eager" if options.eager else "PyTorch compiled"


def main():
    skipped = options.skip.split(",")
    for case in options.cases.split(","):
        if case in skipped:
            continue
        batch, tokens = (int(number) for number in case.split("x"))
        measure_case(case, batch, tokens)


def remaining():
    return options.budget - (time.monotonic() - STARTED)


def measure_case(case, batch, tokens):
    peer = None
    if options.without_torch != "all" and case not in options.without_torch.split(","):
        if remaining() > options.compile_seconds:
            peer = start_torch(case, batch, tokens)
        else:
            emit(case=case, program=TORCH, left_out=f"{remaining():.0f} s left of {options.budget:.0f}")
    rounds, longest = [], 0.0
    for _ in range(options.rounds):
        if rounds and remaining() < longest:
            emit(case=case, left_out=f"round {len(rounds) + 1}: {remaining():.0f} s left of {options.budget:.0f}")
            break
        started = time.monotonic()
        row = {OURS: ours(case, batch, tokens)} if options.program else {}
        if peer:
            row[TORCH] = peer.measure()
        longest = max(longest, time.monotonic() - started)
        rounds.append({name: result for name, result in row.items() if result})
    if peer:
        peer.stop()
    summarize(case, rounds)


def summarize(case, rounds):
    names = [name for name in (OURS, TORCH) if rounds and all(name in row for row in rounds)]
    for name in names:
        results = [row[name] for row in rounds]
        emit(
            case=case,
            program=name,
            median_tok_s=statistics.median(result["tok_s"] for result in results),
            device_gib=max((result["device_gib"] for result in results if result["device_gib"]), default=None),
        )
    if len(names) == 2:
        ratios = [row[OURS]["tok_s"] / row[TORCH]["tok_s"] for row in rounds]
        elapsed = options.budget - remaining()
        emit(case=case, ratio=statistics.median(ratios), min=min(ratios), max=max(ratios), elapsed_s=elapsed)


def ours(case, batch, tokens):
    sizes = ["--batch", str(batch), "--seq", str(tokens), "--rank", str(options.rank), "--targets", "q_proj,v_proj"]
    shape = ["--shape", "tiny" if options.tiny else "qwen2.5-0.5b"]
    device = ["--device", "cpu" if options.tiny else "cuda:0"]
    with Memory() as memory:
        settings = [*SETTINGS.get(case, []), "--chunk-tokens", "1024"]
        command = [options.program, "bench", "--train", *shape, *sizes, *device, *settings, "--json", *options.extra]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with killed_when_the_time_is_over(process):
            printed, complaints = process.communicate()
    if process.returncode != 0:
        emit(case=case, program=OURS, error=complaints[-600:] or f"status {process.returncode}")
        return None
    report = json.loads(printed[printed.index("{") :])
    result = {"tok_s": report["train"]["tok_s"], "ms": report["train"]["ms"], "device_gib": memory.peak_gib()}
    emit(case=case, program=OURS, **result, report=report)
    return result


@contextlib.contextmanager
def killed_when_the_time_is_over(process):
    timer = threading.Timer(max(remaining(), 0.0), process.kill)
    timer.start()
    yield
    timer.cancel()


def start_torch(case, batch, tokens):
    peer = Peer(case, batch, tokens)
    if peer.read() is None:
        return None
    return peer


class Peer:
    """A PyTorch process that has compiled one case and measures it when it is told to."""

    def __init__(self, case, batch, tokens):
        self.case = case
        script = pathlib.Path(__file__).with_name("torch_train_cuda.py")
        sizes = ["--batch", str(batch), "--seq", str(tokens), "--rank", str(options.rank)]
        flags = ["--eager"] * options.eager + ["--tiny"] * options.tiny
        self.complaints = tempfile.TemporaryFile("w+")
        self.memory = Memory()
        self.memory.__enter__()
        self.process = subprocess.Popen(
            [sys.executable, script, *sizes, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            text=True,
        )

    def measure(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def read(self):
        """The next line it prints, as it is and as a result; None if there is none."""
        with killed_when_the_time_is_over(self.process):
            line = self.process.stdout.readline()
        # Later readings would count this program's memory as PyTorch's.
        self.memory.__exit__()
        if not line:
            self.complaints.seek(0)
            emit(case=self.case, program=TORCH, error=self.complaints.read()[-600:] or "no time left")
            return None
        result = json.loads(line) | {"device_gib": self.memory.peak_gib()}
        emit(case=self.case, program=TORCH, **result)
        return result

    def stop(self):
        self.process.stdin.close()
        self.process.wait(timeout=20)


class Memory:
    """Watches how much of the device is in use, through the driver's own library."""

    def __enter__(self):
        self.readings, self.over = [], threading.Event()
        self.before = used_bytes()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self):
        while not self.over.wait(0.02):
            self.readings.append(used_bytes() or 0)

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def peak_gib(self):
        return (max(self.readings) - self.before) / 2**30 if self.before is not None and self.readings else None


class DeviceMemory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def open_driver():
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle = ctypes.c_void_p()
    if library.nvmlInit_v2() != 0 or library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) != 0:
        return None
    return library, handle


DRIVER = open_driver()


def used_bytes():
    if DRIVER is None:
        return None
    library, handle = DRIVER
    memory = DeviceMemory()
    return memory.used if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0 else None


def emit(**result):
    print(json.dumps(result), flush=True)


main()
