"""Starting what is measured, asking it, and counting the memory that it takes."""
import ctypes
import json
import os
import pathlib
import selectors
import subprocess
import sys
import tempfile
import threading
import time


class Failed(Exception):
    """A program that did not give a result: the end of what it said."""


class OutOfTime(Failed):
    """A program that was not over in time."""


def run_once(command, variables, deadline, watch_device=False):
    """Runs a program to its end; returns what it printed, and the peak of its memory."""
    with Memory(watch_device) as memory, tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=variables)
        with killed_at(process, deadline):
            printed = process.stdout.read()
            usage = wait(process)
        if process.returncode != 0:
            raise failure(complaints, process, deadline)
    return printed, {"peak_rss_mb": megabytes(usage), "device_gib": memory.peak_gib()}


class Worker:
    """A program that prepares, then measures whenever it is asked; see workers/protocol.py."""

    def __init__(self, command, job, variables, deadline, watch_device=False):
        self.complaints = tempfile.TemporaryFile("w+")
        self.memory = Memory(watch_device).__enter__()
        self.process = subprocess.Popen(
            [*command, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            text=True,
            env=variables,
        )
        self.about = self.read(deadline)

    def measure(self, request, deadline):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        result = self.read(deadline)
        # Later readings would count the memory of others as this one's.
        self.memory.__exit__()
        return result | {"device_gib": self.memory.peak_gib()}

    def read(self, deadline):
        line = ""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if selector.select(max(deadline - time.monotonic(), 0.1)):
                line = self.process.stdout.readline()
        if not line:
            if time.monotonic() >= deadline:
                self.process.kill()
            self.process.wait()
            self.memory.__exit__()
            raise failure(self.complaints, self.process, deadline)
        return json.loads(line)

    def stop(self):
        self.memory.__exit__()
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def wait(process):
    if not hasattr(os, "wait4"):
        process.wait()
        return None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


def megabytes(usage):
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10) if usage else None


def failure(complaints, process, deadline):
    if time.monotonic() >= deadline:
        return OutOfTime("not over within the seconds of --budget; give more, or ask for less")
    complaints.seek(0)
    lines = [line.strip() for line in complaints.read().splitlines() if line.strip()]
    return Failed((lines or [f"ended with status {process.returncode}"])[-1][-400:])


class killed_at:
    """Ends a process that is still there at a time."""

    def __init__(self, process, deadline):
        self.timer = threading.Timer(max(deadline - time.monotonic(), 0.0), process.kill)

    def __enter__(self):
        self.timer.start()

    def __exit__(self, *_):
        self.timer.cancel()


def available_gb():
    """Memory that is free on this machine, or None where the system does not say."""
    try:
        text = pathlib.Path("/proc/meminfo").read_text()
    except OSError:
        return None
    return int(text.split("MemAvailable:")[1].split()[0]) / 1e6


class Memory:
    """Watches how much of an NVIDIA device is in use, through the driver's own library, above what was in use before. Counts
    alike for every program; the CUDA context is in it."""

    def __init__(self, watched):
        self.watched, self.readings, self.over, self.thread = watched, [], threading.Event(), None

    def __enter__(self):
        self.before = used_bytes() if self.watched else None
        if self.before is not None:
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.thread.start()
        return self

    def watch(self):
        while not self.over.wait(0.02):
            self.readings.append(used_bytes() or 0)

    def __exit__(self, *_):
        self.over.set()
        if self.thread:
            self.thread.join()

    def peak_gib(self):
        return (max(self.readings) - self.before) / 2**30 if self.readings else None


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
