"""The policy service: one agent that many trainings ask which mix to use, and tell what came of it (`rlmix serve`)."""
