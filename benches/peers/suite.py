"""This program beside others, on the same shapes, in one run, interleaved round by round.

    python3 benches/peers/suite.py --install-peers              # pinned environments, once
    cargo build --release -p metal-candle-cli
    cargo build --release -p metal-candle-kernels --example op_speed
    python3 benches/peers/suite.py --json peers.json            # everything: a good half hour on two cores
    python3 benches/peers/suite.py --only train --peers PyTorch --json peers.json --append
    python3 benches/peers/suite.py --device cuda --only train --python PyTorch=python3
    python3 benches/peers/suite.py --report peers.json          # measures nothing

Every round measures each program once, in turning order; a ratio is taken within a round: how many times better ours is. A peer that is
not here is left out, and the results say why and what to do. README.md has more.
"""
import argparse
import json
import os
import pathlib
import sys
import time

import comparisons
import environments
import processes
import results

PARTS = ["decode", "prefill", "train", "ops"]
THREAD_VARIABLES = ["OMP", "MKL", "OPENBLAS", "RAYON", "VECLIB"]


def main():
    options = arguments()
    if options.report:
        results.print_report(json.loads(options.report.read_text()))
        return
    places = environments.Environments(options.peers_dir, options.device, options.python)
    if options.install_peers is not None:
        places.remember()
        wanted = options.install_peers or environments.PEERS
        there = [places.install(peer) for peer in wanted]
        sys.exit(0 if all(there) else 1)
    Suite(options, places).run()


def arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda", "metal"], default="cpu")
    parser.add_argument("--only", type=listed(PARTS), default=PARTS, metavar="PARTS", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--peers", type=listed(environments.PEERS), default=environments.PEERS, metavar="PEERS", help=f"some of {','.join(environments.PEERS)}")
    parser.add_argument("--without", action="append", default=[], metavar="PROGRAM", help="leave out one program, such as 'PyTorch compiled bf16', and say so")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=3, help="of a measurement within one process (default 3)")
    parser.add_argument("--seconds", type=float, default=6.0, help="after which a measurement is not repeated (default 6)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--shape", choices=comparisons.SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--cases", help="sequences x tokens of a training step, such as 8x512,32x512")
    parser.add_argument("--ops", type=listed(comparisons.OPS), default=comparisons.OPS, metavar="OPS", help="some of the ops")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", results.REPOSITORY / "target")) / "release"
    parser.add_argument("--program", type=pathlib.Path, default=target / "metal-candle")
    parser.add_argument("--op-speed", type=pathlib.Path, default=target / "examples" / "op_speed")
    parser.add_argument("--slow", action="store_true", help="on a CPU also what takes minutes each round: PyTorch compiled; MLX and candle in bf16")
    parser.add_argument("--budget", type=float, default=6 * 3600.0, help="seconds for everything; what is not over by then is left out")
    parser.add_argument("--json", type=pathlib.Path, help="write everything measured to this file")
    parser.add_argument("--append", action="store_true", help="add to what the file of --json holds already")
    parser.add_argument("--report", type=pathlib.Path, metavar="FILE", help="print the table of such a file")
    parser.add_argument("--peers-dir", type=pathlib.Path, default=environments.default_folder())
    parser.add_argument("--install-peers", nargs="*", choices=environments.PEERS, metavar="PEER", help="make the environments of these, or of all")
    parser.add_argument("--python", type=named_path, action="append", default=[], metavar="PEER=PATH", help="use this Python for a peer (of candle: its program); with --install-peers, also in later runs")
    options = parser.parse_args(words)
    options.python = dict(options.python)
    options.cases = options.cases.split(",") if options.cases else comparisons.TRAIN_CASES[options.device]
    known = comparisons.names(options.device, options.cases)
    if unknown := [name for name in options.without if name not in known]:
        parser.error(f"--without: unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    if options.append and not options.json:
        parser.error("--append needs --json FILE")
    return options


def listed(known):
    def parse(text):
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    return parse


def named_path(text):
    peer, equals, path = text.partition("=")
    if not equals or not path:
        raise argparse.ArgumentTypeError(f"`{text}` is not PEER=PATH")
    # Not resolved: the python of an environment is a link out of it.
    return peer, os.path.abspath(path) if os.sep in path else path


class Suite:
    def __init__(self, options, places):
        self.options, self.places = options, places
        self.deadline, self.failed = time.monotonic() + options.budget, False
        # Compiling again for every round would take most of the time on a GPU; on a CPU two would not fit the memory.
        self.results, self.workers, self.kept = results.Results(options), {}, options.device == "cuda"
        self.variables = os.environ | {f"{name}_NUM_THREADS": str(options.threads) for name in THREAD_VARIABLES}
        self.variables |= {"VECLIB_MAXIMUM_THREADS": str(options.threads), "METAL_CANDLE_THREADS": str(options.threads)}

    def run(self):
        options = self.options
        if {"decode", "prefill"} & set(options.only):
            self.measure_inference()
        if "train" in options.only:
            for case in options.cases:
                self.measure_training(case)
        if "ops" in options.only:
            self.measure_ops()
        self.results.save()
        print()
        results.print_report(self.results.whole)
        if self.failed:
            sys.exit("metal-candle itself was left out of something, see above")

    # The groups.

    def measure_inference(self):
        options = self.options
        work = {"work": "infer", "prompt": options.prompt, "tokens": options.tokens}
        for part, key in (("prefill", "prompt"), ("decode", "tokens")):
            if part not in options.only:
                work[key] = 0
        programs = self.chosen(comparisons.inference_programs(options.device, options.slow))
        shape = f"{options.shape}, {options.device}"
        context = {"prefill": f"{options.prompt} tokens", "decode": f"{options.tokens} tokens from an empty context"}
        for rows in self.interleaved("inference", programs, work):
            for part in ("prefill", "decode"):
                if part in options.only:
                    measure = f"{shape}, {context[part]}", part, "tok/s", "higher"
                    self.results.compare(rows, programs, part, *measure)
                    self.results.add(rows, part, measure[0], ("metal-candle bf16", "metal-candle f32"), *measure[1:])
            self.compare_memory(rows, programs, "memory of inference", f"{shape}, {options.prompt} tokens and {options.tokens}")
            self.results.save()

    def measure_training(self, case):
        options = self.options
        batch, seq = (int(number) for number in case.split("x"))
        # Until a GPU has settled.
        warm_up = 1 if options.device == "cpu" else 4
        work = {"work": "train", "batch": batch, "seq": seq, "warm_up": warm_up}
        programs = self.chosen(comparisons.training_programs(options.device, case, options.slow))
        shape = f"{options.shape}, {options.device}, {case.replace('x', ' x ')} tokens, LoRA rank 8 on q_proj and v_proj"
        for rows in self.interleaved(f"train {case}", programs, work):
            self.results.compare(rows, programs, "train", shape, "train", "tok/s", "higher")
            self.compare_memory(rows, programs, "memory of training", shape)
            self.results.save()

    def measure_ops(self):
        if self.options.device != "cpu":
            self.results.leave_out("ops", "metal-candle", "single ops are compared on a CPU; on a GPU use the example `gpu_speed` of crates/kernels")
            return
        programs = self.chosen(comparisons.OP_PROGRAMS)
        for op in self.options.ops:
            rows, cases = self.interleaved_op(op, programs)
            for case, name in cases:
                self.results.compare(rows, programs, f"{op} {name}", case, f"{case} {name}", "ms", "lower")
            self.results.save()
        self.stop_workers()

    def compare_memory(self, rows, programs, what, shape):
        """On Metal no count of the system is alike for all programs."""
        key, unit = {"cuda": ("device_gib", "GiB"), "cpu": ("peak_rss_mb", "MB"), "metal": (None, None)}[self.options.device]
        self.results.compare(rows, programs, what, shape, key, unit, "lower")

    def chosen(self, programs):
        """Those of the peers that were asked for, and of ours those that one of them stands beside."""
        others = [program for program in programs if program.peer in self.options.peers]
        return [program for program in programs if program in others or program.name in {other.beside for other in others}]

    def without(self, group, programs):
        """The names of those that are left out by name."""
        named = [program for program in programs if program.name in self.options.without]
        for program in named:
            self.results.leave_out(group, program.name, "by --without", program.peer)
        return {program.name for program in named}

    # Rounds.

    def interleaved(self, group, programs, work):
        """After each round: the rows of all rounds until then, each with what each program measured."""
        rows, gone, ours = [], self.without(group, programs), {program.name for program in programs if program.peer is None}
        for number in range(self.options.rounds):
            row = {}
            # Whoever is first in one round is last in the next: a drift of the machine hits all alike.
            for program in programs if number % 2 == 0 else reversed(programs):
                # Without ours there is nothing to compare with.
                if program.name not in gone and not ours <= gone:
                    began = time.monotonic()
                    try:
                        row[program.name] = self.measure(group, program, work)
                    except (environments.Missing, processes.Failed) as error:
                        gone.add(program.name)
                        self.failed |= program.peer is None and not isinstance(error, processes.OutOfTime)
                        after = f" (after {number} rounds)" if number else ""
                        self.results.leave_out(group, program.name, f"{error}{after}", program.peer)
                        continue
                    self.say(group, number, program.name, row[program.name], time.monotonic() - began)
            rows.append(row)
            yield rows
        self.stop_workers()

    def measure(self, group, program, work):
        if time.monotonic() >= self.deadline:
            raise processes.OutOfTime("the seconds of --budget are over; give more, or ask for less")
        time.sleep(0.5)  # Threads of who was before watch for work for a while.
        if program.peer is None:
            result = self.measure_ours(program, work)
            self.results.found(group, program.name)
            return result
        free = processes.available_gb() if self.options.device == "cpu" else None
        if program.needs_gb and free is not None and free < program.needs_gb and self.options.shape != "tiny":
            raise processes.Failed(f"{free:.0f} GB of memory are free, it takes {program.needs_gb:.0f}; end other programs first")
        worker = self.workers.get(program.name) or self.start(program, work)
        if self.kept:
            self.workers[program.name] = worker
        try:
            result = worker.measure({}, self.deadline)
        except processes.Failed:
            self.workers.pop(program.name, None)
            raise
        if not self.kept:
            worker.stop()
        self.results.found(group, program.name, program.peer, worker.about["version"])
        return result

    def start(self, program, work):
        options = self.options
        command = self.places.command(program.peer, program.worker)
        if not pathlib.Path(command[0]).exists() and os.sep in str(command[0]):
            raise environments.Missing(f"there is no {command[0]}; {self.places.remedy(program.peer)}")
        job = {"prompt": 0, "tokens": 0, "batch": 0, "seq": 0, "rank": 8, "targets": comparisons.TARGETS, "warm_up": 1}
        job |= {"device": options.device, "threads": options.threads, "shape": options.shape}
        job |= {"config": comparisons.QWEN2 | comparisons.SHAPES[options.shape], "folder": str(options.peers_dir / "models")}
        job |= {"repetitions": options.repetitions, "seconds": options.seconds, **work, **program.job}
        variables = self.variables | self.places.variables(program.peer)
        try:
            return processes.Worker(command, job, variables, self.deadline, options.device == "cuda")
        except processes.Failed as error:
            if "ModuleNotFoundError" in str(error):
                raise environments.Missing(f"{error}; {self.places.remedy(program.peer)}") from error
            raise

    def measure_ours(self, program, work):
        options = self.options
        self.require(options.program, "cargo build --release -p metal-candle-cli")
        device = {"cuda": "cuda:0"}.get(options.device, options.device)
        command = [options.program, "bench", "--shape", options.shape, "--device", device, "--json"]
        command += ["--threads", str(options.threads), "--repetitions", str(options.repetitions)]
        if work["work"] == "train":
            command += ["--train", "--batch", str(work["batch"]), "--seq", str(work["seq"]), *self.gpu_settings(work)]
        else:
            sizes = ["--prompt", str(work["prompt"] or 1), "--tokens", str(work["tokens"] or 1)]
            command += ["--dtype", program.job["dtype"], *sizes]
        printed, memory = processes.run_once(command, self.variables, self.deadline, options.device == "cuda")
        found = json.loads(printed)
        if work["work"] == "train":
            return {"train": found["train"]["tok_s"], "ms": found["train"]["ms"], **memory}
        return {part: found[part]["tok_s"] for part in ("prefill", "decode")} | memory

    def gpu_settings(self, work):
        """Blocks that run again, so that 8x512 stays within 4 GiB and larger cases within 10."""
        if self.options.device == "cpu":
            return []
        large = work["batch"] * work["seq"] > 8 * 512
        return ["--recompute", "mlps:5" if large else "none", "--chunk-tokens", "1024"]

    def interleaved_op(self, op, programs):
        """As `interleaved`; in each round a case is measured by all programs before the next."""
        self.require(self.options.op_speed, "cargo build --release -p metal-candle-kernels --example op_speed")
        rows, cases, gone = [], [], self.without(f"ops, {op}", programs)
        for number in range(self.options.rounds):
            time.sleep(0.5)
            printed, _ = processes.run_once([self.options.op_speed, op], self.variables, self.deadline)
            lines = [json.loads(line) for line in printed.splitlines()]
            cases = [(line["case"], line["pass"]) for line in lines]
            row = {"metal-candle": {f"{line['case']} {line['pass']}": line["ms"] for line in lines}}
            for program in programs:
                if program.peer is None or program.name in gone:
                    continue
                try:
                    if program.name not in self.workers:
                        self.workers[program.name] = self.start(program, {"work": "ops"})
                    worker = self.workers[program.name]
                    row[program.name] = self.ask_op(worker, lines)
                    self.results.found(f"ops, {op}", program.name, program.peer, worker.about["version"])
                except (environments.Missing, processes.Failed) as error:
                    gone.add(program.name)
                    self.workers.pop(program.name, None)
                    self.results.leave_out(f"ops, {op}", program.name, str(error), program.peer)
            rows.append(row)
            print(f"round {number + 1}/{self.options.rounds}  {op}: {len(lines)} cases", flush=True)
        return rows, cases

    def ask_op(self, worker, lines):
        times = {}
        for line in lines:
            request = {key: line[key] for key in ("op", "case", "pass")}
            ms = worker.measure(request, self.deadline)["ms"]
            if ms is not None:
                times[f"{line['case']} {line['pass']}"] = ms
        return times

    def stop_workers(self):
        for worker in self.workers.values():
            worker.stop()
        self.workers = {}

    def require(self, program, how):
        if not program.exists():
            raise SystemExit(f"there is no {program}; build it with `{how}`, or name it with --program or --op-speed")

    def say(self, group, number, name, result, seconds):
        texts = [f"{key} {value:.1f}" for key, value in result.items() if isinstance(value, float)]
        print(f"round {number + 1}/{self.options.rounds}  {group}, {name}: {', '.join(texts)}  ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
