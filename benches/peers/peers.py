"""The measurement of `benches/peers/run`: all libraries on the same texts and the same table, in alternating rounds."""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import texts
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests/real"))
from harness import BINARY, Checkpoint, Server  # noqa: E402

KINDS = ("sentences", "documents")
CHECKED = 48


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--tables", nargs="+", required=True)
    parser.add_argument("--only", nargs="+", default=[])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    import django

    texts.write(Path(django.__file__).parent, args.work)
    load_before = os.getloadavg()[0]
    result = {"machine": machine(), "date": date.today().isoformat(), "rounds": args.rounds, "texts": describe(args.work)}
    result["text to vector"] = {table: text_to_vector(args, table) for table in args.tables}
    result["http"] = {} if args.only else {table: http(args, table) for table in args.tables}
    result["load average"] = [load_before, os.getloadavg()[0]]
    (args.work / "peers.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(markdown(result))
    print(f"JSON: {args.work / 'peers.json'}", file=sys.stderr)


def machine():
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "system": platform.platform(), "python": platform.python_version(), "commit": commit}


def describe(work):
    lines = {kind: (work / f"{kind}.txt").read_bytes().splitlines() for kind in KINDS}
    return {kind: {"texts": len(x), "mean bytes": round(statistics.mean(map(len, x)))} for kind, x in lines.items()}


# Text to vector


def text_to_vector(args, table):
    checkpoint = args.real / table
    model = export(checkpoint, args.work / f"{table}-model2vec")
    python = [sys.executable, HERE / "python_peers.py"]
    cargo = args.work / "cargo/release"
    commands = {
        "embedding-server (library)": [cargo / "peer-ours", checkpoint],
        "embedding-server (Python)": [*python, "embedding-server", checkpoint],
        "model2vec-rs": [cargo / "peer-model2vec", model],
        "torch EmbeddingBag + tokenizers": [*python, "embedding-bag", model],
        "sentence-transformers StaticEmbedding": [*python, "sentence-transformers", model],
        "model2vec (Python)": [*python, "model2vec", model],
    }
    if args.only:
        commands = {name: command for name, command in commands.items() if any(word in name for word in args.only)}
    check(commands, args.work)
    if table == args.tables[0] and not args.only:
        commands["wordllama (its own table, 256 dims)"] = [*python, "wordllama", "-"]
    cores = len(os.sched_getaffinity(0))
    runs = {name: {threads: [] for threads in sorted({1, cores})} for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            for threads, seen in runs[name].items():
                seen.append(run(command, threads, [args.work / f"{kind}.txt" for kind in KINDS]))
                print(f"{table}: {name}, {threads} threads: {seen[-1]}", file=sys.stderr)
    return {
        name: {
            f"{'one core' if threads == 1 else 'all cores'}, {kind}": spread([1e6 * r[i] for r in seen])
            for threads, seen in by_threads.items()
            for i, kind in enumerate(KINDS)
        }
        for name, by_threads in runs.items()
    }


def export(checkpoint, directory):
    """Writes the checkpoint as a Model2Vec directory, with normalized rows in f32, and returns its path."""
    if not (directory / "config.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        c = Checkpoint(checkpoint)
        # model2vec needs a row for each token. Gemma 3 has a token without a row, which occurs in no text here.
        tokens = max(c.tokenizer.get_vocab().values()) + 1
        rows = np.zeros((tokens, c.hidden), dtype=np.float32)
        for i in range(0, min(tokens, c.rows), 4096):
            ids = np.arange(i, min(i + 4096, tokens, c.rows))
            rows[ids] = c.hidden_states(ids)
        save_file({"embeddings": rows}, directory / "model.safetensors")
        shutil.copy(checkpoint / "tokenizer.json", directory)
        (directory / "config.json").write_text(json.dumps({"model_type": "model2vec", "hidden_dim": c.hidden, "normalize": True}))
    return directory


def environment(threads):
    e = {k: v for k, v in os.environ.items() if k != "VECTORS"}
    e |= {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    return e | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def run(command, threads, files, extra=None):
    """Runs one new process and returns its seconds per text, one number per file. On one core this is CPU time, which
    excludes waiting for a busy core, but not the effect of other load on the caches. On all cores it is wall-clock time."""
    pin = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if threads == 1 else []
    line = [*pin, *map(str, command), str(threads), *map(str, files)]
    done = subprocess.run(line, env=environment(threads) | (extra or {}), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}: exit status {done.returncode}\n{done.stderr}")
    return [float(line.split()[threads == 1]) for line in done.stdout.splitlines()]


def check(commands, work):
    """Checks that all libraries give the same vectors, before anything is timed."""
    with tempfile.TemporaryDirectory() as t:
        sample, vectors = Path(t, "sample.txt"), Path(t, "vectors")
        lines = [x for kind in KINDS for x in (work / f"{kind}.txt").read_text(encoding="utf-8").splitlines()[:CHECKED]]
        sample.write_text("\n".join(lines) + "\n", encoding="utf-8")
        first = None
        for name, command in commands.items():
            run(command, 1, [sample], {"VECTORS": str(vectors)})
            found = np.fromfile(vectors, dtype="<f4").reshape(len(lines), -1).astype(np.float64)
            found /= np.linalg.norm(found, axis=1, keepdims=True)
            first = found if first is None else first
            worst = (found * first).sum(axis=1).min()
            print(f"{name}: smallest cosine {worst:.7f}", file=sys.stderr)
            if not worst > 0.9999:
                raise SystemExit(f"{name} gives other vectors (cosine {worst}), so it does not do the same work. Nothing is measured")


# HTTP


def http(args, table):
    checkpoint = args.real / table
    rows = {}
    with Server({"text-embedding-3-small": checkpoint}) as ours, prototype(checkpoint) as other:
        text = "Enter a valid value."
        a, b = (np.array(post(h, text), dtype=np.float64) for h in (ours.host, other))
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        print(f"prototype: cosine {cosine:.7f}", file=sys.stderr)
        if not cosine > 0.999:  # transformers pools in bf16, the type that the checkpoint is stored in
            raise SystemExit(f"the prototype returns other vectors (cosine {cosine})")
        cases = {
            f"{name}, {connections} connection{'s' * (connections > 1)}": (host, connections, encoding)
            for connections in (1, 64)
            for name, host, encoding in (
                ("this server, base64", ours.host, "base64"),
                ("this server, float", ours.host, "float"),
                ("the prototype, float", other, "float"),
            )
        }
        for _ in range(args.rounds):
            for name, case in cases.items():
                rows.setdefault(name, []).append(wrk(args, *case))
                print(f"{table}: {name}: {rows[name][-1]}", file=sys.stderr)
    return {name: {key: spread([r[key] for r in seen]) for key in seen[0]} for name, seen in rows.items()}


@contextlib.contextmanager
def prototype(checkpoint):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, HERE / "prototype_server.py", checkpoint, str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ, HF_HUB_OFFLINE="1"))
        try:
            end = time.monotonic() + 180
            while time.monotonic() < end and process.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            else:
                raise SystemExit("the prototype does not start:\n" + os.pread(log.fileno(), 1 << 16, 0).decode())
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def post(host, text):
    import urllib.request

    body = json.dumps({"input": text, "model": "text-embedding-3-small"}).encode()
    request = urllib.request.Request(f"http://{host}/v1/embeddings", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"][0]["embedding"]


def wrk(args, host, connections, encoding):
    line = ["wrk", "-t1", f"-c{connections}", f"-d{args.seconds}s", "--timeout", "30s", "--latency", "-s", HERE / "wrk.lua", f"http://{host}"]
    line += ["--", args.work / "words.txt", "text-embedding-3-small", encoding]
    out = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise SystemExit(out)
    milliseconds = {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}
    found = {"requests/s": float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])}
    for p in ("50%", "99%"):
        value, unit = re.search(rf"\s{p}\s+([\d.]+)(\w+)", out).groups()
        found[f"p{p[:-1]} ms"] = float(value) * milliseconds[unit]
    return found


