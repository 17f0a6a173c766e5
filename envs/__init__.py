"""What is asked and how it is graded: tasks, environments, sandbox, graders. Text only: no torch, no Ray."""
