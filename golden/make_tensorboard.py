"""Writes tensorboard/run.tfevents with TensorBoard's own record writer and messages.

The test of `train/report/tensorboard.rs` writes the same events and compares every byte.
"""

from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

TIME = 1_795_000_000.5


def scalars(step, values):
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    return Event(wall_time=TIME, step=step, summary=Summary(value=values))


def text(step, tag, content):
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[content.encode()])
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    value = Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
    return Event(wall_time=TIME, step=step, summary=Summary(value=[value]))


def train(loss, learning_rate, norm, speed, memory):
    values = {"loss": loss, "learning_rate": learning_rate, "gradient_norm": norm, "tokens_per_second": speed}
    values = {f"train/{name}": value for name, value in values.items()}
    return values | ({"train/memory": memory} if memory else {})


EVENTS = [
    Event(wall_time=TIME, file_version="brain.Event:2"),
    Event(wall_time=TIME, step=301, session_log=SessionLog(status=SessionLog.START)),
    scalars(301, train(2.5, 1e-4, 0.75, 1234.5, 812_000_000)),
    scalars(302, train(float("nan"), 9.5e-5, float("inf"), 1200, None)),
    scalars(302, {"eval/loss": 2.25, "eval/perplexity": 9.487736}),
    scalars(302, {"test/loss": 2.5, "test/perplexity": 12.182494}),
    text(302, "sample/trained/e3069283", "    123456789\n\n*trained:*\n\n    ten\n    elf\n"),
]


def main():
    path = Path(__file__).parent / "tensorboard" / "run.tfevents"
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for event in EVENTS:
            writer.write(event.SerializeToString())
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
