"""Every model is asked every question, once: concurrently, within rate limits, and on from where a kill left it.

`attempt` is the flow of one question and one model, `collect` runs them and writes the rows, `rate_limit` keeps calls
within limits, `ray` spreads them over a cluster.
"""

from confcascade.bench.collecting.attempt import CollectOptions
from confcascade.bench.collecting.collect import Collected, Tally, collect, collect_rows
from confcascade.bench.collecting.rate_limit import CollectStoppedError, RateLimits

__all__ = ["CollectOptions", "CollectStoppedError", "Collected", "RateLimits", "Tally", "collect", "collect_rows"]
