"""The episode: prompts, the loop of think, search, read and answer, scores of answers, rewards."""
