"""TensorBoard: a run is a folder with event files. Needs the package tensorboard, neither TensorFlow nor torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from softprompt.tracking.entries import Entry, PositionFile


class TensorBoardSink:
    """The folder `directory/<job id>`. Another process continues in a new event file of the same folder."""

    def __init__(self, job: str, directory: Path) -> None:
        folder = directory / job.removeprefix("tuningJobs/")
        self._position = PositionFile(folder / "softprompt.position")
        self._writer: Any = EventFileWriter(str(folder))

    @property
    def last_event(self) -> int:
        """See Sink."""
        return self._position.number

    def write(self, entry: Entry) -> None:
        """See Sink."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in entry.values.items()]
        values += [_text(tag, text) for tag, text in entry.texts.items()]
        if entry.parameters:
            rows = "\n".join(f"| {name} | {text} |" for name, text in entry.parameters.items())
            values.append(_text("parameters", f"| name | value |\n|---|---|\n{rows}"))
        if values:
            wall_time = time.time() if entry.time is None else entry.time.timestamp()
            self._writer.add_event(Event(wall_time=wall_time, step=entry.step, summary=Summary(value=values)))
            self._writer.flush()
        self._position.save(entry.number)

    def close(self) -> None:
        """See Sink."""
        self._writer.close()


def _text(tag: str, text: str) -> Any:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=shape)
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(tag=tag, metadata=plugin, tensor=tensor)
