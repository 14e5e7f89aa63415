"""Images as arrays in physical space, and their files. Independent of torch, plans and workspaces."""
