"""A benchmark: plain vLLM, the plugin and vLLM's own LoRA, side by side in one run.

`outfitter bench`, or `python -m taskvectors.bench` where there is only numpy. The engines are
child processes (`host`); everything here but that is free of torch.
"""
