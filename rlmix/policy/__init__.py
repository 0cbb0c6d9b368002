"""Decisions about mixing: what they are, who takes them, and the controller that carries them out."""
