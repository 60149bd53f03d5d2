"""Thresholds with a promise: exact bounds, tests in a fixed order, certificates, and how many examples they take.

`certify` a path of policies, `Certificate.of` what it chose; `examples_needed` where nothing could be certified;
`answer_table` for all rows of a table that is at hand. `Target` and `TargetCertificate` promise precision, recall, F1,
the price of errors, cost and latency, alone or together (`prove_together`). Knows no model and no recording: losses and
costs come as arrays.
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
from confcascade.guarantee.sequential_path import SequentiallyExamined, SequentialPath
from confcascade.guarantee.table import TableAnswers, answer_table
from confcascade.guarantee.target_certificate import TargetCertificate
from confcascade.guarantee.targets import (
    CAP_KINDS,
    CAPS_SHARE,
    CLASS_KINDS,
    Evidence,
    Mean,
    Paired,
    Played,
    Proof,
    Share,
    Shown,
    Target,
    TargetKind,
    in_testing_order,
    prove_together,
    prove_within,
)

__all__ = [
    "CAPS_SHARE",
    "CAP_KINDS",
    "CLASS_KINDS",
    "Certificate",
    "Certification",
    "Equivalence",
    "Evidence",
    "Examined",
    "Mean",
    "Paired",
    "Played",
    "Promise",
    "Proof",
    "SequentialPath",
    "SequentiallyExamined",
    "Share",
    "Shown",
    "TableAnswers",
    "Target",
    "TargetCertificate",
    "TargetKind",
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
    "in_testing_order",
    "least_loss",
    "passes",
    "power_of",
    "prove_together",
    "prove_within",
    "reach",
    "score_bound",
    "score_p_value",
    "suited_test",
]
