"""One table with every type of column goes through JSONL, CSV and Parquet and back, and loses no digit and no row.

pyarrow, DuckDB and pandas judge: none of them had a part in writing what they read here.
"""

import datetime
import decimal
import json
import math
import uuid

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

UTC = datetime.timezone.utc
EPOCH = 1714521600  # 2024-05-01T00:00:00Z
DECIMALS = {
    "decimal32": (pa.decimal32(9, 2), "-9999999.99"),
    "decimal64": (pa.decimal64(18, 2), "-9999999999999999.99"),
    "decimal128": (pa.decimal128(38, 9), "12345678901234567890123456789.123456789"),
    "decimal256": (pa.decimal256(70, 0), "9" * 70),
}


def columns():
    """A column of each type that Parquet holds: two values of it, the largest ones where they matter, and null."""
    def column(values, kind=None):
        return pa.array([*values, None], kind)

    yield "text", pa.array(["one", "two", "three"])
    yield "bool", column([True, False])
    for bits in (8, 16, 32, 64):
        yield f"int{bits}", column([2 ** (bits - 1) - 1, -(2 ** (bits - 1))], getattr(pa, f"int{bits}")())
        yield f"uint{bits}", column([2**bits - 1, 0], getattr(pa, f"uint{bits}")())
    yield "float16", column([1.5, -65504.0], pa.float16())
    yield "float32", column([3.4028234663852886e38, 0.1], pa.float32())
    yield "float64", column([0.1, 1.7976931348623157e308])
    for name, (kind, digits) in DECIMALS.items():
        yield name, column([decimal.Decimal(digits), decimal.Decimal(0)], kind)
    yield "date32", column([datetime.date(1, 1, 1), datetime.date(9999, 12, 31)])
    yield "date64", column([datetime.date(1969, 12, 31), datetime.date(2024, 2, 29)], pa.date64())
    yield "time32", column([datetime.time(23, 59, 59, 1000), datetime.time(0)], pa.time32("ms"))
    yield "time64", column([86_399_999_999_999, 0], pa.time64("ns"))
    for unit, power in (("ms", 3), ("us", 6), ("ns", 9)):
        yield f"timestamp_{unit}", column([EPOCH * 10**power + 1, -1], pa.timestamp(unit))
        yield f"utc_{unit}", column([EPOCH * 10**power + 1, -1], pa.timestamp(unit, "UTC"))
    yield "berlin", column([EPOCH * 10**6, 1_700_000_000_000_001], pa.timestamp("us", "Europe/Berlin"))
    yield "offset", column([EPOCH * 10**6, 1], pa.timestamp("us", "+05:30"))
    for name, kind in (("string", pa.string()), ("large_string", pa.large_string()), ("string_view", pa.string_view())):
        yield name, column(['quotes " and, commas\n', "\u2028 안녕 \\ \t"], kind)
    for name, kind in (("binary", pa.binary()), ("large_binary", pa.large_binary()), ("binary_view", pa.binary_view())):
        yield name, column([b"\x00\xff", b""], kind)
    yield "fixed_binary", column([b"\x00\xff", b"ab"], pa.binary(2))
    yield "dictionary", pa.array(["x", None, "x"]).dictionary_encode()
    yield "list", column([[1, None], []], pa.list_(pa.int64()))
    yield "large_list", column([[2**63], []], pa.large_list(pa.uint64()))
    yield "fixed_list", column([[1.5, 2.5], [0, 0]], pa.list_(pa.float32(), 2))
    yield "structs", column([[{"a": 1, "b": decimal.Decimal("1.10")}], []], pa.list_(pa.struct([("a", pa.int8()), ("b", pa.decimal128(5, 2))])))
    yield "struct", column([{"a": "x", "b": 2**63 - 1}, {"a": None, "b": None}], pa.struct([("a", pa.string()), ("b", pa.int64())]))
    yield "map", column([[("k", 1), ("l", None)], []], pa.map_(pa.string(), pa.int64()))
    yield "map_of_numbers", column([[(2**62 + 1, "a")], []], pa.map_(pa.int64(), pa.string()))
    yield "nothing", pa.nulls(3)
    identifiers = [uuid.UUID(int=2**128 - 1).bytes, uuid.UUID(int=5).bytes, None]
    yield "uuid", pa.ExtensionArray.from_storage(pa.uuid(), pa.array(identifiers, pa.binary(16)))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.parquet"
    pq.write_table(pa.table(dict(columns())), path)
    return path


def without_vectors(path):
    return pq.read_table(path).drop_columns("embedding")


