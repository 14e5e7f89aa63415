"""The Python interface: what the commands do, for a notebook or a script.

    import autoseg

    plan = autoseg.plan_dataset("data", workspace="ws")
    folds = autoseg.train_folds("ws", folds=[0], steps=100)

Options are keywords with the names, the meaning and the defaults of the commands' options; the records `PlanOptions`
and `TrainOptions` have the last word, and tests hold signatures against them. Functions return records and raise an
`AutosegError`; they never end the program. What they show is a line at a time for `say`: None shows nothing.
"""
