"""Types of the numbers and texts in a plan, each with its rule (`rules`). Ranges of single fields are in `plan`."""

from typing import Annotated, Any

from autoseg.rules import MAX_COUNT, MAX_SECONDS, MAX_STEPS, above, anything, at_least, between, file_name, odd

# Whole numbers
Count = Annotated[int, at_least(0, MAX_COUNT)]  # of bytes, elements, operations
Samples = Annotated[int, at_least(1, 2**16)]  # patches or tiles at a time
Voxels = Annotated[int, at_least(1, 2**20)]
Edge = Annotated[int, at_least(1, 2**14)]  # of a patch, voxels
Stride = Annotated[int, between(1, 16)]
Kernel = Annotated[int, odd(1, 15)]
Blocks = Annotated[int, between(1, 64)]
Features = Annotated[int, between(1, 2**14)]
Axis = Annotated[int, between(0, 2)]
Order = Annotated[int, between(0, 5)]  # of a spline
Steps = Annotated[int, at_least(1, MAX_STEPS)]

# Numbers
Millimetres = Annotated[float, between(1e-9, 1e6)]  # of a spacing: from picometres to a kilometre
Seconds = Annotated[float, above(0, MAX_SECONDS)]
Ratio = Annotated[float, at_least(1, 1e9)]  # of one spacing to another
Weight = Annotated[float, between(0, 1e6)]
Share = Annotated[float, between(0, 1)]
Decay = Annotated[float, between(0, 1, below=True)]

# Texts
Text = Annotated[str, anything("any text")]
Keyword = Annotated[str, anything("a keyword of the function")]
ConfigurationName = Annotated[str, file_name()]  # its preprocessed copy is a folder of this name

# Keywords of a function that a plan names by its key in a table; checked against its signature (`options`)
Options = dict[Keyword, Any]