def plain(value):
    """A value of Python's as it stands in JSON."""
    match value:
        case bytes():
            return value.hex()
        case uuid.UUID():
            return str(value)
        case dict():
            return {key: plain(inner) for key, inner in value.items()}
        case list():
            return [plain(inner) for inner in value]
        case _:
            return value


def test_parquet_keeps_every_column(embed, source, tmp_path):
    embed(source, "-o", tmp_path / "out.parquet")
    expected, found = pq.read_table(source), without_vectors(tmp_path / "out.parquet")
    assert found.schema.equals(expected.schema) and found.equals(expected)
    before, after = f"select * from '{source}'", f"select * exclude (embedding) from '{tmp_path / 'out.parquet'}'"
    for a, b in ((before, after), (after, before)):
        assert duckdb.sql(f"select count(*) from ({a} except all {b})").fetchall() == [(0,)]
    # Once more, of what it wrote.
    embed(tmp_path / "out.parquet", "-o", tmp_path / "again.parquet", "--embedding-field", "again")
    assert pq.read_table(tmp_path / "again.parquet").drop_columns(["embedding", "again"]).equals(expected)


def test_json_lines_keep_every_value(embed, source, tmp_path):
    embed(source, "-o", tmp_path / "out.jsonl")
    table = pq.read_table(source)
    lines = (tmp_path / "out.jsonl").read_text("utf-8").split("\n")[:-1]
    rows = [json.loads(line, parse_float=decimal.Decimal) for line in lines]
    assert len(rows) == table.num_rows
    for name in table.column_names:
        kind = table.schema.field(name).type
        for row, cell in zip(rows, table[name], strict=True):
            found, value = row[name], cell.as_py()
            if pa.types.is_floating(kind) and value is not None:
                # The shortest digits of a number of 32 bits are not those of 64 bits.
                assert pa.scalar(float(found), kind) == cell, name
            elif pa.types.is_timestamp(kind) and value is not None:
                # Python's times have no nanoseconds.
                assert pd.Timestamp(found) == pd.Timestamp(value), name
                assert (kind.tz is None) == (pd.Timestamp(found).tz is None), name
            elif pa.types.is_time(kind) and value is not None:
                digits = found.split(".")[1].rstrip("0") if "." in found else ""
                assert found.startswith(str(value)[:8]) and len(digits) <= 9, name
            elif pa.types.is_date(kind) and value is not None:
                assert found[:10] == value.isoformat(), name
            elif pa.types.is_map(kind) and value is not None:
                assert found == {str(key): inner for key, inner in value}, name
            elif kind == pa.list_(pa.float32(), 2) and value is not None:
                assert [float(number) for number in found] == value, name
            else:
                assert found == plain(value), name
    assert rows[0]["time64"] == "23:59:59.999999999" and rows[0]["utc_us"] == "2024-05-01T00:00:00.000001Z"
    for name, (_, digits) in DECIMALS.items():
        assert f'"{name}":{digits},' in lines[0]
    # DuckDB reads the same numbers and the same times.
    query = f"""select int64, uint64, epoch_us(utc_us::timestamptz), large_list[1], struct.b, uuid::uuid
        from read_json('{tmp_path / "out.jsonl"}', columns = {{int64: 'BIGINT', uint64: 'UBIGINT',
        utc_us: 'VARCHAR', large_list: 'UBIGINT[]', struct: 'STRUCT(a VARCHAR, b BIGINT)', uuid: 'VARCHAR'}}) limit 1"""
    expected = (2**63 - 1, 2**64 - 1, EPOCH * 10**6 + 1, 2**63, 2**63 - 1, uuid.UUID(int=2**128 - 1))
    assert duckdb.sql(query).fetchall() == [expected]


def test_json_lines_become_parquet_and_json_lines_again(embed, source, tmp_path):
    embed(source, "-o", tmp_path / "first.jsonl")
    embed(tmp_path / "first.jsonl", "-o", tmp_path / "second.parquet", "--embedding-field", "again")
    embed(tmp_path / "second.parquet", "-o", tmp_path / "third.jsonl", "--embedding-field", "third")
    first = [json.loads(line, parse_float=str, parse_int=str) for line in (tmp_path / "first.jsonl").open(encoding="utf-8")]
    third = [json.loads(line, parse_float=str, parse_int=str) for line in (tmp_path / "third.jsonl").open(encoding="utf-8")]
    assert len(first) == len(third) == 3

    def same(a, b):
        if isinstance(a, (list, dict)) or (isinstance(b, str) and not isinstance(a, str)):
            # Lists, objects, and numbers that no type holds are JSON in a string.
            b = json.loads(b, parse_float=str, parse_int=str) if isinstance(b, str) else b
        if isinstance(a, str) and isinstance(b, str) and a != b:
            return decimal.Decimal(a) == decimal.Decimal(b)
        return a == b

    for before, after in zip(first, third, strict=True):
        for name, value in before.items():
            assert same(value, after[name]), (name, value, after[name])
    table = pq.read_table(tmp_path / "second.parquet")
    assert table.schema.field("int64").type == pa.int64() and table.schema.field("uint64").type == pa.uint64()
    assert table["decimal256"].to_pylist()[0] == "9" * 70
    assert table["uint64"].to_pylist()[0] == 2**64 - 1


