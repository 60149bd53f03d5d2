"""Recordings out of what others have published of their models' answers.

Each importer reads one published form, a file gzipped or not, row by row. What a source does not tell is not invented:

- **No text of an answer**: `NOT_KEPT` stands in its place, for a row without a text is a model that said nothing, and
  its question goes on to the next.
- **No count of tokens**: each question is one input token, so that costs are the paper's equation 6, 2N for a query, in
  either accounting; the usage is marked as estimated.
- **No time**: `Row.latency_s` is None, and seconds are NaN.
- **No score**: its value is None, and the detail ``unavailable`` says why. Of a signal that a model does not have at
  all, there is none.
"""

from confcascade.bench.recording.importers.chain import read_chain
from confcascade.bench.recording.importers.choice_logits import read_choice_logits
from confcascade.bench.recording.importers.choice_softmax import read_choice_softmax
from confcascade.bench.recording.importers.verbalized import read_stated, read_verbalized
from confcascade.bench.recording.row import NOT_KEPT

__all__ = [
    "NOT_KEPT",
    "read_chain",
    "read_choice_logits",
    "read_choice_softmax",
    "read_stated",
    "read_verbalized",
]
