"""A run on disk and on screen: checkpoints, metrics, trackers, alarms, preemption, cost."""
