"""A Llama small enough to make and train in a test."""

from transformers import LlamaConfig


def tiny_config(*, tied: bool) -> LlamaConfig:
    """Two layers, sixteen dimensions, a vocabulary of 48."""
    return LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
