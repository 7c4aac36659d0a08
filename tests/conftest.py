"""Examples are drawn the same in every run; `--hypothesis-profile explore` looks for new ones."""

from hypothesis import settings

settings.register_profile("explore", deadline=None, print_blob=True)
settings.register_profile("repeat", deadline=None, derandomize=True)
settings.load_profile("repeat")
