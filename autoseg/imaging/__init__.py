"""Images as arrays in physical space. No torch, no plan, no workspace layout.

geometry.py    Geometry, Volume, canonical orientation
readers.py     the table of formats: files to volumes, and label maps to files
nifti.py       NIfTI
itk.py         NRRD and MetaImage
natural.py     PNG, BMP, JPEG, TIFF
stored.py      what stands in a file before it is an image; files that are not what their name says
labels.py      LabelSet: values in files <-> class indices and regions of the network
resample.py    arrays from one spacing to another
normalize.py   intensities of one channel to network input
components.py  connected components of label maps
metrics.py     a segmentation against its reference
"""
