"""The planner: what a run needs of its devices, how long it takes and what it costs, before it starts."""
