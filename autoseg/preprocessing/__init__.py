"""Cases as they are read to cases as the network sees them."""
