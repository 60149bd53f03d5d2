"""Settings of every test: one thread of computation per process, and no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny models are slower on more
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
