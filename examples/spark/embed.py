"""Embeds a column of a Parquet data set with Spark. Each task pipes its rows through `embedding-server embed`.

    spark-submit examples/spark/embed.py --model /models/gemma IN.parquet OUT.parquet

The command, the model and the tokenizer must exist on every worker, in its image or on a volume. If a task fails, Spark retries it and
discards its partial output, so no row is lost or duplicated.
"""

import argparse
import shlex

from pyspark.sql import SparkSession
from pyspark.sql.functions import struct, to_json
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType


# Spark's default formats drop microseconds.
TIMES = {
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
}


def embed(spark, rows, command, column="embedding"):
    """Returns `rows` with one more column, the vector that `command` writes for each row."""
    schema = StructType(rows.schema.fields + [StructField(column, ArrayType(FloatType(), False), False)])
    lines = rows.select(to_json(struct("*"), TIMES)).rdd.map(lambda row: row[0])
    # checkCode makes the task fail if the command fails.
    embedded = lines.pipe(command, checkCode=True)
    return spark.read.schema(schema).options(mode="FAILFAST", **TIMES).json(embedded)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--command", default="embedding-server embed", help="the command that embeds, on every worker (default: %(default)s)")
    parser.add_argument("--model", help="the checkpoint (default: the command's default model)")
    parser.add_argument("--field", default="text", help="the column that holds the text (default: %(default)s)")
    parser.add_argument("--partitions", type=int, help="the number of tasks (default: the number of the input's splits)")
    args = parser.parse_args()

    # Version 1 of the committer moves the output of a task to its place in one step, once it is complete.
    spark = SparkSession.builder.config("spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version", "1").getOrCreate()
    rows = spark.read.parquet(args.input)
    if args.partitions:
        rows = rows.repartition(args.partitions)
    # Spark gives each task one core, so the command uses one thread.
    command = f"{args.command} --input-format jsonl --threads 1 --field {shlex.quote(args.field)}"
    if args.model:
        command += f" --model {shlex.quote(args.model)}"
    embed(spark, rows, command).write.parquet(args.output)
    spark.stop()


if __name__ == "__main__":
    main()
