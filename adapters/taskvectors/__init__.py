"""Task vectors: fine-tuned minus base, as files, as arithmetic, and served by vLLM.

Importing this package imports neither torch nor vllm; only `kernels` and `vllm_plugin` do.
"""

__version__ = "0.1.0"
