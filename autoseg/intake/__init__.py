"""What `dataset.py` is built from: layouts, files into cases, tables, files into arrays.

layouts.py  one function per dataset layout
pairing.py  image files sorted into cases, with their channels and labels
tables.py   the list of images, the patients, the folds a dataset brings
loading.py  one case from its files to arrays in one axis order
grids.py    the files of a case on one grid; grids that do not fit the others of the set
"""
