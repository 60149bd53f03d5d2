"""From a recording to a policy with a promise: calibrate, choose, certify.

`material` reads a recording and refuses what nothing can be promised of, `splitting` parts its questions, `candidates`
makes policies, `proof` orders and tests them, `fitting` puts these together, `words` says what came of
it, `verify` looks at a policy on other questions.
"""

from confcascade.evaluation.fit.fitting import Fitted, Nothing, fit, replayable
from confcascade.evaluation.fit.material import Material, agreement, material_of, read_material
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
