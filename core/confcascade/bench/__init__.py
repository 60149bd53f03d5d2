"""The bench: questions are asked once, what came of it is recorded, and policies are chosen and judged on that.

Nothing here takes part in answering a live query. Its rooms, in the order in which data passes through them:

- `questions` reads data sets and makes prompts;
- `collecting` asks every model every question, and `recording` keeps what they said;
- `replay` decides on a recording as the live cascade would, with `metrics` for what comes out;
- `fitting` chooses thresholds and proves what they promise;
- `evaluation` holds a policy next to its baselines and writes the report;
- `training` makes probes; `cluster` spreads work over Ray.
"""

__all__: list[str] = []
