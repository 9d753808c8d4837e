"""Where the peers are: one folder with a pinned environment for each, made by `--install-peers`, or what `--python` names."""
import hashlib
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
PEERS = ["llama.cpp", "PyTorch", "MLX", "candle"]


class Missing(Exception):
    """A peer that is not here: why, and what to do."""


def default_folder():
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "metal-candle" / "peers"


class Environments:
    def __init__(self, folder, device, pythons):
        self.folder, self.device = folder, device
        unknown = set(pythons) - set(PEERS)
        if unknown:
            raise SystemExit(f"--python: no peer {', '.join(sorted(unknown))}; known: {', '.join(PEERS)}")
        self.file = folder / f"pythons-{device}.json"
        named = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.pythons = named | pythons

    def remember(self):
        """Later runs use the Pythons that were named, too."""
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.file.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(self.pythons))
        beside.replace(self.file)

    def command(self, peer, worker):
        """How a worker of a peer is started."""
        if worker == "plain-candle":
            return [str(self.candle_program())]
        return [str(self.python(peer)), str(HERE / "workers" / worker)]

    def variables(self, peer):
        """What a peer needs in its environment, besides the number of threads."""
        blas = self.at(peer) / "blas.so"
        return {"LD_PRELOAD": str(blas)} if peer == "MLX" and blas.exists() and peer not in self.pythons else {}

    def python(self, peer):
        if peer in self.pythons:
            return self.pythons[peer]
        python = self.at(peer) / "bin" / "python"
        if not self.installed(peer):
            raise Missing(f"not installed; {self.remedy(peer)}")
        return python

    def candle_program(self):
        program = self.at("candle") / "release" / "plain-candle"
        if "candle" in self.pythons:
            return self.pythons["candle"]
        if not program.exists():
            raise Missing(f"not built; {self.remedy('candle')}")
        return program

    def remedy(self, peer):
        what = "a program built from benches/peers/plain-candle" if peer == "candle" else "a Python that has it"
        return f"`suite.py --install-peers {peer} --device {self.device}`, or --python {peer}=PATH of {what}"

    def at(self, peer):
        return self.folder / f"{peer.lower().replace('.', '-')}-{self.device}"

    def installed(self, peer):
        stamp = self.at(peer) / "installed.json"
        return stamp.exists() and json.loads(stamp.read_text()) == self.stamp(peer)

    def stamp(self, peer):
        texts = "".join(file.read_text() for file in self.requirements(peer)) + json.dumps(self.build_variables(peer))
        return {"requirements": hashlib.sha256(texts.encode()).hexdigest(), "python": platform.python_version()}

    def requirements(self, peer):
        """Files of which one is to be installed, best first."""
        stem = {"llama.cpp": "llama-cpp", "PyTorch": "torch", "MLX": "mlx"}[peer]
        fit = HERE / "requirements" / f"{stem}-{platform.system().lower()}-{self.device}.txt"
        general = HERE / "requirements" / f"{stem}.txt"
        if not fit.exists():
            return [general]
        # PyPI's PyTorch is larger, but does the same; MLX's files are of different packages.
        return [fit, general] if peer == "PyTorch" else [fit]

    def build_variables(self, peer):
        if peer == "llama.cpp" and self.device == "cuda":
            return {"CMAKE_ARGS": "-DGGML_CUDA=on"}
        return {}

    def install(self, peer):
        """Makes the environment of a peer, unless it is there; returns whether it is now."""
        if peer in self.pythons or (peer != "candle" and self.installed(peer)):
            print(f"{peer}: already there, {self.pythons.get(peer) or self.at(peer)}", flush=True)
            return True
        if peer == "candle":
            return self.build_candle()
        for requirements in self.requirements(peer):
            if self.fill(peer, requirements):
                return True
        print(f"{peer}: left out of measurements until this works; or name one that is there: --install-peers {peer} --python {peer}=PATH")
        return False

    def fill(self, peer, requirements):
        folder = self.at(peer)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        python, uv = folder / "bin" / "python", shutil.which("uv")
        if uv:
            make = [[uv, "venv", "--python", sys.executable, folder]]
            fill = [uv, "pip", "install", "--python", python, "--index-strategy", "unsafe-best-match", "-r", requirements]
        else:
            make = [[sys.executable, "-m", "venv", folder]]
            fill = [python, "-m", "pip", "install", "-r", requirements]
        steps = [*make, fill, *self.blas_steps(peer, folder)]
        print(f"{peer}: installing {requirements.relative_to(HERE)} into {folder}", flush=True)
        if not run_steps(steps, folder.with_suffix(".log"), os.environ | self.build_variables(peer)):
            return False
        (folder / "installed.json").write_text(json.dumps(self.stamp(peer)))
        return True

    def blas_steps(self, peer, folder):
        """MLX's wheel for Linux carries the reference BLAS; its matrix products go to OpenBLAS instead, some 30 times as fast."""
        if peer != "MLX" or self.device != "cpu" or platform.system() != "Linux":
            return []
        library = "import scipy_openblas32 as blas; print(blas.get_lib_dir())"
        compiler = f'lib=$("{folder}/bin/python" -c "{library}") && cc -shared -fPIC -O2 -o "{folder}/blas.so" '
        compiler += f'"{HERE}/workers/openblas.c" -L"$lib" -lscipy_openblas -Wl,-rpath,"$lib"'
        return [["sh", "-c", compiler]]

    def build_candle(self):
        cargo = shutil.which("cargo")
        if cargo is None:
            print("candle: cargo is not in PATH; install Rust to build benches/peers/plain-candle")
            return False
        features = [] if self.device == "cpu" else ["--features", self.device]
        manifest = HERE / "plain-candle" / "Cargo.toml"
        build = [cargo, "build", "--release", "--locked", "--manifest-path", manifest, *features]
        print(f"candle: building benches/peers/plain-candle into {self.at('candle')}", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        variables = os.environ | {"CARGO_TARGET_DIR": str(self.at("candle"))}
        return run_steps([build], self.folder / "candle.log", variables)


def run_steps(steps, log, variables):
    """Runs commands one after another; says every ten seconds what they print last."""
    began = time.monotonic()
    with log.open("w") as out:
        for step in steps:
            process = subprocess.Popen(list(map(str, step)), stdout=out, stderr=subprocess.STDOUT, env=variables)
            while process.poll() is None:
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    lines = log.read_text(errors="replace").split("\n")
                    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
                    print(f"  {time.monotonic() - began:.0f} s: {last[:110]}", flush=True)
            if process.returncode != 0:
                print(f"  failed: {' '.join(map(str, step))}\n  the end of {log}:")
                print("\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-12:]))
                return False
    print(f"  done in {time.monotonic() - began:.0f} s", flush=True)
    return True
