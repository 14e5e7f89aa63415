"""What `dataset.py` is built from: layouts, files into cases, tables, files into arrays.

layouts.py   one function per dataset layout
entries.py   what an entry of a folder is, and what to do about it
contents.py  every entry of a folder: used, or named
spelling.py  ids and paths as people and disks spell them
pairing.py   image files sorted into cases, with their channels and labels
inputs.py    the images to segment, sorted by the names of those trained on
tables.py    the list of images, the patients
folds.py     the folds a dataset brings: honoured, or refused
loading.py   one case from its files to arrays in one axis order
grids.py     the files of a case on one grid; grids that do not fit the others of the set
voxels.py    values that drown an image; pictures in grey and in colour
annotation.py  labels that cannot be learnt as they are

and for a corrected copy of a dataset:

copying.py   every file, with its ending set right
lists.py     dataset.json, tables, folds and patients, corrected
repair.py    one function per repair of a case
changes.py   what was changed, as a table
"""
