"""Models that nnU-Net v2 trained, as models of autoseg: `folder` opens them, the others know one part each."""
