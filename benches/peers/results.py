"""What a run leaves: a JSON file that grows, and a table of it."""
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess

import comparisons
import environments

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
NOTES = [
    "Weights and tokens are random; no tokenizer is measured.",
    "prefill: a prompt from nothing to the choice of the next token. decode: one token at a time from an empty context, forward and greedy choice.",
    "A result is the median of the repetitions within one process, after a warm-up; on a CPU every round starts each program anew.",
    "On a CPU metal-candle computes in f32, whatever the weights' dtype; metal-candle in training is as it is by default: bf16 weights.",
    "llama.cpp is built for the machine it runs on, keeps its cache in f16, and chooses flash attention itself.",
    "PyTorch uses SDPA; compiled: torch.compile with a cache of fixed size, on CUDA with CUDA graphs when it decodes; on a CPU with --slow only.",
    "MLX on a Linux CPU: its wheel's matrix products go to OpenBLAS where the environment was made by --install-peers; its bf16 there, which has no BLAS, with --slow only.",
    "mlx-lm trains through its own `train`, with checkpoints where the case would not fit a GPU otherwise.",
    "candle: candle-transformers as it is, with gemm's AVX-512 kernels; LoRA through its tape.",
    "Peak memory: what the system counts for the process, of which some 20 MB are a floor; on CUDA what the driver counts, context included, above what was in use.",
]


class Results:
    """`peers`, `rounds` and `left_out` of the file; one entry of `rounds` for each comparison."""

    def __init__(self, options):
        self.options, self.versions, self.measured = options, {}, set()
        self.whole = {"settings": settings(options), "peers": [], "rounds": [], "left_out": []}
        if options.append and options.json.exists():
            self.whole = appended(json.loads(options.json.read_text()), self.whole)

    def compare(self, rows, programs, what, shape, key, unit, better):
        """Adds a comparison of every program of others with the one of ours that it stands beside."""
        for program in programs:
            if program.beside:
                self.add(rows, what, shape, (program.beside, program.name), key, unit, better)

    def add(self, rows, what, shape, names, key, unit, better):
        """`rows` holds what each program measured, round by round; a round in which one is missing is not counted."""
        both = [[row.get(name, {}).get(key) for name in names] for row in rows]
        pairs = [pair for pair in both if None not in pair]
        if not pairs:
            return
        ours, peer = names
        bar = comparisons.bar(self.options.device, self.options.shape, what, ours, peer)
        entry = {"comparison": what, "shape": shape, "unit": unit, "better": better, "bar": bar}
        entry |= {"ours": ours, "peer": peer, "pairs": pairs}
        others = [old for old in self.whole["rounds"] if identity(old) != identity(entry)]
        self.whole["rounds"] = [*others, entry]

    def leave_out(self, group, name, why, peer=None):
        entry = {"comparison": group, "program": name, "peer": peer, "why": why}
        kept = [old for old in self.whole["left_out"] if (old["comparison"], old["program"]) != (group, name)]
        self.whole["left_out"] = [*kept, entry]
        print(f"left out: {group}, {name}: {why}", flush=True)

    def found(self, group, name, peer=None, version=""):
        """A program gave a result."""
        if peer:
            self.measured.add(peer)
            # Some workers of a peer need fewer of its libraries than others.
            self.versions[peer] = max(version, self.versions.get(peer, ""), key=len)
        kept = [old for old in self.whole["left_out"] if (old["comparison"], old["program"]) != (group, name)]
        self.whole["left_out"] = kept

    def save(self):
        self.whole["peers"] = self.peers()
        if self.options.json:
            write(self.options.json, self.whole)

    def peers(self):
        peers = {peer["name"]: peer for peer in self.whole["peers"]}
        for peer in self.options.peers:
            if peer in self.measured:
                version, before = self.versions[peer], peers.get(peer, {}).get("version") or ""
                version = before if before.startswith(version) else version
                peers[peer] = {"name": peer, "version": version, "status": "measured"}
            elif peers.get(peer, {}).get("status") != "measured":
                why = [entry["why"] for entry in self.whole["left_out"] if entry["peer"] == peer]
                status = why[0] if why else "no part that was asked for measures it; run without --only"
                peers[peer] = {"name": peer, "version": None, "status": f"missing: {status}"}
        return [peers[name] for name in environments.PEERS if name in peers]


def settings(options):
    git = subprocess.run(["git", "-C", REPOSITORY, "describe", "--always", "--dirty"], capture_output=True, text=True)
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        # Where programs are carried to a machine, whoever carries them says of which commit they are.
        "commit": os.environ.get("METAL_CANDLE_COMMIT") or git.stdout.strip() or None,
        "device": options.device,
        "threads": options.threads,
        "shape": options.shape,
        "rounds": options.rounds,
        "repetitions": options.repetitions,
        "machine": machine(),
        "system": platform.platform(),
        "load": load,
        "notes": NOTES,
    }


def machine():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def appended(old, new):
    """What a file holds, to be added to; only what was measured alike fits together."""
    for key in ("device", "threads", "shape", "machine"):
        if old["settings"][key] != new["settings"][key]:
            raise SystemExit(f"--append: {key} was {old['settings'][key]} and is {new['settings'][key]}; write another file")
    return new | {key: old[key] for key in ("peers", "rounds", "left_out")}


def identity(entry):
    return tuple(entry[key] for key in ("comparison", "shape", "ours", "peer"))


def write(file, result):
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    with beside.open("w") as out:
        out.write(json.dumps(result, indent=1) + "\n")
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)


def print_report(result):
    chosen = result["settings"]
    print(f"{chosen['machine']}, {chosen['device']}, {chosen['threads']} threads, {chosen['system']}, {chosen['date']}, commit {chosen['commit']}\n")
    print("| what | shape | ours | peer | ours | peer | times better, median of rounds (min – max) | bar |")
    print("|---|---|---|---|---|---|---|---|")
    for entry in result["rounds"]:
        print(table_row(entry))
    print("\nPeers:")
    for peer in result["peers"]:
        print(f"- {peer['name']} {peer['version'] or ''}: {peer['status']}")
    for entry in result["left_out"]:
        print(f"- left out: {entry['comparison']}, {entry['program']}: {entry['why']}")
    print("\nSettings:")
    for note in chosen["notes"]:
        print(f"- {note}")


def table_row(entry):
    ours, peer = (statistics.median(pair[side] for pair in entry["pairs"]) for side in (0, 1))
    found = ratios(entry)
    ratio = f"{statistics.median(found):.2f} ({min(found):.2f} – {max(found):.2f})"
    names = f"{entry['comparison']} | {entry['shape']} | {entry['ours']} | {entry['peer']}"
    return f"| {names} | {number(ours)} {entry['unit']} | {number(peer)} {entry['unit']} | {ratio} | {verdict(entry)} |"


def ratios(entry):
    """How many times better ours is, round by round."""
    higher = entry["better"] == "higher"
    return [ours / peer if higher else peer / ours for ours, peer in entry["pairs"]]


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def verdict(entry):
    """What the rounds say of the bar; by the median where they do not agree."""
    bar, found = entry["bar"], ratios(entry)
    if bar is None:
        return "–"
    word = "holds" if statistics.median(found) >= bar else "**missed**"
    agreed = len({ratio >= bar for ratio in found}) == 1
    return f"{bar:.2f}: {word}{'' if agreed else ' by the median'}"
