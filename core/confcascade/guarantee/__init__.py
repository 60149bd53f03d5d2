"""Thresholds with a promise: exact bounds, tests in a fixed order, certificates, and how many examples they take.

`order_policies` on some questions, `certify` on others, `Certificate.of` what it chose; `examples_needed` where nothing
could be certified. `Target` and `TargetCertificate` promise precision, recall, F1, the price of errors, cost and
latency, alone or together (`prove_together`). Knows no model and no recording: losses and costs come as arrays.
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
    "Ordered",
    "Paired",
    "Played",
    "Promise",
    "Proof",
    "Share",
    "Shown",
    "Target",
    "TargetCertificate",
    "TargetKind",
    "TestName",
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
    "net_loss_bound",
    "order_policies",
    "power_of",
    "prove_together",
    "prove_within",
    "sharpest_test",
    "unconditional_bound",
    "unconditional_p_value",
]
