#!/usr/bin/env python3
"""Parquet, as data sets are published, to JSON lines, as calibration reads them:

    scripts/parquet_to_jsonl.py train-*.parquet c4.jsonl.gz
    scripts/parquet_to_jsonl.py train-*.parquet chats.jsonl --columns messages

The rows of the files one after another, in bounded memory; OUT is packed if its name ends in .gz, and - is standard output. Needs
pyarrow. Without --columns those whose values are texts or lists are taken: calibration.text_key says which of them is read.
"""

import argparse
import gzip
import io
import json
import os
import pathlib
import sys


def wanted(schema, names):
    import pyarrow

    if names:
        absent = [name for name in names if name not in schema.names]
        if absent:
            sys.exit(f"parquet_to_jsonl: no column {', '.join(absent)} (there are: {', '.join(schema.names)})")
        return names

    def is_text(type):
        if pyarrow.types.is_dictionary(type):
            return is_text(type.value_type)
        return (pyarrow.types.is_string(type) or pyarrow.types.is_large_string(type) or pyarrow.types.is_list(type)
                or pyarrow.types.is_large_list(type))

    found = [field.name for field in schema if is_text(field.type)]
    if not found:
        sys.exit(f"parquet_to_jsonl: no column of texts (there are: {', '.join(schema.names)})")
    return found


def convert(files, names, out):
    import pyarrow.parquet

    rows = 0
    for path in files:
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=1000, columns=wanted(file.schema_arrow, names)):
            for row in batch.to_pylist():
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                rows += 1
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE")
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--columns", type=lambda text: text.split(","), help="separated by commas")
    arguments = parser.parse_args()
    if arguments.out == "-":
        convert(arguments.files, arguments.columns, sys.stdout)
        return
    # Whole or not there. The packed bytes are those of the rows alone, not of the hour.
    part = arguments.out + ".part"
    if arguments.out.endswith(".gz"):
        with open(part, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
            with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as out:
                rows = convert(arguments.files, arguments.columns, out)
    else:
        with open(part, "w", encoding="utf-8", newline="\n") as out:
            rows = convert(arguments.files, arguments.columns, out)
    os.replace(part, arguments.out)
    print(f"{arguments.out}: {rows} rows")


if __name__ == "__main__":
    main()
