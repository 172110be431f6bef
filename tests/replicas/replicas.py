"""Tests replicas behind haproxy, which polls /ready as Kubernetes does. Under load:

1. each replica in turn gets SIGTERM, drains, and is started again: no request may fail, although haproxy repeats no request;
2. each replica in turn gets SIGKILL and is started again: only requests that were in flight on that replica may fail;
3. the same with the openai SDK as the client: its retries make every request succeed.
"""

import csv
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import openai

BINARY = os.environ["EMBEDDING_SERVER_BIN"]
REPLICAS = 3
CLIENTS = 12
# The number of requests between two disturbances.
CALM = 200
DEADLINE = 60
TEXTS = [f"Sentence {n}: the weather in the north is fine, and the trains are on time." for n in range(64)]
BODY = json.dumps({"input": TEXTS, "model": "text-embedding-3-small", "encoding_format": "base64"})

HAPROXY = """
global
  stats socket {directory}/haproxy.sock
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  # On a busy machine a slow check does not mean that the replica has ended.
  timeout check 5s
  # If a replica refuses the connection, the request goes to another replica.
  option redispatch 1
  retries 3
frontend plain
  bind fd@{plain}
  default_backend plain
backend plain
  balance roundrobin
  option httpchk GET /ready
  http-check expect status 200
  default-server check inter 200ms fall 1 rise 1
{servers}
"""


