"""What each command chains, and the options of the command line."""
