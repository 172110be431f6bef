"""`Embedder`: the same results as the server, its settings, and its errors."""

import json
import os
import pickle
import subprocess
import threading
import urllib.request

import numpy as np
import pytest
from conftest import BINARY, BROKEN, CHECKPOINTS, LLAMA, WORDS, post, run_python, served_vectors, texts

from embedding_server import Embedder, Server, errors


def test_vectors_equal_the_servers_bit_for_bit(embedder, server):
    inputs = [text for text in texts(1500) if text]
    vectors = embedder.encode(inputs)
    assert (vectors.shape, vectors.dtype) == ((1500, 384), np.float32)
    assert vectors.tobytes() == served_vectors(server, inputs).tobytes()
    assert embedder.encode(inputs, dimensions=100).tobytes() == served_vectors(server, inputs, dimensions=100).tobytes()


@pytest.mark.parametrize("name", sorted(path.name for path in CHECKPOINTS.iterdir() if (path / "golden.json").exists())[::6])
def test_vectors_of_other_models_equal_the_servers(name):
    with Server(f"m={CHECKPOINTS / name}") as server:
        inputs = [word for word in WORDS if word]
        assert Embedder(CHECKPOINTS / name).encode(inputs).tobytes() == served_vectors(server, inputs, model="m").tobytes()


def test_a_single_text_gives_one_vector_and_a_list_of_one_a_matrix(embedder):
    assert embedder.encode("hello").shape == (384,)
    assert embedder.encode(["hello"]).shape == (1, 384)
    assert embedder.encode([]).shape == (0, 384)
    assert embedder.encode([], dimensions=7).shape == (0, 7)
    assert np.array_equal(embedder.encode("hello"), embedder.encode(("hello",))[0])
    assert np.array_equal(embedder.encode(x for x in ["a", "b"]), embedder.encode(np.array(["a", "b"])))


def test_an_array_belongs_to_the_caller(embedder):
    vectors = embedder.encode(["hello", "world"])
    vectors *= 2
    assert vectors.flags.writeable and vectors.flags.c_contiguous
    assert not np.array_equal(vectors, embedder.encode(["hello", "world"]))


def test_similarity_equals_the_servers(embedder, server):
    inputs = ["a dog", "ein Hund", "the stock market", ""]
    found = embedder.similarity(inputs[:2], inputs)
    answer = post(server, "/v1/similarity", input=inputs, queries=inputs[:2])["data"]
    assert found.shape == (2, 4)
    assert np.array_equal(found, np.array([row["similarity"] for row in answer], dtype=np.float32))
    assert np.array_equal(embedder.similarity(inputs), embedder.similarity(inputs, inputs))
    assert embedder.similarity("a", "a").shape == (1, 1)


def test_tokens_equal_the_servers(embedder, server):
    inputs = [word for word in WORDS if word]
    answer = post(server, "/v1/tokenize", input=inputs)["data"]
    assert [(tokens.ids, tokens.pieces) for tokens in embedder.tokenize(inputs)] == [(one["ids"], one["pieces"]) for one in answer]
    assert embedder.tokenize("hello") == embedder.tokenize(["hello"])[0]


@pytest.mark.parametrize("method", ["combined", "soft", "lexical", "cosine"])
def test_ranks_equal_the_servers(embedder, server, method):
    documents = ["The market fell on Monday.", "🦀 Photosynthesis turns light into sugar. Stocks rose.", "Plants make food of light.", ""]
    found = embedder.rerank("How do plants make food?", documents, method=method, spans=True, top_n=3)
    answer = post(server, "/v1/rerank", query="How do plants make food?", documents=documents, method=method, return_spans=True, top_n=3)
    expected = [(one["index"], np.float32(one["relevance_score"]), one.get("span")) for one in answer["results"]]
    spans = [one.span and {"start": one.span[0], "end": one.span[1]} for one in found]
    assert [(one.index, np.float32(one.score), span) for one, span in zip(found, spans)] == expected
    assert all(one.text == documents[one.index] for one in found)
    assert len(embedder.rerank("q", documents)) == 4 and embedder.rerank("q", []) == []


@pytest.mark.parametrize(("kind", "expand"), [("document", None), ("query", None), ("query", 3), ("query", 0)])
def test_sparse_vectors_equal_the_servers(embedder, server, kind, expand):
    inputs = ["a dog", "Photosynthese", "word " * 100]
    extra = {} if expand is None else {"expand": expand}
    answer = post(server, "/v1/sparse-embeddings", input=inputs, input_type=kind, **extra)["data"]
    for found, one in zip(embedder.sparse(inputs, kind=kind, expand=expand), answer):
        assert found.indices.dtype == np.uint32 and np.array_equal(found.indices, one["indices"])
        assert np.array_equal(found.values, np.array(one["values"], dtype=np.float32))
    with pytest.raises(ValueError, match="expected at most 64"):
        embedder.sparse("a", kind="query", expand=65)
    with pytest.raises(ValueError, match="kind = 'title' is unknown"):
        embedder.sparse("a", kind="title")


