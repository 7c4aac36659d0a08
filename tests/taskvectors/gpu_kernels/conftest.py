"""Collected on a GPU, or in Triton's interpreter, which has to be chosen before its import.

`tests/taskvectors/test_gpu_kernels.py` runs this folder in a process that has chosen it.
"""

import os

import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]
