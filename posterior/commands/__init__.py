"""What each command of the front door does; imported only when the command runs."""