def test_the_fingerprint_is_the_servers_and_the_programs(embedder, server, tmp_path):
    with urllib.request.urlopen(server.url + "/v1/models") as answer:
        served = json.load(answer)["data"][0]["fingerprint"]
    inspected = subprocess.run([BINARY, "inspect", "builtin:default"], capture_output=True, text=True, check=True).stdout
    assert embedder.fingerprint == served and embedder.fingerprint in inspected.split()
    assert Embedder(dimensions=100).fingerprint == embedder.fingerprint == pickle.loads(pickle.dumps(embedder)).fingerprint
    different = [Embedder(LLAMA), Embedder(LLAMA, normalize=False), Embedder(LLAMA, token_count_exponent=0.5), Embedder(LLAMA, lexical_dimensions=8)]
    assert len({one.fingerprint for one in [embedder, *different]}) == 5
    assert Embedder(LLAMA, expect_fingerprint=different[0].fingerprint).fingerprint == different[0].fingerprint
    with pytest.raises(errors.MismatchedModelError, match=different[0].fingerprint):
        Embedder(LLAMA, expect_fingerprint=embedder.fingerprint)
    with pytest.raises(ValueError, match="expect_fingerprint: a fingerprint has 32 hexadecimal digits"):
        Embedder(LLAMA, expect_fingerprint="c0ffee")


def test_lists_are_what_langchain_expects(embedder):
    assert embedder.embed_documents(["a", "b"]) == embedder.encode(["a", "b"]).tolist()
    assert embedder.embed_query("a") == embedder.encode("a").tolist()
    assert isinstance(embedder.embed_query("a")[0], float)


def test_settings_change_the_vectors():
    plain = Embedder(LLAMA)
    assert Embedder(LLAMA, dimensions=8).encode("hello").shape == (8,)
    assert not np.array_equal(Embedder(LLAMA, special_tokens=False).encode("hello"), plain.encode("hello"))
    assert abs(np.linalg.norm(Embedder(LLAMA, normalize=False).encode("hello")) - 1) > 1e-3
    assert not np.array_equal(Embedder(LLAMA, norm="none").encode("hello"), plain.encode("hello"))
    tail = Embedder(LLAMA, lexical_dimensions=8).encode("hello")
    assert tail.shape == (plain.dimensions + 8,)
    assert not np.array_equal(Embedder(LLAMA, lexical_dimensions=8, lexical_weight=0.1).encode("hello"), tail)
    assert not np.array_equal(Embedder(LLAMA, token_count_exponent=0.5).encode("a a a b"), plain.encode("a a a b"))
    assert not np.array_equal(Embedder(LLAMA, norm_eps=0.5).encode("hello"), plain.encode("hello"))
    assert np.array_equal(Embedder(LLAMA, memory="copy", threads=1, load_threads=1).encode("hello"), plain.encode("hello"))
    ids = plain.tokenize("hello").ids
    assert np.array_equal(Embedder(LLAMA, token_input="model").encode([ids])[0], plain.encode("hello"))
    assert np.array_equal(plain.encode([[15339]])[0], plain.encode("hello"))
    assert "dimensions=8" in repr(Embedder(LLAMA, dimensions=8)) and str(LLAMA) in repr(plain)


@pytest.mark.parametrize(
    ("name", "error", "builtin", "kind"),
    [
        ("no-config", errors.ModelNotFoundError, FileNotFoundError, "missing"),
        ("bad-config", errors.MalformedModelError, ValueError, "malformed"),
        ("unknown-model-type", errors.UnsupportedModelError, errors.LoadError, "unsupported"),
        ("vocabulary-past-table", errors.MismatchedModelError, errors.LoadError, "mismatch"),
        ("nan", errors.DamagedModelError, errors.LoadError, "damaged"),
        ("lfs-pointer", errors.ModelFileError, OSError, "lfs_pointer"),
    ],
)
def test_a_model_that_cannot_be_opened_has_an_exception_of_its_kind(name, error, builtin, kind):
    with pytest.raises(error) as caught:
        Embedder(BROKEN / name)
    assert isinstance(caught.value, builtin) and isinstance(caught.value, errors.EmbeddingServerError)
    assert caught.value.kind == kind and str(BROKEN / name) in str(caught.value) and str(BROKEN / name) in str(caught.value.path)


def test_wrong_settings_are_errors_that_name_the_setting():
    with pytest.raises(errors.SettingError, match="cannot have dimensions = 100000"):
        Embedder(LLAMA, dimensions=100000)
    for settings in [{"token_input": "bytes"}, {"norm": "batch"}, {"device": "tpu"}, {"dimensions": -1}, {"dimensions": 0}, {"norm_eps": "x"}, {"token_count_exponent": 2}]:
        with pytest.raises(ValueError, match=next(iter(settings))):
            Embedder(LLAMA, **settings)
    with pytest.raises(TypeError, match="dimension"):
        Embedder(LLAMA, dimension=3)


