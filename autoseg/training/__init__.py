"""One fold: opened, trained by the one visible loop (`train`), monitored, finished."""
