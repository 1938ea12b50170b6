"""The search task: prompts, simulator, engines, curriculum, rollout, rewards."""
