"""How a worker talks to the driver: it reads one job (JSON, its only argument), prepares, prints a line that it is ready, then
prints one result for each line that it reads. Imports nothing that a peer's environment might lack."""
import json
import os
import statistics
import sys
import time

# What a library prints on its own account must not stand between the results.
RESULTS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def read_job():
    return json.loads(sys.argv[1])


def serve(measure, **about):
    """`measure(request)` returns a result; `about` goes with the line that says that the worker is ready."""
    say({"ready": True, **about})
    for line in sys.stdin:
        say(measure(json.loads(line)) | {"peak_rss_mb": peak_rss_mb()})


def say(result):
    print(json.dumps(result), file=RESULTS, flush=True)


def repeated(job, run):
    """The middle of several times in seconds, of fewer when they take long. `run` returns what it timed itself, or None."""
    times, begin = [], time.perf_counter()
    while not times or (len(times) < job["repetitions"] and time.perf_counter() - begin < job["seconds"]):
        start = time.perf_counter()
        inner = run()
        times.append(inner or time.perf_counter() - start)
    return statistics.median(times)


def speeds(job, prefill, decode):
    """Tokens per second of what the job asks for."""
    result = {}
    if job["prompt"]:
        settle(job, prefill)
        result["prefill"] = job["prompt"] / repeated(job, prefill)
    if job["tokens"]:
        settle(job, decode)
        result["decode"] = job["tokens"] / repeated(job, decode)
    return result


def settle(job, run):
    """A GPU that waited for its turn has lowered its clocks, and what is timed may take only milliseconds."""
    begin = time.perf_counter()
    while job["device"] != "cpu" and time.perf_counter() - begin < 0.3:
        run()


def undisturbed_ms(call):
    """The time of a call that nobody disturbs, as the example `op_speed` takes it: a tenth of the calls are faster."""
    call()
    times, begin = [], time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - begin < 0.3 and len(times) < 1000):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return sorted(times)[len(times) // 10]


def token_ids(count, vocabulary):
    """Token ids, the same every time."""
    return [(index * 2_654_435_761 + 12_345) % vocabulary for index in range(count)]


def peak_rss_mb():
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
