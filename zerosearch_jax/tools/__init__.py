"""What launch/ calls beside training: collection, audit, studies, evaluation, a search server, the planner."""
