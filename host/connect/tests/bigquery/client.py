"""Google's own clients against the BigQuery of the tests: accepted and refused in the same cases as Tidemill, and Tidemill's
recorded requests by Google's own descriptors.

client.py ENDPOINT RECORDED: says each case as a line of JSON; a case that goes another way ends it.
"""

import json
import pathlib
import sys

import grpc
from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import types
from google.cloud.bigquery_storage_v1.services.big_query_write import BigQueryWriteClient
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
INT64 = descriptor_pb2.FieldDescriptorProto.TYPE_INT64
MESSAGE = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
CHANGE = [("_CHANGE_TYPE", STRING), ("_CHANGE_SEQUENCE_NUMBER", STRING)]
ROW = [("id", STRING), ("n", INT64)] + CHANGE


def say(**what):
    print(json.dumps(what), flush=True)


def descriptor(fields, type_name=None):
    made = descriptor_pb2.DescriptorProto(name="Row")
    for number, (name, kind) in enumerate(fields, 1):
        field = made.field.add(name=name, number=number, type=kind, label=1)
        if kind == MESSAGE:
            field.type_name = type_name
    return made


def message_of(made):
    file = descriptor_pb2.FileDescriptorProto(name="rows.proto", syntax="proto2", message_type=[made])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(made.name))


def rows_of(fields, rows):
    message = message_of(descriptor(fields))
    return [message(**dict(zip([f[0] for f in fields], row))).SerializeToString() for row in rows]


def request(table, rows, fields=ROW, serialized=None, made=None, **more):
    data = types.AppendRowsRequest.ProtoData()
    schema = types.ProtoSchema()
    schema.proto_descriptor = made or descriptor(fields)
    data.writer_schema = schema
    data.rows = types.ProtoRows(serialized_rows=serialized or rows_of(fields, rows))
    stream = f"{table}/streams/_default"
    return types.AppendRowsRequest(**{"write_stream": stream, "proto_rows": data, **more})


class Service:
    def __init__(self, endpoint):
        channel = grpc.insecure_channel(endpoint.split("//")[1])
        self.client = BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=channel))

    def send(self, *requests):
        """The answers of one connection, and the code that it ended with."""
        named = requests[0].write_stream
        metadata = [("x-goog-request-params", f"write_stream={named}")]
        answers = []
        try:
            for answer in self.client.append_rows(iter(requests), metadata=metadata, timeout=20, retry=None):
                answers.append(answer)
        except exceptions.GoogleAPICallError as e:
            return answers, e.grpc_status_code.name
        return answers, "OK"


def expect(case, actual, expected):
    if actual != expected:
        raise SystemExit(f"{case}: {actual}, expected {expected}")
    say(case=case, outcome=str(actual))


def refusal(call):
    try:
        call()
    except exceptions.GoogleAPICallError as e:
        return type(e).__name__
    return "taken"


def tables(endpoint):
    client = bigquery.Client(
        project="p", credentials=AnonymousCredentials(), client_options=ClientOptions(api_endpoint=endpoint)
    )
    name = "p.clicks.google"
    schema = [
        bigquery.SchemaField("id", "STRING", mode="REQUIRED"),
        bigquery.SchemaField("n", "INT64"),
    ]
    table = bigquery.Table(name, schema=schema)
    table.clustering_fields = ["id"]
    table.max_staleness = "0-0 0 0:10:0"
    key = bigquery.table.PrimaryKey(columns=["id"])
    table.table_constraints = bigquery.table.TableConstraints(primary_key=key, foreign_keys=[])
    none = dict(retry=None, timeout=20)
    expect("a table that is not there", refusal(lambda: client.get_table(name, **none)), "NotFound")
    made = client.create_table(table, **none)
    expect("a table is made", [f.name for f in made.schema], ["id", "n"])
    expect("a table is made twice", refusal(lambda: client.create_table(table, **none)), "Conflict")
    there = client.get_table(name, **none)
    expect("a key", there.table_constraints.primary_key.columns, ["id"])
    there.schema = schema + [bigquery.SchemaField("more", "STRING", mode="REQUIRED")]
    expect("a required column", refusal(lambda: client.update_table(there, ["schema"], **none)), "BadRequest")
    there.schema = schema[:1]
    expect("a column less", refusal(lambda: client.update_table(there, ["schema"], **none)), "BadRequest")
    there.schema = schema + [bigquery.SchemaField("more", "STRING")]
    expect("a nullable column", len(client.update_table(there, ["schema"], **none).schema), 3)
    expect("an older tag", refusal(lambda: client.update_table(there, ["schema"], **none)), "PreconditionFailed")
    keyless = bigquery.Table("p.clicks.keyless", schema=schema)
    client.create_table(keyless, **none)
    other = bigquery.Table("p.none.google", schema=schema)
    expect("a dataset that is not there", refusal(lambda: client.create_table(other, **none)), "NotFound")