# Report


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def number(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def cell(s):
    return f"{number(s['median'])} ({number(s['min'])}-{number(s['max'])})"


def markdown(result):
    m, t = result["machine"], result["texts"]
    lines = [
        f"{m['cpu']}, {m['cores']} cores; {m['system']}; Python {m['python']}; commit {m['commit']}; {result['date']}; load average "
        + " before, ".join(f"{x:.1f}" for x in result["load average"]) + " after.",
        "; ".join(f"{x['texts']:,} {kind} of {x['mean bytes']} bytes" for kind, x in t.items())
        + f". Median (lowest-highest) of {result['rounds']} rounds.",
    ]
    for table, rows in result["text to vector"].items():
        keys = list(next(iter(rows.values())))
        ours = next(iter(rows.values()))
        lines += ["", f"Text to vector, {table}, microseconds per text (one core: CPU time; all cores: wall-clock time); x: multiple of this library's median", ""]
        lines += ["| | " + " | ".join(keys) + " |", "|---|" + "---:|" * len(keys)]
        for name, row in rows.items():
            ratios = [f"{cell(row[k])}, {row[k]['median'] / ours[k]['median']:.1f}x" for k in keys]
            lines.append(f"| {name} | " + " | ".join(ratios) + " |")
    for table, rows in result["http"].items():
        keys = list(next(iter(rows.values())))
        lines += ["", f"HTTP, {table}, one short text per request", "", "| | " + " | ".join(keys) + " |", "|---|" + "---:|" * len(keys)]
        lines += [f"| {name} | " + " | ".join(cell(row[k]) for k in keys) + " |" for name, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
