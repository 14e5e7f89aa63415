"""Images as arrays in physical space, and the files that hold them. No torch, no plan, no workspace layout."""
