"""Data sets as examples: a format of our own, those of MMLU, GPQA, PopQA, GSM8K and ARC, and splits that hold.

One module a format, each with `claims(record)` (are its keys this format's?) and `example(record)`. `files` reads the
records, `reading` tells the format and sees to ids, `splitting` keeps rows apart.
"""

from confcascade.evaluation.datasets.reading import FORMATS, format_of, read_examples
from confcascade.evaluation.datasets.splitting import paper_split, paper_test_size, side, split

__all__ = ["FORMATS", "format_of", "paper_split", "paper_test_size", "read_examples", "side", "split"]
