"""Images as arrays in physical space. No torch, no plan, no workspace layout.

geometry.py    Geometry, Volume, canonical orientation
readers.py     files to volumes and label maps to files, one function per format
labels.py      LabelSet: values in files <-> class indices and regions of the network
resample.py    arrays from one spacing to another
normalize.py   intensities of one channel to network input
components.py  connected components of label maps
metrics.py     a segmentation against its reference
"""
