"""Data sets as examples: a format of our own, those that others publish, prompts for them, and splits that hold.

One module for each format, each with `claims(record)` (are its keys this format's?) and `example(record)`. `files`
reads the records, `reading` recognizes the format and checks ids, `splitting` keeps rows apart, `prompts` makes the
text that a model is asked.
"""

from confcascade.bench.questions.prompts import PROMPTS, Prompt, prompt_from
from confcascade.bench.questions.reading import FORMATS, format_of, read_examples
from confcascade.bench.questions.splitting import paper_split, paper_test_size, sample, side, split

__all__ = [
    "FORMATS",
    "PROMPTS",
    "Prompt",
    "format_of",
    "paper_split",
    "paper_test_size",
    "prompt_from",
    "read_examples",
    "sample",
    "side",
    "split",
]
