"""Labels bought one by one until a promise is certified: what to label, who is asked, what is kept, when to stop.

`task` makes policies without a label and says where their losses are open, `sources` asks for labels, `journal` keeps
them, `buying` goes on until it is enough, `outcome` makes the policy and tells what it took.
"""

from confcascade.bench.labelling.buying import Aim, Bought, Ending, buy
from confcascade.bench.labelling.journal import Journal, JournalEntry
from confcascade.bench.labelling.outcome import Labelled, labelled
from confcascade.bench.labelling.sources import FileLabels, Label, LabelSource, LargestLabels, with_largest
from confcascade.bench.labelling.task import LabelTask, Wanted, same_text

__all__ = [
    "Aim",
    "Bought",
    "Ending",
    "FileLabels",
    "Journal",
    "JournalEntry",
    "Label",
    "LabelSource",
    "LabelTask",
    "Labelled",
    "LargestLabels",
    "Wanted",
    "buy",
    "labelled",
    "same_text",
    "with_largest",
]
