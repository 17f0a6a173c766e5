"""What runs on Ray: samplers, graders, trace buffer, collector, scorers, learner workers, weight publication."""
