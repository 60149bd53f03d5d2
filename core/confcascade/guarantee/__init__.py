"""Thresholds with a promise: exact bounds, tests in a fixed order, certificates, and how many examples they take.

`order_policies` on some questions, `certify` on others, `Certificate.of` what it chose; `examples_needed` where nothing
could be certified. Knows no model and no recording: losses and costs come as arrays.
"""

from confcascade.guarantee.bounds import (
    betting_bound,
    harm_bound,
    net_loss_bound,
    unconditional_bound,
    unconditional_p_value,
)
from confcascade.guarantee.certificate import Certificate
from confcascade.guarantee.certification import (
    Certification,
    Examined,
    Ordered,
    TestName,
    certify,
    examine,
    least_loss,
    order_policies,
    sharpest_test,
)
from confcascade.guarantee.planner import (
    attainable_drop,
    examples_needed,
    examples_needed_like,
    fewest_examples,
    power_of,
)
from confcascade.guarantee.promise import Equivalence, Promise
from confcascade.guarantee.sequential_path import SequentiallyExamined, SequentialPath

__all__ = [
    "Certificate",
    "Certification",
    "Equivalence",
    "Examined",
    "Ordered",
    "Promise",
    "SequentialPath",
    "SequentiallyExamined",
    "TestName",
    "attainable_drop",
    "betting_bound",
    "certify",
    "examine",
    "examples_needed",
    "examples_needed_like",
    "fewest_examples",
    "harm_bound",
    "least_loss",
    "net_loss_bound",
    "order_policies",
    "power_of",
    "sharpest_test",
    "unconditional_bound",
    "unconditional_p_value",
]
