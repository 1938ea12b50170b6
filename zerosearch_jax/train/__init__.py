"""Training: its configuration, the learner, the main loop, supervised fine-tuning."""
