"""One fold: opened, trained by the one visible loop (`train`), watched, ended."""
