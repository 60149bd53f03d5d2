"""What models answered: a row for each question and model, written so that a kill loses none, read as rows or arrays.

`row` is one attempt, `writer` appends it to JSON Lines, `reading` reads files and folders, `columns` are their numbers
as arrays, `parquet` and `parts` the forms for large ones; `provenance` is what a recording was made with, `playback`
plays it through the live cascade, `importers` read what others have published.
"""

from confcascade.bench.recording.columns import Columns
from confcascade.bench.recording.parquet import write_parquet
from confcascade.bench.recording.parts import write_parts
from confcascade.bench.recording.playback import PlaybackModel, PlaybackSignal
from confcascade.bench.recording.reading import Recording, part_paths, read_columns, read_rows
from confcascade.bench.recording.row import NOT_KEPT, RecordedScore, Row, judged_score, score_of
from confcascade.bench.recording.writer import RecordingWriter

__all__ = [
    "NOT_KEPT",
    "Columns",
    "PlaybackModel",
    "PlaybackSignal",
    "RecordedScore",
    "Recording",
    "RecordingWriter",
    "Row",
    "judged_score",
    "part_paths",
    "read_columns",
    "read_rows",
    "score_of",
    "write_parquet",
    "write_parts",
]