def changes(endpoint):
    service = Service(endpoint)
    table = "projects/p/datasets/clicks/tables/google"
    one = [("a", 1, "UPSERT", "1/1")]

    def code(*requests):
        return service.send(*requests)[1]

    stream = service.client.get_write_stream(name=f"{table}/streams/_default", retry=None, timeout=20)
    expect("the default stream", stream.type_.name, "COMMITTED")
    expect("a stream that is made", refusal(
        lambda: service.client.create_write_stream(parent=table, write_stream=types.WriteStream(), timeout=20)
    ), "MethodNotImplemented")
    answers, ended = service.send(request(table, one), request(table, [("b", 2, "UPSERT", "1/2")]))
    expect("upserts", (ended, len(answers), answers[0].error.code), ("OK", 2, 0))
    later = request(table, [("b", 3, "UPSERT", "1/3")], write_stream="")
    later.proto_rows.writer_schema = None
    expect("a later request", code(request(table, one), later), "OK")
    expect("a lower number", code(request(table, [("b", 9, "UPSERT", "1/1")])), "OK")
    expect("a deletion", code(request(table, [("a", 0, "DELETE", "2/0")])), "OK")
    answers, ended = service.send(request(table, one + [("x", 1, "INSERT", "1/1"), ("y", 1, "UPSERT", "1/x")]))
    expect("bad rows", (ended, answers[0].error.code, [e.index for e in answers[0].row_errors]), ("OK", 3, [1, 2]))
    expect("no such table", code(request("projects/p/datasets/clicks/tables/none", one)), "NOT_FOUND")
    expect("no primary key", code(request("projects/p/datasets/clicks/tables/keyless", one)), "INVALID_ARGUMENT")
    expect("an offset", code(request(table, one, offset=0)), "INVALID_ARGUMENT")
    mixed = [("a", 1, "UPSERT", "1/1"), ("b", 1, "UPSERT", "1")]
    expect("numbers of two forms", code(request(table, mixed)), "INVALID_ARGUMENT")
    extra = [("id", STRING), ("colour", STRING)] + CHANGE
    expect("a column too many", code(request(table, [("a", "red", "UPSERT", "1")], extra)), "INVALID_ARGUMENT")
    typed = [("id", STRING), ("n", STRING)] + CHANGE
    expect("another type", code(request(table, [("a", "1", "UPSERT", "1")], typed)), "INVALID_ARGUMENT")
    lonely = [("id", STRING), ("n", INT64), CHANGE[1]]
    expect("a number alone", code(request(table, [("a", 1, "1")], lonely)), "INVALID_ARGUMENT")
    plain = request(table, [("a", 1)], ROW[:2])
    expect("changes and plain rows", code(request(table, one), plain), "INVALID_ARGUMENT")
    open_made = descriptor(ROW[:1] + [("n", MESSAGE)] + CHANGE, ".elsewhere.Message")
    needs_more = request(table, None, serialized=rows_of(ROW, one), made=open_made)
    expect("a descriptor that needs another", code(needs_more), "INVALID_ARGUMENT")
    large = request(table, [(str(n) + "x" * 100_000, 1, "UPSERT", "1/1") for n in range(110)])
    expect("more than ten megabytes", code(large), "INVALID_ARGUMENT")


def decode(folder):
    """Every request that Tidemill has sent, by Google's descriptors; its rows, by the descriptor that came along."""
    message = None
    for path in sorted(pathlib.Path(folder).iterdir()):
        raw = path.read_bytes()
        read = types.AppendRowsRequest.pb(types.AppendRowsRequest.deserialize(raw))
        again = read.SerializeToString(deterministic=True)
        if len(again) != len(raw) or len(read.ListFields()) < 2:
            raise SystemExit(f"{path}: not all of it is known to Google: {len(raw)} bytes, {len(again)} again")
        if read.proto_rows.HasField("writer_schema"):
            message = message_of(read.proto_rows.writer_schema.proto_descriptor)
        for row in read.proto_rows.rows.serialized_rows:
            row = message.FromString(row)
            say(row={field.name: value for field, value in row.ListFields()})


if __name__ == "__main__":
    tables(sys.argv[1])
    changes(sys.argv[1])
    decode(sys.argv[2])
