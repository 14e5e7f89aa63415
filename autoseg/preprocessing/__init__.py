"""From cases as read to cases as the network sees them."""
