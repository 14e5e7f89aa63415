"""What `dataset.py` is built from: layouts, files into cases, tables, files into arrays.

layouts.py  one function per dataset layout
pairing.py  image files sorted into cases, with their channels and labels
tables.py   the list of images, the patients, the folds a dataset brings
loading.py  one case from its files to arrays in one axis order

and for a corrected copy of a dataset:

copying.py  every file, with its ending set right
lists.py    dataset.json, tables, folds and patients, corrected
repair.py   one function per repair of a case
changes.py  what was changed, told
"""
