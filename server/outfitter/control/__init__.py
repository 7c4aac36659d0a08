"""Pure decisions: what a request asks for, and what is done about it."""
