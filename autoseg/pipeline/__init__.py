"""What a command chains, one file per command, and the command line's options."""