def test_a_model_of_the_hub_without_a_network_is_an_error_with_its_kind(monkeypatch, tmp_path):
    code = "from embedding_server import Embedder, errors\ntry: Embedder('no-such-org/no-such-model')\nexcept errors.HubError as e: print(e.kind)"
    found = run_python(code, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert found.stdout == "offline\n", found.stderr


@pytest.mark.parametrize(
    ("settings", "inputs", "error", "attributes"),
    [
        ({"max_input_tokens": 3}, ["a", "a long text " * 9], errors.TooManyTokensError, {"input": 1, "max": 3}),
        ({"empty_input": "reject"}, ["a", "b", ""], errors.EmptyInputError, {"input": 2}),
        ({"token_input": "reject"}, [[1]], errors.TokenIdsRejectedError, {"input": 0}),
        ({"token_input": "model"}, ["a", [1, 4_000_000]], errors.TokenIdOutOfRangeError, {"input": 1, "position": 1, "id": 4_000_000}),
        ({}, [[100_300]], errors.NotCl100kError, {"input": 0, "position": 0, "id": 100_300}),
    ],
)
def test_an_input_without_a_vector_has_an_exception_with_its_index(settings, inputs, error, attributes):
    embedder = Embedder(LLAMA, **settings)
    for call in (embedder.encode, embedder.tokenize, embedder.similarity):
        with pytest.raises(error) as caught:
            call(inputs)
        assert isinstance(caught.value, ValueError) and isinstance(caught.value, errors.EmbedError)
        assert {key: getattr(caught.value, key) for key in attributes} == attributes


def test_the_first_wrong_input_is_reported_whatever_thread_finds_it():
    embedder = Embedder(LLAMA, max_input_tokens=50)
    inputs = ["short text " * 4] * 5000
    for at in (4321, 1234, 4999):
        inputs[at] = "long " * 100
    for _ in range(20):
        with pytest.raises(errors.TooManyTokensError) as caught:
            embedder.encode(inputs)
        assert caught.value.input == 1234


def test_wrong_arguments_are_errors_that_name_the_input(embedder):
    with pytest.raises(errors.DimensionsError) as caught:
        embedder.encode("a", dimensions=385)
    assert (caught.value.requested, caught.value.max) == (385, 384)
    with pytest.raises(TypeError, match="input 1 must be a str or a list of token IDs, not int"):
        embedder.encode(["a", 1])
    with pytest.raises(TypeError, match="input 0 must be a str or a list of token IDs, not NoneType"):
        embedder.encode([None])
    with pytest.raises(ValueError, match="input 1 contains a lone surrogate"):
        embedder.encode(["a", "\ud800"])
    with pytest.raises(ValueError, match='method = "best" is unknown'):
        embedder.rerank("a", ["b"], method="best")


def test_a_table_that_is_cut_short_while_it_is_used_is_an_exception(tmp_path):
    import shutil

    shutil.copytree(LLAMA, tmp_path / "model")
    code = f"""
import os
from embedding_server import Embedder, errors
import faulthandler
faulthandler.enable()
embedder = Embedder({str(tmp_path / "model")!r})
os.truncate({str(tmp_path / "model/model.safetensors")!r}, 4096)
try:
    embedder.encode(["hello world " * 50] * 100)
except errors.TableChangedError as error:
    print("cut short" in str(error), error.path.name)
"""
    found = run_python(code)
    assert (found.returncode, found.stdout) == (0, "True model.safetensors\n"), found.stderr


def test_other_threads_run_while_texts_are_embedded(embedder):
    done, turns = threading.Event(), 0
    thread = threading.Thread(target=lambda: (embedder.encode(["a text of several words " * 40] * 20_000), done.set()))
    thread.start()
    # A call that kept the lock would let this loop run once or twice.
    while not done.is_set():
        turns += 1
    thread.join()
    assert turns > 1000


def test_every_core_takes_part():
    code = """
import os, threading
from embedding_server import Embedder
embedder = Embedder()
def names(): return sorted(open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task"))
embedder.encode(["short"])
assert not [n for n in names() if n.startswith("embedder")], names()
embedder.encode(["some words of a text"] * 5000)
print(len([n for n in names() if n.startswith("embedder")]) == len(os.sched_getaffinity(0)) - 1)
"""
    found = run_python(code)
    assert found.stdout == "True\n", found.stderr


def test_threads_that_share_an_embedder_get_their_own_results(embedder):
    inputs = [texts(200 + i) for i in range(8)]
    expected = [embedder.encode(one) for one in inputs]
    found = [None] * 8

    def work(i):
        for _ in range(5):
            found[i] = embedder.encode(inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected))


def test_ctrl_c_interrupts_a_long_call():
    code = """
import os, signal, threading
from embedding_server import Embedder
embedder = Embedder()
texts = ["a text of several words " * 40] * 400_000
ready = threading.Event()
threading.Thread(target=lambda: (ready.wait(), os.kill(os.getpid(), signal.SIGINT))).start()
try:
    ready.set()
    embedder.encode(texts)
except KeyboardInterrupt:
    print("interrupted")
"""
    found = run_python(code)
    assert found.stdout == "interrupted\n", found.stderr