class Replica:
    def __init__(self, number, directory):
        self.name, self.directory, self.port = f"replica{number}", directory, 0
        self.start()

    def start(self):
        """Starts the replica, from the second time on at the same port, and returns once it listens."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EMBEDDING_SERVER_")}
        # The delay is long enough for haproxy to poll /ready even on a busy machine.
        environment["EMBEDDING_SERVER_DRAIN_DELAY"] = "2s"
        log = open(self.directory / f"{self.name}.log", "a")
        command = [BINARY, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        self.port = int(re.fullmatch(r"listening on http://127.0.0.1:(\d+)\n", self.process.stdout.readline())[1])

    def ready(self):
        return subprocess.run([BINARY, "health", "--port", str(self.port)], capture_output=True).returncode == 0

    def end(self, with_signal):
        self.process.send_signal(with_signal)
        return self.process.wait(DEADLINE)


class Balancer:
    def __init__(self, replicas, directory):
        self.socket = directory / "haproxy.sock"
        with socket.create_server(("127.0.0.1", 0)) as plain:
            self.port = plain.getsockname()[1]
            config = HAPROXY.format(
                directory=directory,
                plain=plain.fileno(),
                servers="\n".join(f"  server {r.name} 127.0.0.1:{r.port}" for r in replicas),
            )
            (directory / "haproxy.cfg").write_text(config)
            command = ["haproxy", "-db", "-f", directory / "haproxy.cfg"]
            log = open(directory / "haproxy.log", "w")
            self.process = subprocess.Popen(command, pass_fds=[plain.fileno()], stdout=log, stderr=log)

    def statistics(self):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.socket))
            client.sendall(b"show stat\n")
            table = b"".join(iter(lambda: client.recv(65536), b"")).decode()
        return list(csv.DictReader(table.lstrip("# ").splitlines()))

    def up(self):
        """Returns the names of the replicas to which haproxy sends requests."""
        rows = (row for row in self.statistics() if row["pxname"] == "plain")
        return sorted(row["svname"] for row in rows if row["svname"].startswith("replica") and row["status"] == "UP")


def wait(what, until):
    end = time.monotonic() + DEADLINE
    while not until():
        assert time.monotonic() < end, f"{what}: not within {DEADLINE} s"
        time.sleep(0.02)


class Load:
    """Clients that send requests without a pause and without retries, each over its own connection."""

    repeated = 0

    def __init__(self, port):
        self.port, self.stopped, self.lock = port, threading.Event(), threading.Lock()
        self.answered, self.failed, self.slowest = 0, [], 0.0
        self.threads = [threading.Thread(target=self.client, daemon=True) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def client(self):
        ask = self.asker()
        while not self.stopped.is_set():
            begun = time.monotonic()
            try:
                count = ask()
                assert count == len(TEXTS), count
                error = None
            except Exception as e:  # every failure is counted
                error = f"{type(e).__name__}: {e}"
            with self.lock:
                self.slowest = max(self.slowest, time.monotonic() - begun)
                if error is None:
                    self.answered += 1
                else:
                    self.failed.append((begun, error))

    def asker(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)

        def ask():
            try:
                connection.request("POST", "/v1/embeddings", BODY, {"content-type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
            except BaseException:
                connection.close()
                raise
            assert answer.status == 200, f"{answer.status} {text[:100]}"
            return len(json.loads(text)["data"])

        return ask

    def calm(self):
        """Waits for CALM more responses."""
        goal = self.answered + CALM
        wait("answers", lambda: self.answered >= goal)

    def end(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), "a client hangs"


class SdkLoad(Load):
    """Clients that use the openai SDK with its default of two retries."""

    def asker(self):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none").embeddings.with_raw_response

        def ask():
            answer = client.create(input=TEXTS, model="text-embedding-3-small")
            with self.lock:
                self.repeated += answer.retries_taken > 0
            return len(answer.parse().data)

        return ask


def disturb(load, balancer, replicas, with_signal):
    """Ends each replica and starts it again. Returns the times at which the replicas had ended."""
    gone = []
    names = sorted(r.name for r in replicas)
    for replica in replicas:
        load.calm()
        code = replica.end(with_signal)
        gone.append(time.monotonic())
        assert code == (0 if with_signal == signal.SIGTERM else -with_signal), (replica.name, code)
        load.calm()
        wait(f"{replica.name} is down", lambda: replica.name not in balancer.up())
        replica.start()
        wait(f"{replica.name} is up", lambda: balancer.up() == names)
    load.calm()
    load.end()
    return gone


def kill(load_of, balancer, replicas):
    """Kills each replica under load. Returns the load and the times. A run in which no request was in flight proves nothing and is repeated."""
    for _ in range(5):
        load = load_of(balancer.port)
        gone = disturb(load, balancer, replicas, signal.SIGKILL)
        if load.failed or load.repeated:
            return load, gone
    raise AssertionError("no request was in flight at any kill, so nothing was tested")


def check(directory, processes):
    replicas = [Replica(number, directory) for number in range(REPLICAS)]
    processes.extend(replicas)
    # haproxy assumes that a server is ready until its first check.
    wait("the replicas", lambda: all(replica.ready() for replica in replicas))
    balancer = Balancer(replicas, directory)
    processes.append(balancer)
    wait("the balancer", balancer.socket.exists)

    load = Load(balancer.port)
    disturb(load, balancer, replicas, signal.SIGTERM)
    print(
        f"rolling restart of {REPLICAS}: {load.answered} requests of {len(TEXTS)} texts answered, {len(load.failed)} failed; "
        f"the slowest took {load.slowest:.2f} s"
    )
    assert not load.failed, load.failed[:5]

    load, gone = kill(Load, balancer, replicas)
    late = [error for begun, error in load.failed if not any(begun < when < begun + load.slowest for when in gone)]
    print(
        f"{REPLICAS} killed in turn: {load.answered} requests answered, {len(load.failed)} failed, of which "
        f"{len(late)} were not in flight at a kill"
    )
    for error in sorted({error for _, error in load.failed}):
        print(f"  {error}")
    assert not late, late[:5]
    assert len(load.failed) <= REPLICAS * CLIENTS, load.failed

    load, _ = kill(SdkLoad, balancer, replicas)
    print(
        f"{REPLICAS} killed in turn, asked by openai {openai.__version__}: {load.answered} requests answered, "
        f"{load.repeated} of them after a retry, {len(load.failed)} failed"
    )
    assert not load.failed, load.failed[:5]


def main():
    processes = []
    with tempfile.TemporaryDirectory() as directory:
        try:
            check(Path(directory), processes)
        except BaseException:
            for log in sorted(Path(directory).glob("*.log")):
                errors = [line for line in log.read_text().splitlines() if " INFO " not in line]
                print(f"-- {log.name}", *errors[-20:], sep="\n")
            raise
        finally:
            for process in processes:
                process.process.kill()
                process.process.wait(10)


main()
