"""Pickling and forks: worker processes of every kind get the same vectors and do not hang."""

import copy
import multiprocessing
import os
import pickle
import sys
import threading

import numpy as np
import pytest
from conftest import LLAMA, run_python, texts

from embedding_server import Embedder, errors

# More than one unit of work, so that the pool of threads takes part.
TEXTS = texts(2000)


def test_a_pickled_embedder_has_its_settings_and_a_full_path(monkeypatch, tmp_path):
    monkeypatch.chdir(LLAMA.parent)
    embedder = Embedder("llama", dimensions=8, normalize=False)
    data = pickle.dumps(embedder)
    assert len(data) < 1000
    monkeypatch.chdir(tmp_path)
    other = pickle.loads(data)
    assert np.array_equal(other.encode(TEXTS), embedder.encode(TEXTS)) and other.dimensions == 8
    assert copy.deepcopy(embedder) is embedder and copy.copy(embedder) is embedder


def test_exceptions_cross_processes():
    with pytest.raises(errors.TooManyTokensError) as caught:
        Embedder(LLAMA, max_input_tokens=3).encode(["a long text " * 9])
    error = pickle.loads(pickle.dumps(caught.value))
    assert type(error) is errors.TooManyTokensError and (error.input, error.max, str(error)) == (0, 3, str(caught.value))


def _sum(embedder_and_texts):
    embedder, some = embedder_and_texts
    return embedder.encode(some).tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_of_processes(embedder, method):
    expected = embedder.encode(TEXTS)
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map_async(_sum, [(embedder, TEXTS[:1000]), (embedder, TEXTS[1000:])]).get(120)
    assert b"".join(found) == expected.tobytes()


class Dataset:
    """A map-style dataset as PyTorch's DataLoader forks it into its workers."""

    def __init__(self, embedder):
        self.embedder = embedder

    def batch(self, indices):
        return self.embedder.encode([TEXTS[i] for i in indices])


def _worker(dataset, tasks, results):
    while (task := tasks.get()) is not None:
        results.put((task, dataset.batch(range(task * 500, task * 500 + 500))))


def test_workers_of_a_data_loader(embedder):
    expected = embedder.encode(TEXTS)  # the pool of threads exists before the fork
    context = multiprocessing.get_context("fork")
    tasks, results = context.Queue(), context.Queue()
    workers = [context.Process(target=_worker, args=(Dataset(embedder), tasks, results), daemon=True) for _ in range(2)]
    [worker.start() for worker in workers]
    [tasks.put(task) for task in [0, 1, 2, 3, None, None]]
    found = dict(results.get(timeout=120) for _ in range(4))
    [worker.join(60) for worker in workers]
    assert np.array_equal(np.concatenate([found[task] for task in range(4)]), expected)
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork_while_other_threads_embed_leaves_no_lock_behind():
    code = """
import os, threading
from conftest import texts
from embedding_server import Embedder
embedder, some = Embedder(), texts(2000)
expected = embedder.encode(some).tobytes()
stop = threading.Event()
def work():
    while not stop.is_set():
        embedder.encode(some)
        embedder.sparse(some[:20], kind="query")
        embedder.rerank("a dog", some[:50])
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]
for _ in range(30):
    child = os.fork()
    if child == 0:
        same = embedder.encode(some).tobytes() == expected and len(embedder.sparse(some[:30], kind="query")) == 30
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(embedder.encode(some).tobytes() != expected)
        os._exit(os.waitpid(grandchild, 0)[1] or not same)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
[thread.join() for thread in threads]
print("done")
"""
    found = run_python(code, cwd=os.path.dirname(__file__))
    assert found.stdout == "done\n", found.stderr


def test_two_threads_may_fork_at_once(embedder):
    failed = []

    def fork():
        for _ in range(10):
            child = os.fork()
            if child == 0:
                os._exit(len(embedder.encode(TEXTS[:300])) != 300)
            if os.waitpid(child, 0)[1]:
                failed.append(child)

    threads = [threading.Thread(target=fork) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join(120) for thread in threads]
    assert not failed and not any(thread.is_alive() for thread in threads)
