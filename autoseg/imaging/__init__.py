"""Images as arrays in physical space. No torch, no plan, no workspace layout.

geometry.py    Geometry, Volume, canonical orientation
alignment.py   whether two files lie on one grid, and the exact way from one to the other
readers.py     the table of formats: files to volumes, and label maps to files
nifti.py       NIfTI
nifti_affine.py  which of the affines of a NIfTI header is used, and where they contradict each other
itk.py         NRRD and MetaImage
itk_header.py  what their headers say that ITK does not hand on: units, what is missing or stands twice
natural.py     PNG, BMP, JPEG, TIFF
tiff_spacing.py  how large the pixels of a TIFF image are
tiff_pages.py  what the pages of a TIFF say: kinds of colour, orientation, parts in other files
upright.py     the orientation tag of EXIF and TIFF
colours.py     colours in label maps, palettes
stored.py      what stands in a file before it is an image; files that are not what their name says
labels.py      LabelSet: values in files <-> class indices and regions of the network
regions.py     the order in which regions are written
resample.py    arrays from one spacing to another
regrid.py      arrays from one grid in space onto another
rewrite.py     a file's voxels or place, replaced
normalize.py   intensities of one channel to network input
transforms.py  what both augmentation chains use
symmetry.py    the mid-sagittal plane, and what is at the mirrored place of a label
components.py  connected components of label maps
metrics.py     a segmentation against its reference
"""
