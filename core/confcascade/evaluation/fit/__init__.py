"""From a recording to a policy with a promise: calibrate, choose, certify.

`material` reads a recording and refuses what nothing can be promised of, `splitting` parts its questions, `candidates`
makes policies, `proof` orders and tests them, `fitting` puts these together. `refusals` says what can have no promise,
`results` what a fit gives, `policies` writes and reads the policy, `nothing` plans what it would take if there is none.
`words` says what came of it, `verify` looks at a policy on other questions.
"""

from confcascade.evaluation.fit.fitting import fit
from confcascade.evaluation.fit.material import Material, agreement, material_of, read_material
from confcascade.evaluation.fit.policies import replayable
from confcascade.evaluation.fit.results import Fitted, Nothing
from confcascade.evaluation.fit.splitting import Parts, split_by_key
from confcascade.evaluation.fit.verify import Realised, realised
from confcascade.evaluation.fit.words import report

__all__ = [
    "Fitted",
    "Material",
    "Nothing",
    "Parts",
    "Realised",
    "agreement",
    "fit",
    "material_of",
    "read_material",
    "realised",
    "replayable",
    "report",
    "split_by_key",
]
