"""Whom and what to trust: licences, cards, signatures, where a pull may go."""
