"""Reads the output of `embed` with other programs."""

import json

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors
import safetensors.numpy
import scipy.sparse

DIMENSIONS = 16


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pyarrow_reads_parquet_with_all_columns_and_the_vectors_type(embed, corpus, vectors, tmp_path, dtype):
    out = tmp_path / "out.parquet"
    embed(*sorted(corpus.iterdir()), "-o", out, "--embedding-dtype", dtype)
    expected, found = pq.read_table(corpus), pq.read_table(out)
    assert found.drop_columns("embedding").equals(expected)
    assert str(found.schema.field("embedding").type).startswith("fixed_size_list<element: ")
    assert found.schema.field("embedding").type.list_size == DIMENSIONS
    made = np.array(found["embedding"].to_pylist())
    wanted = np.array([vectors[n] for n in found["id"].to_pylist()], np.float32).astype(dtype)
    assert np.array_equal(made.astype(dtype), wanted)


def test_duckdb_reads_parquet(embed, corpus, vectors, tmp_path):
    out = tmp_path / "out.parquet"
    embed(f"{corpus}/*.parquet", "-o", out)
    rows = duckdb.sql(f"select id, embedding, \"when\", labels from '{out}' order by id").fetchall()
    assert [row[0] for row in rows] == list(range(15000))
    assert all(np.array_equal(np.float32(row[1]), np.float32(vectors[row[0]])) for row in rows)
    assert rows[1][3] == ["a", None] and rows[0][3] is None and rows[7][2].microsecond == 7
    # DuckDB computes similarities on the column without a cast.
    (nearest,), = duckdb.sql(
        f"select id from '{out}' order by list_cosine_similarity(embedding, (select embedding from '{out}' where id = 4321)) desc, id limit 1"
    ).fetchall()
    assert nearest == 4321


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numpy_and_safetensors_read_the_vectors(embed, corpus, vectors, tmp_path, dtype):
    wanted = np.array([vectors[n] for n in range(15000)], np.float32).astype(dtype)
    for name, read in [
        ("out.npy", lambda path: np.load(path, mmap_mode="r")),
        ("out.safetensors", lambda path: safetensors.numpy.load_file(path)["embedding"]),
    ]:
        embed(*sorted(corpus.iterdir()), "-o", tmp_path / name, "--embedding-dtype", dtype)
        found = read(tmp_path / name)
        assert found.dtype == dtype and np.array_equal(found, wanted)


def test_an_empty_input_gives_empty_files(embed, tmp_path):
    (tmp_path / "in.jsonl").write_text("")
    embed(tmp_path / "in.jsonl", "-o", tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (0, DIMENSIONS)
    embed(tmp_path / "in.jsonl", "-o", tmp_path / "out.safetensors")
    assert safetensors.numpy.load_file(tmp_path / "out.safetensors")["embedding"].shape == (0, DIMENSIONS)


def rows_of(matrix):
    """The indices and values of each row of a sparse matrix."""
    return [(matrix.indices[a:b].tolist(), matrix.data[a:b].tolist()) for a, b in zip(matrix.indptr, matrix.indptr[1:])]


def test_scipy_pyarrow_and_duckdb_read_the_same_sparse_vectors(embed, corpus, vectors, tmp_path):
    inputs = sorted(corpus.iterdir())
    for name in ["out.safetensors", "out.parquet"]:
        embed(*inputs, "--sparse", "-o", tmp_path / name)
    with safetensors.safe_open(tmp_path / "out.safetensors", "numpy") as file:
        shape = json.loads(file.metadata()["sparse_embedding.shape"])
        arrays = [file.get_tensor(f"sparse_embedding.{name}") for name in ["values", "indices", "indptr"]]
        dense = file.get_tensor("embedding")
    matrix = scipy.sparse.csr_matrix(tuple(arrays), shape=shape)
    matrix.check_format(full_check=True)
    assert matrix.has_sorted_indices and matrix.shape[0] == 15000 and (matrix.data > 0).all()
    assert np.array_equal(dense, np.array([vectors[n] for n in range(15000)], np.float32))

    # The columns of Parquet are the arrays of a compressed sparse row matrix, without a copy.
    column = pq.read_table(tmp_path / "out.parquet")["sparse_embedding"].combine_chunks()
    indices, values = column.field("indices"), column.field("values")
    of_parquet = scipy.sparse.csr_matrix(
        (values.flatten().to_numpy(), indices.flatten().to_numpy(), indices.offsets.to_numpy()), shape=shape
    )
    assert (matrix != of_parquet).nnz == 0 and matrix.nnz == of_parquet.nnz
    first = duckdb.sql(
        f"select sparse_embedding.indices, sparse_embedding.values from '{tmp_path}/out.parquet' where id in (0, 14999) order by id"
    ).fetchall()
    rows = rows_of(matrix)
    assert [(a, np.float32(b).tolist()) for a, b in first] == [rows[0], rows[14999]]
