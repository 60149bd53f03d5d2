"""Thresholds with a promise: exact bounds, tests in a fixed order, certificates, and how many examples they take.

`certify` a path of policies, `Certificate.of` what it chose; `examples_needed` where nothing could be certified;
`answer_table` for all rows of a table that is at hand. Knows no model and no recording: losses and costs come as arrays.
"""

from confcascade.guarantee.bounds import (
    betting_bound,
    harm_bound,
    score_bound,
    score_p_value,
)
from confcascade.guarantee.certificate import Certificate
from confcascade.guarantee.certification import (
    Certification,
    Examined,
    TestName,
    certify,
    examine,
    least_loss,
    passes,
    reach,
    suited_test,
)
from confcascade.guarantee.planner import (
    attainable_drop,
    examples_needed,
    examples_needed_like,
    fewest_examples,
    power_of,
)
from confcascade.guarantee.promise import Equivalence, Promise
from confcascade.guarantee.table import TableAnswers, answer_table

__all__ = [
    "Certificate",
    "Certification",
    "Equivalence",
    "Examined",
    "Promise",
    "TableAnswers",
    "TestName",
    "answer_table",
    "attainable_drop",
    "betting_bound",
    "certify",
    "examine",
    "examples_needed",
    "examples_needed_like",
    "fewest_examples",
    "harm_bound",
    "least_loss",
    "passes",
    "power_of",
    "reach",
    "score_bound",
    "score_p_value",
    "suited_test",
]
