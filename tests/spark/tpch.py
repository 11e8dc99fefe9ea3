"""TPC-H in one Spark application: the 22 queries of tpch/*.sql (validation parameters), timed, their results hashed.

    tpch.py run --root <uri> --queries q01,q06 --out <file.json> [--warm-up <uri>]
        Runs the queries in order over <uri>/<table>.parquet, and writes what it measured. With a warm-up it runs them
        over the tables there first and forgets what that took; the jobs of that are in the group "warm-up".

    tpch.py serve --ready-file <file>
        Keeps the session, listens on a loopback port, and does what it is asked one JSON line at a time, so that
        several applications can take turns query by query:
            {"root": "s3a://bucket/dir"}  opens the tables there     -> {"seconds": ...}
            {"query": "q01"}              runs a query over them      -> {"name", "seconds", "rows", "sha256"}
        The ready file holds {"port", "application"}. It ends when the connection closes.

A result's hash depends neither on the order of its rows (queries leave it open, or leave ties open) nor on the order
in which floating-point numbers were summed up: rows are sorted as text, and such numbers have 9 significant digits.
With tpchgen's tables sums are of decimals, which are exact whatever the order; they are compared to the last digit.
No query of these has a tie at its `limit`.
"""

import argparse
import decimal
import hashlib
import json
import os
import pathlib
import socket
import time

from pyspark.sql import SparkSession

TABLES = ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"]
QUERIES = pathlib.Path(__file__).with_suffix("")
WARM_UP = "warm-up"


def sql(name):
    return (QUERIES / f"{name}.sql").read_text(encoding="utf-8")


def text(value):
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, decimal.Decimal):
        # The same number has one text, whatever its scale.
        return format(value.normalize(), "f")
    return str(value)


def digest(rows):
    lines = sorted("|".join(text(value) for value in row) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Tpch:
    """The tables of one root as temporary views, and the queries over them."""

    def __init__(self, spark):
        self.spark = spark

    def open(self, root, group="open"):
        """Lists the tables and reads their schemas; returns the seconds that took."""
        self.spark.sparkContext.setJobGroup(group, group)
        started = time.monotonic()
        for table in TABLES:
            self.spark.read.parquet(f"{root}/{table}.parquet").createOrReplaceTempView(table)
        return time.monotonic() - started

    def run(self, name, group=None):
        query = sql(name)
        # Its jobs carry the query's name in the event log.
        self.spark.sparkContext.setJobGroup(group or name, name)
        started = time.monotonic()
        rows = self.spark.sql(query).collect()
        seconds = time.monotonic() - started
        return {"name": name, "seconds": seconds, "rows": len(rows), "sha256": digest(rows)}


def run(spark, arguments):
    tpch = Tpch(spark)
    names = arguments.queries.split(",")
    if arguments.warm_up:
        tpch.open(arguments.warm_up, WARM_UP)
        for name in names:
            tpch.run(name, WARM_UP)
    started = time.monotonic()
    opening = tpch.open(arguments.root)
    queries = []
    for name in names:
        queries.append(tpch.run(name))
        print(f"{name} {queries[-1]['seconds']:.2f} s", flush=True)
    write(arguments.out, {
        "application": spark.sparkContext.applicationId,
        "seconds": time.monotonic() - started,
        "opening_seconds": opening,
        "queries": queries,
    })


def serve(spark, arguments):
    tpch = Tpch(spark)
    listener = socket.create_server(("127.0.0.1", 0))
    write(arguments.ready_file, {
        "port": listener.getsockname()[1],
        "application": spark.sparkContext.applicationId,
    })
    connection, _ = listener.accept()
    with connection, connection.makefile("rw", encoding="utf-8") as stream:
        for line in stream:
            request = json.loads(line)
            try:
                if "root" in request:
                    answer = {"seconds": tpch.open(request["root"])}
                else:
                    answer = tpch.run(request["query"])
            except Exception as error:  # Whoever asked says what it means.
                answer = {"error": f"{type(error).__name__}: {error}"}
            stream.write(json.dumps(answer) + "\n")
            stream.flush()


def write(path, value):
    """Readers find the whole file or none."""
    partial = pathlib.Path(f"{path}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def main():
    parser = argparse.ArgumentParser(description="TPC-H in one Spark application")
    commands = parser.add_subparsers(required=True)
    once = commands.add_parser("run", help="run queries once")
    once.add_argument("--root", required=True, help="where <table>.parquet are")
    once.add_argument("--queries", required=True, help="comma list: q01,q06")
    once.add_argument("--warm-up", metavar="ROOT", help="where the tables are to be queried first, untimed")
    once.add_argument("--out", required=True, help="the file to write")
    once.set_defaults(command=run)
    serving = commands.add_parser("serve", help="run what a connection asks for")
    serving.add_argument("--ready-file", required=True, help="the file that says where it listens")
    serving.set_defaults(command=serve)
    arguments = parser.parse_args()
    spark = SparkSession.builder.getOrCreate()
    try:
        arguments.command(spark, arguments)
    finally:
        spark.stop()


if __name__ == "__main__":
    main()