@pytest.mark.parametrize("writer", ["pandas", "duckdb"])
@pytest.mark.parametrize("extension", ["csv", "csv.gz", "csv.zst"])
def test_csv_keeps_every_cell(embed, source, tmp_path, writer, extension):
    """What pandas and DuckDB write as CSV comes back to them from Parquet and JSON lines as the same strings."""
    path = tmp_path / f"in.{extension}"
    simple = [name for name, array in columns() if not pa.types.is_nested(array.type) and "binary" not in name and name != "uuid"]
    if writer == "pandas":
        # pandas cannot write views.
        simple.remove("string_view")
        frame = pq.read_table(source, columns=simple).to_pandas(types_mapper=pd.ArrowDtype)
        with pa.output_stream(path) as stream:
            stream.write(frame.to_csv(index=False).encode())
    else:
        kind = {"csv": "none", "csv.gz": "gzip", "csv.zst": "zstd"}[extension]
        names = ", ".join(f'"{name}"' for name in simple)
        duckdb.sql(f"copy (select {names} from '{source}') to '{path}' (header, compression {kind})")
    with pa.input_stream(path) as stream:
        expected = pd.read_csv(stream, dtype=str, keep_default_na=False)
    embed(path, "-o", tmp_path / "out.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet")[simple].astype(object), expected.astype(object))
    embed(path, "-o", tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").open(encoding="utf-8")]
    assert [{name: line[name] for name in simple} for line in lines] == expected.to_dict("records")


def test_numbers_that_are_not_finite_are_null_in_json_and_kept_in_parquet(embed, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(
        json.dumps({"text": "t", "score": score, "deep": [score]}) + "\n" for score in (math.nan, math.inf, -math.inf, 0.5)
    ))
    embed(tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [row["score"] for row in rows] == [None, None, None, 0.5] and rows[0]["deep"] == [None]
    embed(tmp_path / "in.jsonl", "-o", tmp_path / "out.parquet")
    scores = pq.read_table(tmp_path / "out.parquet")["score"].to_pylist()
    assert math.isnan(scores[0]) and scores[1:] == [math.inf, -math.inf, 0.5]


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "lz4", "zstd"])
@pytest.mark.parametrize("page", ["1.0", "2.0"])
def test_every_codec_of_parquet_is_read(embed, tmp_path, codec, page):
    table = pa.table({"text": [f"text {n}" for n in range(3000)]})
    options = {"compression": codec, "data_page_version": page, "write_page_checksum": True}
    pq.write_table(table, tmp_path / "in.parquet", **options)
    embed(tmp_path / "in.parquet", "-o", tmp_path / "out.parquet")
    assert without_vectors(tmp_path / "out.parquet").equals(table)


def test_files_with_different_string_types_become_one(embed, tmp_path):
    kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string()), pa.null()]
    for number, kind in enumerate(kinds):
        texts = pa.array([f"text {number}"]) if kind != pa.null() else pa.nulls(0)
        texts = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts.cast(kind)
        pq.write_table(pa.table({"text": texts, "n": pa.array([number] * len(texts), pa.int32() if number % 2 else pa.int64())}), tmp_path / f"{number}.parquet")
    embed(f"{tmp_path}/?.parquet", "-o", tmp_path / "out.parquet")
    found = without_vectors(tmp_path / "out.parquet")
    assert found["text"].to_pylist() == [f"text {number}" for number in range(5)] and found["n"].to_pylist() == list(range(5))


def test_inputs_without_rows_keep_their_columns(embed, source, tmp_path):
    pq.write_table(pq.read_table(source).slice(0, 0), tmp_path / "in.parquet")
    embed(tmp_path / "in.parquet", "-o", tmp_path / "out.parquet")
    found = without_vectors(tmp_path / "out.parquet")
    assert found.num_rows == 0 and found.schema.equals(pq.read_schema(source))
    (tmp_path / "in.csv").write_text("id,text\n")
    embed(tmp_path / "in.csv", "-o", tmp_path / "csv.parquet")
    assert pq.read_table(tmp_path / "csv.parquet").column_names == ["id", "text", "embedding"]
