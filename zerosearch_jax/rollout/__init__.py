"""The episode: prompts, the loop of think, search, read and answer, answers compared, rewards."""
