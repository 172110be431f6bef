"""Embeds a column of a Parquet data set with Spark: each task pipes its rows through `embedding-server embed`.

    spark-submit examples/spark/embed.py --model /models/gemma IN.parquet OUT.parquet

The command, the model and the tokenizer must be there on every worker (in its image, or on a volume). A task that fails is
retried by Spark; what it had written is discarded with it, so that no row is lost and none is there twice.
"""

import argparse
import shlex

from pyspark.sql import SparkSession
from pyspark.sql.functions import struct, to_json
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType


# Spark's own formats cut microseconds off.
TIMES = {
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
}


def embed(spark, rows, command, column="embedding"):
    """`rows` with one more column: the vector that `command` writes for each."""
    schema = StructType(rows.schema.fields + [StructField(column, ArrayType(FloatType(), False), False)])
    lines = rows.select(to_json(struct("*"), TIMES)).rdd.map(lambda row: row[0])
    # checkCode: a command that fails must fail the task.
    embedded = lines.pipe(command, checkCode=True)
    return spark.read.schema(schema).options(mode="FAILFAST", **TIMES).json(embedded)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--command", default="embedding-server embed", help="what embeds, on every worker")
    parser.add_argument("--model", help="the checkpoint; the command's default model without it")
    parser.add_argument("--field", default="text", help="the column that holds the text")
    parser.add_argument("--partitions", type=int, help="tasks; as many as the input's splits without it")
    args = parser.parse_args()

    # A task's output counts once it is whole: version 1 moves it there in one step.
    spark = SparkSession.builder.config("spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version", "1").getOrCreate()
    rows = spark.read.parquet(args.input)
    if args.partitions:
        rows = rows.repartition(args.partitions)
    # A core is a task for Spark, so a command takes one thread.
    command = f"{args.command} --input-format jsonl --threads 1 --field {shlex.quote(args.field)}"
    if args.model:
        command += f" --model {shlex.quote(args.model)}"
    embed(spark, rows, command).write.parquet(args.output)
    spark.stop()


if __name__ == "__main__":
    main()
